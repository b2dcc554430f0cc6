//! [`Daemon`]: the real binary, serving one test.
//!
//! It is killed with the test; nothing else is.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use reeld_client::Client;
use reeld_client::status::Status;
use tempfile::TempDir;

use crate::waiting::eventually;

/// A daemon that serves on a socket in a folder of its own.
#[derive(Debug)]
pub struct Daemon {
    folder: TempDir,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    child: Child,
}

impl Daemon {
    /// With the daemon's defaults.
    pub fn start() -> Daemon {
        Daemon::with(&[])
    }

    /// With options such as `["--engine-count-max", "2"]`.
    pub fn with(options: &[&str]) -> Daemon {
        Daemon::with_environment(options, &[])
    }

    /// With options and environment variables, such as the switches for tests.
    pub fn with_environment(options: &[&str], environment: &[(&str, &str)]) -> Daemon {
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let options: Vec<_> = options.iter().map(ToString::to_string).collect();
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let child = spawn(folder.path(), &options, &environment);
        Daemon { folder, options, environment, child }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("reeld.sock")
    }

    /// A folder that goes with the test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A new connection.
    pub fn client(&self) -> Client {
        Client::builder().socket(self.socket()).name("test").connect().expect("the daemon answers")
    }

    /// What it says of itself, over a connection that is closed after it.
    pub fn status(&self) -> Status {
        self.client().status().expect("a status")
    }

    /// Waits until it holds nothing for any client but the one that asks.
    pub fn await_rest(&self) -> Status {
        let client = self.client();
        eventually("no lease, no request, one client", || {
            let status = client.status().expect("a status");
            let is_at_rest = status.client_count == 1
                && status.lease_count == 0
                && status.filling_count == 0
                && status.request_count == 0;
            is_at_rest.then_some(status)
        })
    }

    /// Ends it as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("the daemon can be killed");
        self.child.wait().expect("the daemon can be waited for");
    }

    /// Starts another one at the same socket.
    pub fn start_again(&mut self) {
        self.child = spawn(self.folder.path(), &self.options, &self.environment);
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the daemon can be asked for").is_none()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("the daemon's log:\n{log}");
        }
    }
}

fn spawn(folder: &Path, options: &[String], environment: &[(String, String)]) -> Child {
    let log = File::options().create(true).append(true).open(folder.join("log")).expect("a log file");
    let mut child = Command::new(binary("reeld"))
        .arg("serve")
        .arg("--socket")
        .arg(folder.join("reeld.sock"))
        .args(["--ready-fd", "1"])
        .args(options)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .expect("the daemon starts");
    let mut ready = String::new();
    let stdout = child.stdout.take().expect("a pipe to the daemon");
    stdout.take(6).read_to_string(&mut ready).expect("the daemon says something");
    if ready != "ready\n" {
        let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
        panic!("the daemon did not get ready:\n{log}");
    }
    child
}

/// A command line of the `reelctl` of this build.
pub fn reelctl() -> Command {
    let mut command = Command::new(binary("reelctl"));
    command.env_remove("REELD_SOCKET");
    command
}

/// A binary of this build: beside the folder that the running test lies in.
pub(crate) fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let folder = test.ancestors().nth(2).expect("target/release/deps/test");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "there is no {}: run `cargo build --release --workspace --bins` first",
        path.display()
    );
    path
}
