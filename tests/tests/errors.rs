//! Bad input gives the class of error that says what to change, and the daemon goes on.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reeld_client::{Client, Error, OpenOptions, RequestOptions, Video, Wanted};
use reeld_tests::{Daemon, clip};

fn open(client: &Client, path: impl AsRef<Path>) -> Result<Video, Error> {
    client.open(path.as_ref(), OpenOptions::default())
}

struct Scene {
    daemon: Daemon,
    client: Client,
    video: Video,
}

fn scene() -> Scene {
    let daemon = Daemon::start();
    let client = daemon.client();
    let video = open(&client, clip("h264_bframes.mp4")).unwrap();
    Scene { daemon, client, video }
}

/// The daemon still serves, with the same process.
#[track_caller]
fn assert_well(scene: &mut Scene) {
    assert_eq!(scene.video.frame_at(0).unwrap().frame_count(), 1);
    assert!(scene.daemon.is_running());
}

#[test]
fn files_that_cannot_be_opened_are_io_errors() {
    let mut scene = scene();
    let fifo: PathBuf = scene.daemon.folder().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let kinds = [
        (Path::new("/no/such/file.mp4"), io::ErrorKind::NotFound),
        (scene.daemon.folder(), io::ErrorKind::IsADirectory),
        (&fifo, io::ErrorKind::InvalidInput),
    ]
    .map(|(path, kind)| match open(&scene.client, path) {
        Err(Error::Io { source, .. }) => (source.kind(), kind),
        other => panic!("{other:?}"),
    });
    for (actual, expected) in kinds {
        assert_eq!(actual, expected);
    }
    assert_well(&mut scene);
}

#[test]
fn files_that_are_no_video_are_media_errors_with_their_name() {
    let mut scene = scene();
    for name in ["broken_empty.mp4", "broken_text.mp4", "broken_noise.mp4", "broken_no_moov.mp4"] {
        let error = open(&scene.client, clip(name)).unwrap_err();
        assert!(matches!(error, Error::Media(_)), "{name}: {error:?}");
        assert!(error.to_string().contains(name), "{error}");
    }
    let bytes = scene.client.open(&b"not a video"[..], OpenOptions::default()).unwrap_err();
    assert!(matches!(bytes, Error::Media(_)), "{bytes:?}");
    assert_well(&mut scene);
}

#[test]
fn file_without_video_and_missing_stream_say_so() {
    let mut scene = scene();
    let audio = open(&scene.client, clip("audio_only.m4a")).unwrap_err();
    assert!(matches!(audio, Error::InvalidRequest(_)), "{audio:?}");
    let options = OpenOptions::new().stream(7);
    let missing = scene.client.open(clip("h264_bframes.mp4"), options).unwrap_err();
    assert!(matches!(missing, Error::InvalidRequest(_)), "{missing:?}");
    assert_well(&mut scene);
}

#[test]
fn frame_past_either_end_is_index_error() {
    let mut scene = scene();
    for index in [50, -51, i64::MAX, i64::MIN] {
        let error = scene.video.frames_at(&[0, index]).unwrap_err();
        assert!(matches!(error, Error::FrameIndex(_)), "{index}: {error:?}");
    }
    assert_well(&mut scene);
}

#[test]
fn time_outside_the_stream_is_time_error() {
    let mut scene = scene();
    for time in [-0.1, 2.0, f64::NAN, f64::INFINITY] {
        let error = scene.video.frame_played_at(time).unwrap_err();
        assert!(matches!(error, Error::TimeOutOfRange(_)), "{time}: {error:?}");
        let error = scene.video.frames_played_at(&[0.0, time]).unwrap_err();
        assert!(matches!(error, Error::TimeOutOfRange(_)), "{time}: {error:?}");
    }
    assert_well(&mut scene);
}

#[test]
fn impossible_range_is_an_error() {
    let mut scene = scene();
    assert!(matches!(scene.video.frames_in_range((0, 10, 0)), Err(Error::InvalidRequest(_))));
    let beyond = scene.video.frames_in_range(0..51).unwrap_err();
    assert!(matches!(beyond, Error::FrameIndex(_)), "{beyond:?}");
    assert_well(&mut scene);
}

#[test]
fn request_for_more_than_any_quota_is_an_error_at_once() {
    let mut scene = scene();
    let endless = scene.video.frames_in_range(0..u64::MAX).unwrap_err();
    assert!(matches!(endless, Error::InvalidRequest(_)), "{endless:?}");
    let indices = vec![0; 100_000_000];
    let error = scene.video.frames_at(&indices).unwrap_err();
    assert!(matches!(error, Error::NoSlots(_)), "{error:?}");
    assert_well(&mut scene);
}

#[test]
fn file_that_changes_after_it_was_opened_is_source_changed() {
    let mut scene = scene();
    let path = scene.daemon.folder().join("changing.mp4");
    std::fs::copy(clip("h264_bframes.mp4"), &path).unwrap();
    let video = open(&scene.client, &path).unwrap();
    std::fs::copy(clip("h264_short_gops.mp4"), &path).unwrap();
    let error = video.frame_at(30).unwrap_err();
    assert!(matches!(error, Error::SourceChanged(_)), "{error:?}");
    assert_well(&mut scene);
}

#[test]
fn deadline_that_passes_is_deadline_error() {
    let mut scene = scene();
    let slow = open(&scene.client, clip("slow.mp4")).unwrap();
    let options = RequestOptions::new().timeout(Duration::from_millis(1));
    let error = slow.submit(Wanted::Indices(vec![-1]), options).unwrap().wait().unwrap_err();
    assert!(matches!(error, Error::Deadline(_)), "{error:?}");
    assert_well(&mut scene);
}

#[test]
fn cancelled_request_ends_and_leaves_nothing() {
    let scene = scene();
    let slow = open(&scene.client, clip("slow.mp4")).unwrap();
    let pending = slow.submit(Wanted::Indices(vec![-1]), RequestOptions::default()).unwrap();
    pending.cancel();
    assert!(matches!(pending.wait(), Err(Error::Cancelled(_))));
    drop(slow.submit(Wanted::Indices(vec![-1]), RequestOptions::default()).unwrap());
    let Scene { daemon, client, video } = scene;
    drop((client, slow, video));
    daemon.await_rest();
}

#[test]
fn missing_daemon_is_unavailable_and_names_the_socket() {
    let error = Client::builder().socket("/no/such/reeld.sock").connect().unwrap_err();
    assert!(matches!(error, Error::DaemonUnavailable { .. }));
    assert!(error.to_string().contains("/no/such/reeld.sock"), "{error}");
}
