//! How an engine comes to life and ends: [`Starter`] and [`Process`], and the real ones, which run this binary again.
//!
//! When that is done, and what the engine is then told, is the matter of `engines`. The other implementation is in
//! `simulation`.

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Starts engines.
pub trait Starter: Debug {
    /// Starts one that keeps so many MiB of pictures. The socket is the broker's end, which does not block.
    fn start(&mut self, cache_mib: u64) -> io::Result<(UnixStream, Box<dyn Process>)>;
}

/// An engine's process.
pub trait Process: Debug {
    /// Its number.
    fn id(&self) -> u32;

    /// A descriptor that becomes readable when the process has ended.
    fn end(&self) -> io::Result<OwnedFd>;

    /// Ends it; nothing where it has ended.
    fn kill(&mut self);

    /// True once it has ended.
    fn has_ended(&mut self) -> bool;

    /// Waits for its end and takes its number back.
    fn wait(&mut self) -> io::Result<ExitStatus>;
}

/// Runs this binary as an engine.
#[derive(Debug)]
pub struct ThisBinary;

impl Starter for ThisBinary {
    fn start(&mut self, cache_mib: u64) -> io::Result<(UnixStream, Box<dyn Process>)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = Command::new("/proc/self/exe")
            .arg("engine")
            .arg("--cache-mib")
            .arg(cache_mib.to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()?;
        Ok((ours, Box::new(child)))
    }
}

impl Process for Child {
    fn id(&self) -> u32 {
        Child::id(self)
    }

    fn end(&self) -> io::Result<OwnedFd> {
        let pid = Pid::from_raw(self.id() as i32).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(pidfd_open(pid, PidfdFlags::empty())?)
    }

    fn kill(&mut self) {
        let _ = Child::kill(self);
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.try_wait(), Ok(None))
    }

    fn wait(&mut self) -> io::Result<ExitStatus> {
        Child::wait(self)
    }
}
