//! [`Worker`]: another process that uses the daemon, and [`Random`], numbers that are the same in each run.
//!
//! What a worker does is in `src/bin/reeld-test-worker.rs`.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::daemon::binary;

/// A process that runs one of the tasks of `reeld-test-worker`.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts a task with its arguments.
    pub fn start(task: &str, socket: &Path, arguments: &[&str]) -> Worker {
        Worker::spawn(Command::new(binary("reeld-test-worker")).arg(task).arg(socket).args(arguments))
    }

    /// Starts a command line of a worker that was prepared otherwise.
    pub fn spawn(command: &mut Command) -> Worker {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a worker");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe to the worker"));
        Worker { child, stdout }
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the worker prints a line");
        line.trim_end().to_owned()
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("a worker that listens");
        writeln!(stdin, "{line}").expect("the worker listens");
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a crash would. Its children live on, and its standard input stays open.
    pub fn crash(&mut self) {
        self.child.kill().expect("a worker can be killed");
    }

    /// Closes its standard input: workers that hold something end then.
    pub fn let_go(&mut self) {
        self.child.stdin = None;
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("a worker can be killed");
        self.child.wait().expect("a worker can be waited for");
    }

    /// Waits for its end, which must be a success.
    #[track_caller]
    pub fn finish(mut self) {
        self.let_go();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("the worker's output");
        let status = self.child.wait().expect("a worker can be waited for");
        assert!(status.success(), "a worker ended with {status}: {rest}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Numbers that look random.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below a limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
