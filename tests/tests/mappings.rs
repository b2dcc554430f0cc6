//! Mappings: frames that a client has listed, for itself alone. Right ones bring what a scan brings, wrong ones harm
//! nobody else, and they go along to the next daemon.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use reeld_client::{Client, Error, FrameMapping, MappedFrame, OpenOptions, SeekMode, Spool, Video};
use reeld_protocol::message::{OpenSource, Reply, Request};
use reeld_protocol::{ErrorCode, SealedMemfd};
use reeld_tests::{Daemon, Peer, Reference, bytes_of, clip, eventually};

const CLIP: &str = "h264_bframes.mp4";
const TICKS_PER_FRAME: i64 = 512;

/// Frames of the clip, as the clip has them or otherwise.
fn mapping(numbers: impl Iterator<Item = i64>, is_key: impl Fn(i64) -> bool) -> FrameMapping {
    let frame = |number: i64| MappedFrame {
        pts: number * TICKS_PER_FRAME,
        duration: TICKS_PER_FRAME,
        is_key: is_key(number),
    };
    FrameMapping::new(&numbers.map(frame).collect::<Vec<_>>()).unwrap()
}

fn open(client: &Client, mapping: FrameMapping) -> Video {
    client.open(clip(CLIP), OpenOptions::new().mapping(mapping)).unwrap()
}

fn reference() -> Reference {
    Reference::new(&clip(CLIP), 320, 180)
}

#[test]
fn mapped_frames_are_those_of_ffmpeg_and_nothing_is_scanned() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let video = open(&client, mapping(0..50, |number| number == 0));
    assert_eq!(video.metadata().frame_count(), Some(50));
    assert!(video.frames_at(&[49, 0, 7]).unwrap()[..] == reference().frames([49, 0, 7])[..]);
    assert!(video.frame_played_at(0.5).unwrap()[..] == *reference().frame(12));
    assert_eq!(client.status().unwrap().totals.scans, 0);
}

#[test]
fn wrong_keyframes_and_missing_frames_are_their_clients_own_affair() {
    let daemon = Daemon::with(&["--engine-count-max", "1"]);
    let (liar, honest) = (daemon.client(), daemon.client());
    let wrong = open(&liar, mapping((10..90).rev(), |number| number % 3 == 1));
    let right = honest.open(clip(CLIP), OpenOptions::new()).unwrap();
    let reference = reference();
    for index in [0, 39, 5, 38, 20] {
        assert!(wrong.frame_at(index).unwrap()[..] == *reference.frame(index + 10));
        assert!(right.frame_at(index).unwrap()[..] == *reference.frame(index));
        // Behind the end of the file, whatever the mapping says.
        assert!(matches!(wrong.frame_at(index + 40), Err(Error::Media(_))));
    }
    assert!(matches!(wrong.frame_at(80), Err(Error::FrameIndex(_))));
    assert_eq!(right.metadata().frame_count(), Some(50));
}

#[test]
fn mapping_goes_along_to_the_next_daemon_with_spooled_media_too() {
    let mut daemon = Daemon::start();
    let client = daemon.client_for(Duration::from_secs(3600));
    let mut spool = Spool::new().unwrap();
    spool.write_all(&std::fs::read(clip(CLIP)).unwrap()).unwrap();
    let options = OpenOptions::new().mapping(mapping(20..30, |_| false));
    let spooled = client.open(spool, options).unwrap();
    let of_path = open(&client, mapping(20..30, |_| true));
    daemon.kill();
    daemon.start_again();
    let reference = reference();
    for video in [spooled, of_path] {
        assert!(video.frame_at(3).unwrap()[..] == *reference.frame(23));
        assert!(matches!(video.frame_at(10), Err(Error::FrameIndex(_))));
    }
}

#[test]
fn mapping_and_approximate_seeking_exclude_each_other() {
    let daemon = Daemon::start();
    let options = OpenOptions::new().mapping(mapping(0..1, |_| true)).seek_mode(SeekMode::Approximate);
    let error = daemon.client().open(clip(CLIP), options).err().unwrap();
    assert!(matches!(error, Error::InvalidRequest(_)), "{error}");
    assert!(matches!(FrameMapping::new(&[]), Err(Error::InvalidRequest(_))));
}

/// A mapping of the most frames that costs its sender a page: all its numbers are 0, and zeros need no memory.
fn sparse_mapping() -> std::os::fd::OwnedFd {
    let count = reeld_client::MAPPED_FRAMES_MAX;
    let fd = reeld_protocol::arena::create_memfd("sparse", 16 + 24 * count).unwrap();
    rustix::io::pwrite(&fd, b"REELDMP\x01", 0).unwrap();
    rustix::io::pwrite(&fd, &count.to_le_bytes(), 8).unwrap();
    SealedMemfd::seal(fd).unwrap().into_fd()
}

#[test]
fn mappings_of_a_user_have_a_limit_and_are_given_back() {
    let daemon = Daemon::start();
    let options = OpenSource {
        label: "sparse".into(),
        stream: None,
        seek_mode: SeekMode::Mapped,
        is_memory: false,
        thread_count: 0,
    };
    let mut bytes = bytes_of(&Request::OpenSource(options), 1);
    bytes[6] = 2;
    let (file, mapping) = (std::fs::File::open(clip(CLIP)).unwrap(), sparse_mapping());
    let mut open = |peer: &mut Peer, request_id: u64| {
        bytes[8..16].copy_from_slice(&request_id.to_le_bytes());
        peer.send_with(&bytes, &[file.as_fd(), mapping.as_fd()]);
        peer.reply_to(request_id)
    };
    let mut peer = Peer::welcomed(&daemon);
    for request_id in 1..=4 {
        assert!(matches!(open(&mut peer, request_id), Some(Reply::SourceOpened(_))));
    }
    let refused = open(&mut peer, 5);
    assert!(
        matches!(&refused, Some(Reply::Error(error)) if error.code == ErrorCode::LimitReached),
        "{refused:?}"
    );
    drop(peer);
    let mut next = Peer::welcomed(&daemon);
    let mut request_id = 10;
    eventually("what the first one had is free", || {
        request_id += 1;
        matches!(open(&mut next, request_id), Some(Reply::SourceOpened(_))).then_some(())
    });
}
