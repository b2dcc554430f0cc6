//! What the daemon does when it is signalled: it drains and ends, reads its configuration again, writes its
//! state to the log.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use reeld_client::{Client, Error, OpenOptions, Pending, RequestOptions, Video, Wanted};
use reeld_protocol::message::{GetFrames, Message, Request, kind};
use reeld_protocol::{Header, Hello, WireError};
use reeld_tests::{Daemon, Reference, clip, eventually, reelctl};
use rustix::process::Signal;

const CLIP: &str = "h264_bframes.mp4";

fn open(client: &Client, name: &str) -> Video {
    client.open(clip(name), OpenOptions::default()).unwrap()
}

/// A request that takes seconds, which the daemon has begun with.
fn begun(client: &Client) -> Pending {
    let pending = open(client, "slow.mp4").submit(Wanted::Indices(vec![-1]), RequestOptions::default());
    eventually("the request is under way", || (client.status().unwrap().request_count == 1).then_some(()));
    pending.unwrap()
}

fn await_no_socket(daemon: &Daemon) {
    eventually("the socket is gone", || (!daemon.socket().exists()).then_some(()));
}

fn assert_drains_and_exits_0(signal: Signal) {
    let mut daemon = Daemon::with(&["--drain-seconds", "600"]);
    let client = daemon.client();
    let held = open(&client, CLIP).frame_at(12).unwrap();
    let pending = begun(&client);
    daemon.signal(signal);
    await_no_socket(&daemon);
    let frames = pending.wait().unwrap();
    assert_eq!(frames.part(0).unwrap().shape(), [1, 1080, 1920, 3]);
    assert_eq!(daemon.wait_exit().code(), Some(0));
    assert!(!daemon.socket().exists());
    // A lease does not hold the daemon up, and outlives it.
    assert!(held[..] == *Reference::new(&clip(CLIP), 320, 180).frame(12));
    daemon.await_log(&["stopped"]);
}

#[test]
fn sigterm_finishes_what_is_under_way_and_exits_0() {
    assert_drains_and_exits_0(Signal::TERM);
}

#[test]
fn sigint_does_the_same() {
    assert_drains_and_exits_0(Signal::INT);
}

#[test]
fn idle_daemon_ends_at_once_with_its_engines_and_leaves_the_place_to_another() {
    let mut daemon = Daemon::start();
    let client = daemon.client();
    drop(open(&client, CLIP).frame_at(0).unwrap());
    let engines = client.status().unwrap().engines;
    assert!(!engines.is_empty());
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit().code(), Some(0));
    for engine in engines {
        // Collected, not merely killed: there is no zombie either.
        assert!(!std::path::Path::new(&format!("/proc/{}", engine.pid)).exists());
    }
    daemon.start_again();
    assert_eq!(daemon.status().client_count, 1);
}

/// A connection by hand: the client library would look for another daemon where this one sends it away.
struct Wire(UnixStream);

impl Wire {
    fn welcomed(daemon: &Daemon) -> Wire {
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (major, name) = (reeld_protocol::VERSION_MAJOR, "by hand".to_owned());
        let mut wire = Wire(stream);
        wire.send(kind::HELLO, 0, &Hello { major, minor_min: 0, minor_max: 0, features: 0, name }.to_bytes());
        assert_eq!(wire.receive().0.kind, kind::WELCOME);
        wire
    }

    fn send(&mut self, kind: u16, request_id: u64, body: &[u8]) {
        let header = Header { body_bytes: body.len() as u32, kind, fd_count: 0, flags: 0, request_id };
        self.0.write_all(&[&header.to_bytes(), body].concat()).unwrap();
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        let mut header = [0; 16];
        self.0.read_exact(&mut header).unwrap();
        let header = Header::from_bytes(&header).unwrap();
        let mut body = vec![0; header.body_bytes as usize];
        self.0.read_exact(&mut body).unwrap();
        (header, body)
    }
}

#[test]
fn new_request_while_draining_is_shutting_down_and_the_connection_ends_behind_the_last_answer() {
    let mut daemon = Daemon::with(&["--drain-seconds", "600"]);
    let client = daemon.client();
    let mut wire = Wire::welcomed(&daemon);
    let pending = begun(&client);
    daemon.signal(Signal::TERM);
    eventually("the daemon drains", || client.status().unwrap().is_draining.then_some(()));
    assert!(UnixStream::connect(daemon.socket()).is_err());
    let request = Request::GetFrames(GetFrames { parts: vec![], priority: 0, timeout_millis: None });
    wire.send(kind::GET_FRAMES, 7, &Message::encode(&request).unwrap());
    let (header, body) = wire.receive();
    assert_eq!((header.kind, header.request_id), (kind::ERROR, 7));
    let error: WireError = reeld_protocol::codec::decode(&body).unwrap();
    assert_eq!((error.code, error.is_retryable), (reeld_protocol::ErrorCode::ShuttingDown, true));
    assert_eq!(client.status().unwrap().errors[0].code, "shutting_down");
    assert!(pending.wait().is_ok());
    assert_eq!(wire.0.read(&mut [0]).unwrap(), 0);
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn signals_to_the_whole_group_are_the_brokers_to_obey() {
    let mut daemon = Daemon::with(&["--drain-seconds", "600"]);
    let client = daemon.client();
    let pending = begun(&client);
    let engines = client.status().unwrap().engines;
    for signal in [Signal::HUP, Signal::USR1, Signal::INT, Signal::TERM] {
        for engine in &engines {
            let pid = rustix::process::Pid::from_raw(engine.pid as i32).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
        }
    }
    daemon.signal(Signal::TERM);
    assert!(pending.wait().is_ok());
    assert_eq!(daemon.wait_exit().code(), Some(0));
    assert!(!daemon.log().contains("engine died at work"), "{}", daemon.log());
}

#[test]
fn what_is_not_finished_in_time_is_given_up() {
    let mut daemon = Daemon::with(&["--drain-seconds", "0"]);
    let client = daemon.client();
    let pending = begun(&client);
    daemon.signal(Signal::TERM);
    let error = pending.wait().unwrap_err();
    assert!(matches!(error, Error::DaemonUnavailable { .. }), "{error:?}");
    assert_eq!(daemon.wait_exit().code(), Some(0));
    daemon.await_log(&["time is up", "requests=1"]);
}

#[test]
fn second_signal_ends_the_daemon_at_once_and_a_successor_starts() {
    let mut daemon = Daemon::with(&["--drain-seconds", "600"]);
    let client = daemon.client();
    let pending = begun(&client);
    daemon.signal(Signal::TERM);
    await_no_socket(&daemon);
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait_exit().code(), Some(1));
    assert!(pending.wait().is_err());
    daemon.start_again();
    assert_eq!(daemon.status().client_count, 1);
}

#[test]
fn second_daemon_does_not_take_the_socket_of_one_that_serves_or_drains() {
    let mut daemon = Daemon::with(&["--drain-seconds", "600"]);
    let client = daemon.client();
    let start_second = || {
        let binary = std::path::Path::new(reelctl().get_program()).with_file_name("reeld");
        Command::new(binary).arg("serve").arg("--socket").arg(daemon.socket()).output().unwrap()
    };
    let second = start_second();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another daemon serves"));
    assert_eq!(daemon.status().pid, daemon.pid());
    let pending = begun(&client);
    daemon.signal(Signal::TERM);
    await_no_socket(&daemon);
    let second = start_second();
    assert_eq!(second.status.code(), Some(1));
    assert!(!daemon.socket().exists());
    assert!(pending.wait().is_ok());
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn sighup_reads_the_configuration_again_and_nothing_is_interrupted() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let pending = begun(&client);
    daemon.signal(Signal::HUP);
    let line = daemon.await_log(&["configuration reloaded"]);
    assert!(line.contains("changed=\"\" need_restart=\"\""), "{line}");
    assert!(pending.wait().is_ok());
    assert_eq!(daemon.status().pid, daemon.pid());
}

#[test]
fn sighup_applies_what_can_change_and_a_faulty_file_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("reeld.toml");
    std::fs::write(&config, "log = \"info\"\nclient_memory_mib = 64\nsocket_mode = \"0600\"\n").unwrap();
    let daemon = Daemon::with(&["--config", config.to_str().unwrap()]);
    let old = daemon.client();
    assert_eq!(old.statistics().quota_bytes, 64 << 20);

    std::fs::write(&config, "log = \"debug\"\nclient_memory_mib = 128\nsocket_mode = \"0666\"\n").unwrap();
    daemon.signal(Signal::HUP);
    let line = daemon.await_log(&["configuration reloaded"]);
    assert!(line.contains("changed=\"log,client_memory_mib\""), "{line}");
    assert!(line.contains("need_restart=\"socket_mode\""), "{line}");
    assert_eq!(
        (old.statistics().quota_bytes, daemon.client().statistics().quota_bytes),
        (64 << 20, 128 << 20)
    );
    old.status().unwrap();
    daemon.await_log(&["DEBUG", "client=1 ", "request finished"]);

    std::fs::write(&config, "log = \"loud\"\nclient_memory_mib = 256\nclient_memory_mob = 1\n").unwrap();
    daemon.signal(Signal::HUP);
    for fault in ["loud", "client_memory_mob"] {
        daemon.await_log(&["ERROR", "configuration not reloaded", fault]);
    }
    assert_eq!(daemon.client().statistics().quota_bytes, 128 << 20);
}

#[test]
fn sigusr1_writes_clients_leases_requests_queue_and_engines_to_the_log_whatever_its_filter() {
    let daemon = Daemon::logging(&["--engine-count-max", "1"], Some("error"));
    let client = daemon.client();
    let _held = open(&client, CLIP).frame_at(12).unwrap();
    let slow = begun(&client);
    let waits = begun_on_a_copy(&daemon, &client);
    daemon.signal(Signal::USR1);
    daemon.await_log(&["state: end", "left_out=0"]);
    let log = daemon.log();
    let line = |words: &[&str]| {
        let found = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
        assert!(found.is_some(), "no line with {words:?} in\n{log}");
    };
    let pid = format!("pid={}", std::process::id());
    line(&["state: whole", "clients=1", "requests=2", "files=3", "queued_runs="]);
    line(&["state: totals", "frames_delivered=1"]);
    line(&["state: client", &pid, "name=\"test ", "leases=1", "requests=2", "sources="]);
    line(&["state: request", "slow.mp4", "missing=1"]);
    line(&["state: waits for an engine", "task=\"decode\""]);
    line(&["state: engine", "pid=", "millis="]);
    drop((slow, waits));
}

/// A second request that takes seconds: one of the two waits while the only engine is at the other.
fn begun_on_a_copy(daemon: &Daemon, client: &Client) -> Pending {
    let path = daemon.folder().join("copy.mp4");
    std::fs::copy(clip("slow.mp4"), &path).unwrap();
    let video = client.open(&path, OpenOptions::default()).unwrap();
    let pending = video.submit(Wanted::Indices(vec![-1]), RequestOptions::default()).unwrap();
    eventually("both are under way", || (client.status().unwrap().request_count == 2).then_some(()));
    pending
}
