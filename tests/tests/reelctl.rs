//! `reelctl` against the real daemon: what it prints, what it writes, and its exit codes.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::process::Output;

use reeld_client::OpenOptions;
use reeld_tests::{Daemon, Reference, clip, reelctl};
use serde_json::Value;

fn run(daemon: &Daemon, arguments: &[&str]) -> Output {
    reelctl().arg("--socket").arg(daemon.socket()).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn status_counts_leases_of_clients() {
    let daemon = Daemon::start();
    let video = daemon.client().open(clip("h264_bframes.mp4"), OpenOptions::default()).unwrap();
    let _held = video.frame_at(0).unwrap();
    let status = json(&run(&daemon, &["--json", "status"]));
    assert_eq!((&status["lease_count"], &status["client_count"]), (&Value::from(1), &Value::from(2)));
    assert_eq!(status["totals"]["frames_delivered"], 1);
    let shown = run(&daemon, &["status"]);
    assert!(text(&shown.stdout).contains("in 1 leases"), "{}", text(&shown.stdout));
}

#[test]
fn status_without_a_daemon_says_so_and_starts_none() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    let output = reelctl().arg("--socket").arg(&socket).arg("status").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("none.sock"), "{}", text(&output.stderr));
    assert!(!socket.exists());
}

#[test]
fn probe_shows_streams_and_exact_counts() {
    let daemon = Daemon::start();
    let path = clip("audio_then_video.mp4");
    let probe = json(&run(&daemon, &["probe", path.to_str().unwrap(), "--json"]));
    assert_eq!((&probe["stream_index"], &probe["num_frames"]), (&Value::from(1), &Value::from(50)));
    assert_eq!(probe["streams"][0]["audio"]["sample_rate"], 16000);
    assert_eq!(probe["streams"][1]["video"]["width"], 160);
    let shown = text(&run(&daemon, &["probe", path.to_str().unwrap()]).stdout);
    assert!(shown.contains("aac") && shown.contains("160 x 120"), "{shown}");
}

#[test]
fn frames_by_index_are_written_as_png() {
    let daemon = Daemon::start();
    let path = clip("h264_bframes.mp4");
    let out = daemon.folder().join("new/out");
    let arguments =
        ["frames", path.to_str().unwrap(), "--at", "0,10,-1", "--out", out.to_str().unwrap(), "--json"];
    let written = json(&run(&daemon, &arguments));
    let names: Vec<_> =
        written["files"].as_array().unwrap().iter().map(|file| file["path"].clone()).collect();
    let expected = ["frame00000_pts0.000s", "frame00010_pts0.400s", "frame00049_pts1.960s"]
        .map(|name| Value::from(out.join(format!("h264_bframes_{name}.png")).to_str().unwrap()));
    assert_eq!(names, expected);
    let reference = Reference::new(&path, 320, 180);
    let from_png = Reference::new(&out.join("h264_bframes_frame00010_pts0.400s.png"), 320, 180);
    assert!(from_png.frame(0) == reference.frame(10));
}

#[test]
fn frames_by_time_are_written_as_png() {
    let daemon = Daemon::start();
    let path = clip("h264_bframes.mp4");
    let out = daemon.folder().join("out");
    let arguments =
        ["frames", path.to_str().unwrap(), "--at-seconds", "0.5,1.2", "--out", out.to_str().unwrap()];
    let output = run(&daemon, &[&arguments[..], &["--approximate"]].concat());
    let lines = text(&output.stdout);
    assert_eq!(lines.lines().count(), 2, "{lines} {}", text(&output.stderr));
    assert!(lines.lines().all(|line| std::path::Path::new(line).exists()), "{lines}");
}

#[test]
fn frames_are_written_in_the_size_that_is_asked_for() {
    let daemon = Daemon::start();
    let path = clip("h264_bframes.mp4");
    let out = daemon.folder().join("out");
    let arguments =
        ["frames", path.to_str().unwrap(), "--at", "10", "--out", out.to_str().unwrap(), "--size"];
    let output = run(&daemon, &[&arguments[..], &["100x60"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let from_png = Reference::new(&out.join("h264_bframes_frame00010_pts0.400s.png"), 100, 60);
    assert_eq!(from_png.frame_count(), 1);
    assert_eq!(run(&daemon, &[&arguments[..], &["100"]].concat()).status.code(), Some(2));
    assert_eq!(run(&daemon, &[&arguments[..], &["0x60"]].concat()).status.code(), Some(1));
}

#[test]
fn errors_are_sentences_with_exit_code_1_and_misuse_has_2() {
    let daemon = Daemon::start();
    let path = clip("h264_bframes.mp4");
    let out = daemon.folder().to_str().unwrap();
    let beyond = run(&daemon, &["frames", path.to_str().unwrap(), "--at", "50", "--out", out]);
    assert_eq!(beyond.status.code(), Some(1));
    assert!(text(&beyond.stderr).starts_with("reelctl: "), "{}", text(&beyond.stderr));
    let neither = run(&daemon, &["frames", path.to_str().unwrap(), "--out", out]);
    assert_eq!(neither.status.code(), Some(2));
}
