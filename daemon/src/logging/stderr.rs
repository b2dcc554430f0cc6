//! Standard error as a place for log lines: [`write`] waits as long as it takes and belongs into the log's
//! thread; [`ImpatientStderr`] drops what would have to wait.
//!
//! Lines are not looked at here.

use std::io::{self, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::lines::one_line;

/// A pipe that says it can be written to takes so much without waiting.
const PIPE_BYTES: usize = 4096;

/// Writes a line, however long it takes.
pub fn write(line: &[u8]) -> io::Result<()> {
    let mut rest = line;
    while !rest.is_empty() {
        match rustix::io::write(io::stderr(), rest) {
            Ok(count) => rest = &rest[count..],
            // Somebody who shares it made it non-blocking.
            Err(rustix::io::Errno::AGAIN) => wait(None)?,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn wait(timeout: Option<&Timespec>) -> io::Result<()> {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    match poll(&mut fds, timeout) {
        Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Drops lines for which there is no room now.
#[derive(Clone, Copy, Debug)]
pub struct ImpatientStderr;

impl Write for ImpatientStderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let mut line = one_line(&String::from_utf8_lossy(text), false);
        line.push('\n');
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        if wait(Some(&at_once)).is_ok() {
            let line = line.as_bytes();
            let _ = rustix::io::write(io::stderr(), &line[..line.len().min(PIPE_BYTES)]);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
