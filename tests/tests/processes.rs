//! Many processes at once, and processes that end badly: all frames are right, and nothing is left.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::path::Path;

use reeld_tests::{Daemon, Reference, Worker, clip, eventually, twenty_clips};

const CLIP: &str = "h264_bframes.mp4";

/// A clip and its frames in a file beside the daemon's socket.
fn with_reference(daemon: &Daemon, clip: &Path, size: (usize, usize)) -> [String; 2] {
    let reference = daemon.folder().join(clip.file_name().unwrap()).with_extension("rgb");
    Reference::new(clip, size.0, size.1).write(&reference);
    [clip, &reference].map(|path| path.to_str().unwrap().to_owned())
}

#[test]
fn eight_processes_on_one_file_get_the_right_frames_and_leave_nothing() {
    let daemon = Daemon::start();
    let [path, reference] = with_reference(&daemon, &clip(CLIP), (320, 180));
    let start = |seed: u64| Worker::start("read", &daemon.socket(), &[&path, &reference, &seed.to_string()]);
    let workers: Vec<_> = (1..=8).map(start).collect();
    workers.into_iter().for_each(Worker::finish);
    let status = daemon.await_rest();
    assert_eq!((status.totals.requests, status.totals.scans), (8 * 60, 1));
    assert_eq!((status.totals.requests_failed, status.totals.engine_crashes), (0, 0));
}

#[test]
fn eight_processes_on_twenty_files_get_the_right_frames_and_leave_nothing() {
    let daemon = Daemon::start();
    let files: Vec<_> =
        twenty_clips().iter().flat_map(|clip| with_reference(&daemon, clip, (160, 96))).collect();
    let start = |seed: u64| {
        let seed = seed.to_string();
        let arguments: Vec<_> =
            ["160x96", &seed].into_iter().chain(files.iter().map(String::as_str)).collect();
        Worker::start("read-each", &daemon.socket(), &arguments)
    };
    let workers: Vec<_> = (1..=8).map(start).collect();
    workers.into_iter().for_each(Worker::finish);
    let status = daemon.await_rest();
    assert_eq!((status.totals.requests, status.totals.requests_failed), (8 * 100, 0));
}

#[test]
fn eight_clients_that_ask_for_the_same_frames_at_once_cost_about_one_decode() {
    let daemon = Daemon::start();
    let videos: Vec<_> = (0..8)
        .map(|_| daemon.client().open(clip(CLIP), reeld_client::OpenOptions::default()).unwrap())
        .collect();
    let reference = Reference::new(&clip(CLIP), 320, 180);
    std::thread::scope(|scope| {
        for video in &videos {
            scope.spawn(|| assert!(video.frames_in_range(0..50).unwrap()[..] == reference.frames(0..50)[..]));
        }
    });
    let totals = daemon.status().totals;
    assert_eq!(totals.frames_delivered, 8 * 50);
    assert!(totals.pictures_decoded <= 2 * 50, "{totals:?}");
}

#[test]
fn killed_worker_gives_back_what_it_held() {
    let daemon = Daemon::start();
    let path = clip(CLIP);
    let client = daemon.client();
    let mut worker = Worker::start("hold", &daemon.socket(), &[path.to_str().unwrap()]);
    assert_eq!(worker.line(), "holding");
    assert_eq!(client.status().unwrap().lease_count, 4);
    worker.kill();
    let status = eventually("the dead worker is noticed", || {
        let status = client.status().unwrap();
        (status.client_count == 1).then_some(status)
    });
    assert_eq!((status.lease_count, status.leased_bytes), (0, 0));
}

#[test]
fn forked_children_read_what_they_inherited_and_release_nothing() {
    let daemon = Daemon::start();
    let [path, reference] = with_reference(&daemon, &clip(CLIP), (320, 180));
    Worker::start("fork", &daemon.socket(), &[&path, &reference]).finish();
    assert_eq!(daemon.await_rest().totals.stray_releases, 0);
}

#[test]
fn children_forked_from_a_busy_process_connect_anew() {
    let daemon = Daemon::start();
    let [path, reference] = with_reference(&daemon, &clip(CLIP), (320, 180));
    Worker::start("fork-before-use", &daemon.socket(), &[&path, &reference]).finish();
    let status = daemon.await_rest();
    assert_eq!((status.totals.stray_releases, status.totals.requests_failed), (0, 0));
}
