//! The status report: what it counts, and whose names it shows to whom.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::os::unix::fs::PermissionsExt;

use reeld_client::status::{Activity, Status};
use reeld_client::{Client, OpenOptions, RequestOptions, Wanted};
use reeld_tests::{Daemon, clip, eventually};
use rustix::thread::Uid;

const CLIP: &str = "h264_bframes.mp4";

#[test]
fn errors_are_counted_by_class_and_by_client_and_outlive_their_client() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let video = client.open(clip(CLIP), OpenOptions::default()).unwrap();
    for index in [1000, 2000] {
        assert!(video.frame_at(index).is_err());
    }
    let count = |status: &Status| status.errors.iter().map(|error| error.count).sum::<u64>();
    let status = client.status().unwrap();
    assert_eq!((status.errors[0].code.as_str(), count(&status)), ("index_out_of_range", 2));
    // Opening, two frames, and this report.
    assert_eq!((status.clients[0].error_count, status.clients[0].requests_total), (2, 4));
    drop((video, client));
    let status = daemon.await_rest();
    assert_eq!((count(&status), status.clients[0].error_count), (2, 0));
}

#[test]
fn engine_at_work_is_shown_with_its_file_to_its_own_user() {
    let daemon = Daemon::with(&["--engine-count-max", "1"]);
    let client = daemon.client();
    let video = client.open(clip("slow.mp4"), OpenOptions::default()).unwrap();
    let pending = video.submit(Wanted::Indices(vec![-1]), RequestOptions::default()).unwrap();
    let engine = eventually("an engine decodes", || {
        let engines = client.status().unwrap().engines;
        engines.into_iter().find(|engine| engine.activity == Activity::Decoding)
    });
    assert!(engine.label.unwrap().ends_with("slow.mp4"));
    assert!(engine.is_busy && engine.jobs_done > 0);
    pending.wait().unwrap();
    let status = client.status().unwrap();
    assert_eq!(status.clients[0].name, format!("test {}", std::process::id()));
    assert!(status.cache_bytes > 0);
    let engine = &status.engines[0];
    assert_eq!((engine.activity, engine.label.as_ref()), (Activity::Idle, None));
}

#[test]
fn killed_engine_that_was_replaced_is_counted() {
    let daemon = Daemon::with(&["--engine-count-max", "1"]);
    let client = daemon.client();
    let video = client.open(clip(CLIP), OpenOptions::default()).unwrap();
    let engine = client.status().unwrap().engines[0].pid;
    let pid = rustix::process::Pid::from_raw(engine as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("its end is noticed", || client.status().unwrap().engines.is_empty().then_some(()));
    drop(video.frame_at(0).unwrap());
    assert_eq!(client.status().unwrap().totals.engine_restarts, 1);
}

/// Asks as another user: the kernel tells the daemon who the connecting thread is.
fn status_for(uid: Uid, daemon: &Daemon) -> Status {
    let socket = daemon.socket();
    let ask = move || {
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        Client::builder().socket(socket).name("stranger").connect().unwrap().status().unwrap()
    };
    std::thread::spawn(ask).join().unwrap()
}

#[test]
fn other_users_see_totals_but_neither_names_nor_files() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("not tested: only root can become another user");
    }
    let daemon = Daemon::with(&["--engine-count-max", "1", "--socket-mode", "0666"]);
    std::fs::set_permissions(daemon.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let client = daemon.client();
    let video = client.open(clip("slow.mp4"), OpenOptions::default()).unwrap();
    let pending = video.submit(Wanted::Indices(vec![-1]), RequestOptions::default()).unwrap();
    let status = eventually("an engine decodes", || {
        let status = status_for(Uid::from_raw(65_001), &daemon);
        (status.engines[0].activity == Activity::Decoding).then_some(status)
    });
    assert_eq!((status.client_count, status.request_count), (2, 1));
    let names: Vec<&str> = status.clients.iter().map(|client| client.name.as_str()).collect();
    assert_eq!(names, ["".to_owned(), format!("stranger {}", std::process::id())]);
    assert_eq!(status.engines[0].label, None);
    drop(pending);
}

#[test]
fn decoders_are_kept_open_within_their_budget() {
    for (budget, expected_count) in [("256", 3), ("0", 1)] {
        let daemon = Daemon::with(&["--engine-count-max", "1", "--engine-decoders-mib", budget]);
        let client = daemon.client();
        for name in [CLIP, "twenty_00.mp4", "twenty_01.mp4"] {
            client.open(clip(name), OpenOptions::default()).unwrap().frame_at(3).unwrap();
        }
        let status = eventually("the engine has reported", || {
            let status = client.status().unwrap();
            (!status.engines[0].is_busy).then_some(status)
        });
        assert_eq!(status.engines[0].session_count, expected_count);
    }
}

#[test]
fn decoding_into_a_full_cache_needs_no_new_memory() {
    // The clip's pictures together are larger.
    let daemon = Daemon::with(&["--engine-count-max", "1", "--engine-cache-mib", "2"]);
    let client = daemon.client();
    let video = client.open(clip(CLIP), OpenOptions::default()).unwrap();
    let ask = |count: usize| {
        for step in 0..count {
            assert_eq!(video.frames_at(&[step as i64 * 17 % 50]).unwrap().frame_count(), 1);
        }
        client.status().unwrap().totals
    };
    let before = ask(200);
    let after = ask(200);
    let decoded = after.pictures_decoded - before.pictures_decoded;
    // Each of them has 22 pages.
    let faults = after.page_faults - before.page_faults;
    assert!(decoded > 200 && faults < decoded, "{faults} page faults for {decoded} pictures");
}

#[test]
fn frames_from_a_cache_cost_a_conversion_and_no_new_memory() {
    let daemon = Daemon::with(&["--engine-count-max", "1"]);
    let client = daemon.client();
    let video = client.open(clip(CLIP), OpenOptions::default()).unwrap();
    let ask = |count: usize| {
        for _ in 0..count {
            assert_eq!(video.frames_at(&[7]).unwrap().frame_count(), 1);
        }
        client.status().unwrap().totals
    };
    let before = ask(50);
    let after = ask(500);
    assert_eq!(after.cache_hits - before.cache_hits, 500);
    assert!(after.conversion_micros > before.conversion_micros);
    // 43 pages have the pixels.
    let faults = after.page_faults - before.page_faults;
    assert!(before.page_faults > 43 && faults < 50, "{faults} page faults for 500 frames");
}
