//! The private daemon: started where none answers, shared by the processes of its user, gone after the last.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use reeld_client::{Client, Error};
use reeld_tests::{Worker, clip, eventually, reelctl};

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

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("private.sock")
    }

    fn client(&self) -> Result<Client, Error> {
        let binary = Path::new(reelctl().get_program()).with_file_name("reeld");
        Client::builder().socket(self.socket()).autostart(true).binary(binary).connect()
    }
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

#[test]
fn private_daemon_is_nobodys_child_and_leads_no_terminal() {
    let scene = Scene::new();
    let client = scene.client().unwrap();
    let pid = client.status().unwrap().pid;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let (parent, terminal) = (fields[1], fields[4]);
    assert_ne!(parent, std::process::id().to_string());
    assert_eq!(terminal, "0");
}

#[test]
fn descriptors_of_the_program_do_not_reach_the_private_daemon() {
    let scene = Scene::new();
    let marker = std::fs::File::create(scene.folder.path().join("marker")).unwrap();
    let leaky = rustix::io::dup(&marker).unwrap();
    let client = scene.client().unwrap();
    let pid = client.status().unwrap().pid;
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let names: Vec<_> = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).collect();
    assert!(!names.iter().any(|name| name.ends_with("marker")), "{names:?}");
    drop(leaky);
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
