//! Engines and daemons that are killed: requests are tried again or fail with a sentence. How clients wait for a
//! daemon is in `reconnect.rs`.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use reeld_client::{Client, Error, OpenOptions, RequestOptions, Video, Wanted};
use reeld_tests::{Daemon, Reference, clip, eventually};

const CLIP: &str = "h264_bframes.mp4";

fn open(client: &Client, name: &str) -> Video {
    client.open(clip(name), OpenOptions::default()).unwrap()
}

/// Kills an engine of this daemon that works on something.
fn kill_busy_engine(client: &Client) {
    let pid = eventually("an engine is busy", || {
        let engines = client.status().unwrap().engines;
        engines.iter().find(|engine| engine.is_busy).map(|engine| engine.pid)
    });
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn request_of_a_killed_engine_is_tried_again() {
    let daemon = Daemon::with(&["--engine-count-max", "1", "--engine-cache-mib", "0"]);
    let client = daemon.client();
    let video = open(&client, "slow.mp4");
    let pending = video.submit(Wanted::Indices(vec![-1]), RequestOptions::default()).unwrap();
    kill_busy_engine(&client);
    let frames = pending.wait().unwrap();
    assert_eq!(frames.part(0).unwrap().shape(), [1, 1080, 1920, 3]);
    let totals = client.status().unwrap().totals;
    assert_eq!((totals.engine_crashes, totals.retries), (1, 1));
}

#[test]
fn request_whose_engines_die_twice_is_decoder_crashed() {
    let daemon = Daemon::with(&["--engine-count-max", "1", "--engine-cache-mib", "0"]);
    let client = daemon.client();
    let video = open(&client, "slow.mp4");
    let pending = video.submit(Wanted::Indices(vec![-1]), RequestOptions::default()).unwrap();
    kill_busy_engine(&client);
    eventually("the first crash is noticed", || {
        (client.status().unwrap().totals.engine_crashes == 1).then_some(())
    });
    kill_busy_engine(&client);
    let error = pending.wait().unwrap_err();
    assert!(matches!(error, Error::DecoderCrashed(_)), "{error:?}");
    let reference = Reference::new(&clip(CLIP), 320, 180);
    assert!(open(&client, CLIP).frame_at(5).unwrap()[..] == *reference.frame(5));
}

#[test]
fn video_goes_on_after_the_daemon_was_started_again() {
    let mut daemon = Daemon::start();
    let client = daemon.client();
    let path = daemon.folder().join("moved.mp4");
    std::fs::copy(clip(CLIP), &path).unwrap();
    let video = client.open(&path, OpenOptions::default()).unwrap();
    let before = video.frame_at(3).unwrap();
    daemon.kill();
    // It is opened again through the descriptor that the video keeps.
    std::fs::remove_file(&path).unwrap();
    daemon.start_again();
    let after = video.frame_at(3).unwrap();
    assert!(before[..] == after[..]);
    assert_eq!(client.status().unwrap().lease_count, 1);
}

#[test]
fn file_that_changed_while_the_daemon_was_away_is_source_changed() {
    let mut daemon = Daemon::start();
    let path = daemon.folder().join("changing.mp4");
    std::fs::copy(clip(CLIP), &path).unwrap();
    let video = daemon.client().open(&path, OpenOptions::default()).unwrap();
    daemon.kill();
    std::fs::copy(clip("width_32.mp4"), &path).unwrap();
    daemon.start_again();
    for _ in 0..2 {
        let error = video.frame_at(3).unwrap_err();
        assert!(matches!(error, Error::SourceChanged(_)), "{error:?}");
    }
}
