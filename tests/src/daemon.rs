//! [`Daemon`]: the real binary, serving one test.
//!
//! It is killed with the test; nothing else is.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use reeld_client::Client;
use reeld_client::status::Status;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::waiting::eventually;

/// A daemon that serves on a socket in a folder of its own.
#[derive(Debug)]
pub struct Daemon {
    folder: TempDir,
    wrapper: Vec<String>,
    options: Vec<String>,
    log_filter: Option<String>,
    child: Child,
}

impl Daemon {
    /// With the daemon's defaults.
    pub fn start() -> Daemon {
        Daemon::with(&[])
    }

    /// With options such as `["--engine-count-max", "2"]`.
    pub fn with(options: &[&str]) -> Daemon {
        Daemon::start_with(&[], options, None, None)
    }

    /// Started by a program that becomes it, such as `["prlimit", "--nofile=64"]`.
    pub fn through(wrapper: &[&str], options: &[&str]) -> Daemon {
        Daemon::start_with(wrapper, options, None, None)
    }

    /// With options and a log filter; without one, that of this test's environment applies.
    pub fn logging(options: &[&str], log_filter: Option<&str>) -> Daemon {
        Daemon::start_with(&[], options, log_filter, None)
    }

    /// With options, and with standard error going elsewhere than to [`Daemon::log`].
    pub fn writing_to(options: &[&str], log_filter: Option<&str>, stderr: Stdio) -> Daemon {
        Daemon::start_with(&[], options, log_filter, Some(stderr))
    }

    fn start_with(
        wrapper: &[&str],
        options: &[&str],
        log_filter: Option<&str>,
        stderr: Option<Stdio>,
    ) -> Daemon {
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let owned = |words: &[&str]| -> Vec<String> { words.iter().map(ToString::to_string).collect() };
        let (wrapper, options) = (owned(wrapper), owned(options));
        let log_filter = log_filter.map(str::to_owned);
        let stderr = stderr.unwrap_or_else(|| Stdio::from(log_file(folder.path())));
        let child = spawn(folder.path(), &wrapper, &options, log_filter.as_deref(), stderr);
        Daemon { folder, wrapper, options, log_filter, child }
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

    /// A new connection that looks so long for a daemon that went away.
    pub fn client_for(&self, reconnect_for: Duration) -> Client {
        let builder = Client::builder().socket(self.socket()).name("test").reconnect_for(reconnect_for);
        builder.connect().expect("the daemon answers")
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

    /// Lets it hang until [`Daemon::thaw`].
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends it as a service manager would, and waits until it is gone.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.child.wait().expect("the daemon can be waited for");
    }

    /// Starts another one at the same socket.
    pub fn start_again(&mut self) {
        let stderr = Stdio::from(log_file(self.folder.path()));
        self.child =
            spawn(self.folder.path(), &self.wrapper, &self.options, self.log_filter.as_deref(), stderr);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process id");
        kill_process(pid, signal).expect("the daemon can be signalled");
    }

    /// All that it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until it has logged a line with all of these, and returns that.
    pub fn await_log(&self, words: &[&str]) -> String {
        eventually(&format!("a line of the log with {words:?}"), || {
            let log = self.log();
            let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
            line.map(str::to_owned)
        })
    }

    /// Waits until it has ended by itself.
    pub fn wait_exit(&mut self) -> ExitStatus {
        eventually("the daemon ends", || self.child.try_wait().expect("the daemon can be asked for"))
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

fn log_file(folder: &Path) -> File {
    File::options().create(true).append(true).open(folder.join("log")).expect("a log file")
}

fn spawn(
    folder: &Path,
    wrapper: &[String],
    options: &[String],
    log_filter: Option<&str>,
    stderr: Stdio,
) -> Child {
    let mut command = match wrapper.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(binary("reeld"));
            command
        }
        None => Command::new(binary("reeld")),
    };
    let mut child = command
        .envs(log_filter.map(|filter| ("REELD_LOG", filter)))
        .arg("serve")
        .arg("--socket")
        .arg(folder.join("reeld.sock"))
        .args(["--ready-fd", "1"])
        .args(options)
        // How this machine's own daemon is configured is no matter of a test.
        .env("REELD_CONFIG", "/dev/null")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
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
