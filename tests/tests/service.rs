//! The daemon under a service manager: the socket that it is passed, what it reports, and what its engines know
//! of it. A test plays the manager; the units themselves are tested in `tests/systemd`.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fs;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reeld_client::{Client, OpenOptions};
use reeld_tests::{clip, reelctl};

/// What a service manager runs for its service: as in a unit, the process finds its own id in the environment.
const AS_SERVICE: &str = "LISTEN_PID=$$ WATCHDOG_PID=$$ exec \"$@\" 3<&0 4<&0 </dev/null";

/// A service manager with one service, which it kills in the end.
struct Manager {
    folder: tempfile::TempDir,
    notified: UnixDatagram,
    log: fs::File,
    child: Child,
}

impl Manager {
    /// Starts the daemon with a socket that listens already.
    fn start() -> Manager {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("passed.sock")).unwrap();
        Manager::start_with(folder, listener.into(), 1)
    }

    fn start_with(folder: tempfile::TempDir, passed: OwnedFd, count: u32) -> Manager {
        let notified = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        // Only a test that fails waits that long.
        notified.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let log = tempfile::tempfile().unwrap();
        let child = Command::new("/bin/sh")
            .args(["-c", AS_SERVICE, "sh"])
            .arg(Path::new(reelctl().get_program()).with_file_name("reeld"))
            .arg("serve")
            .arg("--socket")
            .arg(folder.path().join("own.sock"))
            .env("NOTIFY_SOCKET", folder.path().join("notify"))
            .env("WATCHDOG_USEC", "2000000")
            .env("LISTEN_FDS", count.to_string())
            .env("LISTEN_FDNAMES", vec!["reeld.socket"; count as usize].join(":"))
            .stdin(Stdio::from(passed))
            .stderr(log.try_clone().unwrap())
            .spawn()
            .unwrap();
        Manager { folder, notified, log, child }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Reads what the daemon says until that comes.
    fn await_word(&self, wanted: &str) {
        let mut bytes = [0; 4096];
        loop {
            let count = self.notified.recv(&mut bytes).unwrap_or_else(|_| panic!("{wanted} was not said"));
            let said = std::str::from_utf8(&bytes[..count]).unwrap();
            if said.lines().any(|line| line == wanted) {
                return;
            }
        }
    }

    fn client(&self) -> Client {
        Client::builder().socket(self.path("passed.sock")).connect().unwrap()
    }

    /// Tells the daemon to stop and waits for its end.
    fn stop(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }

    fn log(&mut self) -> String {
        let mut log = String::new();
        self.log.rewind().unwrap();
        self.log.read_to_string(&mut log).unwrap();
        log
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}

#[test]
fn passed_socket_is_served_and_stays_the_managers() {
    let mut manager = Manager::start();
    let _client = manager.client();
    assert!(!manager.path("own.sock").exists() && !manager.path("passed.sock.lock").exists());
    assert!(manager.stop().success());
    assert!(manager.path("passed.sock").exists());
}

#[test]
fn client_that_waits_in_the_passed_socket_is_served_by_the_next_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("passed.sock")).unwrap();
    let path = folder.path().join("passed.sock");
    let waiting = std::thread::spawn(move || Client::builder().socket(path).connect().unwrap().status());
    // Readable once somebody waits.
    let mut fds = [rustix::event::PollFd::new(&listener, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, None).unwrap();
    let manager = Manager::start_with(folder, listener.into(), 1);
    assert_eq!(waiting.join().unwrap().unwrap().pid, manager.child.id());
}

#[test]
fn daemon_reports_that_it_is_ready_what_it_does_and_that_it_stops() {
    let mut manager = Manager::start();
    manager.await_word("READY=1");
    manager.await_word("STATUS=0 clients, 0 engines (0 busy), 0 MiB leased");
    let client = manager.client();
    let video = client.open(clip("h264_bframes.mp4"), OpenOptions::default()).unwrap();
    let frames = video.frame_at(7).unwrap();
    manager.await_word("STATUS=1 client, 1 engine (0 busy), 1 MiB leased");
    drop((frames, video, client));
    manager.await_word("STATUS=0 clients, 1 engine (0 busy), 0 MiB leased");
    assert!(manager.stop().success());
    manager.await_word("STOPPING=1");
}

#[test]
fn watchdog_is_fed_again_and_again() {
    let manager = Manager::start();
    for _ in 0..3 {
        manager.await_word("WATCHDOG=1");
    }
}

#[test]
fn engine_knows_nothing_of_the_service_manager_and_is_killed_before_the_broker() {
    let manager = Manager::start();
    let client = manager.client();
    let _video = client.open(clip("h264_bframes.mp4"), OpenOptions::default()).unwrap();
    let engine = client.status().unwrap().engines[0].pid;
    let variables = fs::read(format!("/proc/{engine}/environ")).unwrap();
    let variables = String::from_utf8_lossy(&variables);
    for word in ["NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_"] {
        assert!(!variables.contains(word), "{variables}");
    }
    let score = |pid: u32| -> i32 {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
    };
    assert_eq!(score(engine), (score(manager.child.id()) + 500).min(1000));
}

#[test]
fn two_passed_sockets_are_refused_by_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("passed.sock")).unwrap();
    let mut manager = Manager::start_with(folder, listener.into(), 2);
    assert!(!manager.child.wait().unwrap().success());
    assert!(manager.log().contains("2 sockets were passed"), "{}", manager.log());
}

#[test]
fn passed_descriptor_that_does_not_listen_is_refused_by_a_sentence() {
    let (passed, _other) = UnixStream::pair().unwrap();
    let mut manager = Manager::start_with(tempfile::tempdir().unwrap(), passed.into(), 1);
    assert!(!manager.child.wait().unwrap().success());
    assert!(manager.log().contains("is not a Unix stream socket that listens"), "{}", manager.log());
}

#[test]
fn second_daemon_leaves_the_managers_socket_alone() {
    let manager = Manager::start();
    manager.await_word("READY=1");
    let output = Command::new(Path::new(reelctl().get_program()).with_file_name("reeld"))
        .args(["serve", "--socket"])
        .arg(manager.path("passed.sock"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("somebody else listens"), "{said}");
    assert_eq!(manager.client().status().unwrap().pid, manager.child.id());
}
