//! The private daemon: started where none answers, shared by the processes of its user, gone after the last.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use reeld_client::{Client, Error};
use reeld_tests::{Worker, clip, eventually, reelctl};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;

/// A socket in a folder that no other daemon knows of, and the binary of this build.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        Scene { folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("private.sock")
    }

    fn client(&self) -> Result<Client, Error> {
        Client::builder().socket(self.socket()).autostart(true).binary(binary_of_this_build()).connect()
    }

    /// A process that finds or starts a daemon in this folder as in its user's, and prints its process id.
    fn stay(&self) -> Command {
        let mut command = Command::new(binary_of_this_build().with_file_name("reeld-test-worker"));
        command
            .arg("stay")
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .env("REELD_BINARY", binary_of_this_build())
            .env_remove("REELD_SOCKET")
            .env_remove("REELD_NO_AUTOSTART");
        command
    }
}

fn binary_of_this_build() -> PathBuf {
    Path::new(reelctl().get_program()).with_file_name("reeld")
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/exe")).exists()
}

#[test]
fn private_daemon_is_started_shared_and_ends_after_its_last_client() {
    let scene = Scene::new();
    let first = scene.client().unwrap();
    let second = scene.client().unwrap();
    let pid = first.status().unwrap().pid;
    assert_eq!(second.status().unwrap().pid, pid);
    drop(first);
    eventually("the first client is gone", || (second.status().unwrap().client_count == 1).then_some(()));
    drop(second);
    eventually("the private daemon ends", || (!is_alive(pid)).then_some(()));
}

/// What /proc says of a process: its state's fields from the parent on.
fn stat(pid: u32) -> Vec<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').skip(1).map(str::to_owned).collect()
}

fn descriptor(pid: u32, number: u32) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap()
}

#[test]
fn private_daemon_has_nothing_of_the_program_that_started_it() {
    let scene = Scene::new();
    let marker = std::fs::File::create(scene.folder.path().join("marker")).unwrap();
    // Without the mark that closes it at exec.
    let leaky: Vec<_> = (0..20).map(|_| rustix::io::dup(&marker).unwrap()).collect();
    // The starter leads a session with a terminal.
    let terminal = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&terminal).unwrap();
    rustix::pty::unlockpt(&terminal).unwrap();
    let name = rustix::pty::ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let mut command = scene.stay();
    let on_terminal = move || {
        rustix::process::setsid()?;
        // Opening it makes it the terminal of the new session. Left open on purpose.
        let terminal = rustix::fs::open(name.as_str(), OFlags::RDWR, Mode::empty())?;
        std::mem::forget(terminal);
        Ok(())
    };
    // SAFETY: the calls between fork and exec are system calls only.
    unsafe { command.pre_exec(on_terminal) };
    let mut starter = Worker::spawn(&mut command);
    let pid: u32 = starter.line().parse().unwrap();
    assert_ne!(stat(starter.pid())[3], "0", "the starter has a terminal");
    let [parent, _, session, terminal] = &stat(pid)[..4] else { panic!() };
    assert_ne!(*parent, starter.pid().to_string());
    assert_ne!(*session, stat(starter.pid())[2]);
    assert_eq!(terminal, "0");
    assert_eq!(
        [0, 1].map(|number| descriptor(pid, number)),
        [PathBuf::from("/dev/null"), "/dev/null".into()]
    );
    assert!(descriptor(pid, 2).to_string_lossy().ends_with(".log"));
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let names: Vec<_> = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).collect();
    let is_foreign = |name: &PathBuf| name.ends_with("marker") || name.starts_with("/dev/pts");
    assert!(!names.iter().any(is_foreign), "{names:?}");
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    starter.finish();
    drop(leaky);
}

#[test]
fn private_daemon_survives_its_starter() {
    let scene = Scene::new();
    let mut starter = Worker::spawn(&mut scene.stay());
    let pid = starter.line();
    let mut other = Worker::spawn(&mut scene.stay());
    assert_eq!(other.line(), pid);
    starter.kill();
    other.tell("again");
    assert_eq!(other.line(), pid);
    other.finish();
    eventually("the private daemon ends", || (!is_alive(pid.parse().unwrap())).then_some(()));
}

#[test]
fn thirty_two_processes_that_start_at_once_get_one_daemon() {
    let scene = Scene::new();
    let mut workers: Vec<_> = (0..32).map(|_| Worker::spawn(&mut scene.stay())).collect();
    let pids: BTreeSet<String> = workers.iter_mut().map(Worker::line).collect();
    assert_eq!(pids.len(), 1, "{pids:?}");
    workers.into_iter().for_each(Worker::finish);
}

#[test]
fn private_daemons_of_two_versions_live_side_by_side() {
    let scene = Scene::new();
    let mut ours = Worker::spawn(&mut scene.stay());
    let pid: u32 = ours.line().parse().unwrap();
    let folder = scene.folder.path().join("reeld");
    let is_socket = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "sock");
    let socket = || std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).find(is_socket);
    let name = socket().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("reeld-1-") && name.contains(env!("CARGO_PKG_VERSION")), "{name}");
    // What a client of another build would start: its own binary, at the socket that is named after it.
    let binary = scene.folder.path().join("reeld-9.9.9");
    std::fs::copy(binary_of_this_build(), &binary).unwrap();
    let theirs = folder.join("reeld-1-9.9.9.sock");
    let builder = Client::builder().socket(&theirs).autostart(true).binary(&binary);
    let other = builder.connect().unwrap();
    let other_pid = other.status().unwrap().pid;
    assert_ne!(other_pid, pid);
    let mut another = Worker::spawn(&mut scene.stay());
    assert_eq!(another.line(), pid.to_string());
    ours.finish();
    another.finish();
    eventually("the one ends", || (!is_alive(pid)).then_some(()));
    assert_eq!(other.status().unwrap().pid, other_pid);
}

#[test]
fn clients_that_start_at_once_get_one_daemon() {
    let scene = Scene::new();
    let clients: Vec<Client> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| scene.client().unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let pids: Vec<u32> = clients.iter().map(|client| client.status().unwrap().pid).collect();
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
}

#[test]
fn process_wide_client_finds_the_runtime_folder() {
    let scene = Scene::new();
    let worker = Path::new(reelctl().get_program()).with_file_name("reeld-test-worker");
    let start = || {
        let mut command = Command::new(&worker);
        command
            .arg("shared")
            .arg(clip("h264_bframes.mp4"))
            .env_remove("REELD_SOCKET")
            .env_remove("REELD_NO_AUTOSTART");
        command.env("XDG_RUNTIME_DIR", scene.folder.path()).env("XDG_CACHE_HOME", scene.folder.path());
        Worker::spawn(&mut command)
    };
    let (mut one, mut other) = (start(), start());
    assert_eq!(one.line(), other.line());
    let files = std::fs::read_dir(scene.folder.path().join("reeld")).unwrap();
    assert!(files.count() >= 2);
    one.finish();
    other.finish();
}

#[test]
fn reelctl_status_starts_no_private_daemon() {
    let scene = Scene::new();
    let mut command = reelctl();
    let status = command.arg("status").env("REELD_SOCKET", scene.socket()).output().unwrap();
    assert_eq!(status.status.code(), Some(1));
    assert_eq!(std::fs::read_dir(scene.folder.path()).unwrap().count(), 0);
}
