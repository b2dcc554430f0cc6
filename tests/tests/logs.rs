//! The daemon's log: what is in it, that nobody can forge it, and that nobody waits for it.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fs::File;
use std::process::Stdio;

use reeld_client::{Client, MediaSource, OpenOptions};
use reeld_tests::{Daemon, clip, eventually, reelctl};
use rustix::process::Signal;

const CLIP: &str = "h264_bframes.mp4";

fn lines_with<'a>(log: &'a str, words: &[&str]) -> Vec<&'a str> {
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).collect()
}

/// Lets the daemon write all that it has logged so far.
fn settle(daemon: &Daemon) -> String {
    daemon.signal(Signal::USR1);
    daemon.await_log(&["state: end"]);
    daemon.log()
}

#[test]
fn standard_error_that_nobody_reads_costs_lines_but_no_frame_and_no_orderly_end() {
    let (_never_read, stderr) = rustix::pipe::pipe().unwrap();
    let mut daemon = Daemon::writing_to(&[], Some("debug"), Stdio::from(stderr));
    let client = daemon.client();
    eventually("lines are dropped", || (client.status().unwrap().log_lines_dropped > 0).then_some(()));
    let video = client.open(clip(CLIP), OpenOptions::default()).unwrap();
    assert_eq!(video.frames_at(&[0, 10, -1]).unwrap().frame_count(), 3);
    let shown = reelctl().arg("--socket").arg(daemon.socket()).arg("status").output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("lines of the log were dropped"));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn closed_standard_error_ends_nothing() {
    let (closed, stderr) = rustix::pipe::pipe().unwrap();
    drop(closed);
    let mut daemon = Daemon::writing_to(&[], Some("debug"), Stdio::from(stderr));
    let video = daemon.client().open(clip(CLIP), OpenOptions::default()).unwrap();
    assert_eq!(video.frame_at(3).unwrap().frame_count(), 1);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn names_labels_and_errors_with_line_feeds_and_escapes_forge_no_line() {
    let daemon = Daemon::logging(&[], Some("debug"));
    let forged = "x\n2026-01-01T00:00:00Z ERROR reeld_daemon: all is lost\r\u{1b}[2J\u{2028}\u{85}";
    let client = Client::builder().socket(daemon.socket()).name(forged).connect().unwrap();
    let not_media = daemon.folder().join("text");
    std::fs::write(&not_media, "no media").unwrap();
    for path in [clip(CLIP), not_media] {
        let source = MediaSource::File(File::open(path).unwrap(), forged.to_owned());
        let _ = client.open(source, OpenOptions::default());
    }
    drop(client);
    daemon.await_log(&["client gone", "all is lost"]);
    let log = settle(&daemon);
    assert!(lines_with(&log, &["source opened", "all is lost"]).len() >= 2, "{log}");
    assert!(!lines_with(&log, &["request failed", "code=\"media\"", "all is lost"]).is_empty(), "{log}");
    for line in log.split('\n').filter(|line| !line.is_empty()) {
        assert!(!line.chars().any(char::is_control) && !line.contains('\u{2028}'), "{line:?}");
        let level = line.split_whitespace().nth(1).unwrap();
        assert!(["DEBUG", "INFO", "WARN"].contains(&level), "{line}");
        assert!(!line.starts_with("2026-01-01T00:00:00Z"), "{line}");
    }
}

#[test]
fn request_can_be_followed_by_its_number_at_debug() {
    let daemon = Daemon::logging(&[], Some("debug"));
    let client = daemon.client();
    let video = client.open(clip(CLIP), OpenOptions::default()).unwrap();
    drop(video.frame_at(7).unwrap());
    assert!(video.frame_at(100_000).is_err());
    let log = settle(&daemon);
    // Opening the file was the connection's first request.
    for words in [
        ["request_id=1 ", "request accepted"],
        ["request_id=1", "source opened"],
        ["request_id=1 ", "request finished"],
        ["request_id=2 ", "request accepted"],
        ["request_id=2 ", "request planned"],
        ["request_id=2 ", "request queued"],
        ["request_id=2 ", "request runs"],
        ["request_id=2 ", "request finished"],
        ["request_id=3 ", "request accepted"],
        ["request_id=3 ", "request failed"],
    ] {
        assert!(!lines_with(&log, &words).is_empty(), "no line with {words:?} in\n{log}");
    }
    let failed = lines_with(&log, &["request failed"])[0];
    assert!(failed.contains("code=\"index_out_of_range\"") && failed.contains("micros="), "{failed}");
    for words in [["scan done", "frames=50"], ["arena granted", "bytes=4194304"]] {
        assert_eq!(lines_with(&log, &words).len(), 1, "{log}");
    }
}

#[test]
fn lives_of_clients_and_engines_are_one_line_each_and_requests_none_at_info() {
    let daemon = Daemon::logging(&["--engine-count-max", "1"], Some("info"));
    let client = daemon.client();
    let video = client.open(clip(CLIP), OpenOptions::default()).unwrap();
    drop(video.frame_at(0).unwrap());
    let count = |log: &str| log.lines().filter(|line| !line.contains("state: ")).count();
    let before = count(&settle(&daemon));
    for index in 0..50 {
        drop(video.frame_at(index).unwrap());
    }
    let held = video.frame_at(3).unwrap();
    let end = daemon.log().len();
    daemon.signal(Signal::USR1);
    eventually("the second dump", || daemon.log()[end..].contains("state: end").then_some(()));
    assert_eq!(count(&daemon.log()), before, "{}", daemon.log());
    // A frame keeps its connection.
    drop((held, video, client));
    let gone = daemon.await_log(&["client gone", "client=1 "]);
    let pid = format!("pid={}", std::process::id());
    for words in [pid.as_str(), "uid=", "name=\"test ", "seconds=", "requests=53", "errors=0", "leases="] {
        assert!(gone.contains(words), "{words} is not in {gone}");
    }
    for words in [
        &["serving", "socket="][..],
        &["client connected", "client=1 ", "name=\"test "],
        &["engine started", "pid="],
        &["engine ready", "millis="],
    ] {
        assert_eq!(lines_with(&daemon.log(), words).len(), 1, "{words:?} in\n{}", daemon.log());
    }
}
