//! [`Socket`]: a connected socket of this process, which a forked child closes at once.
//!
//! What is sent and read is not known here.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crate::fork::fd_table::Place;
use crate::link::SLICE;

/// A socket whose blocking reads last at most one [`SLICE`].
#[derive(Debug)]
pub(crate) struct Socket {
    // Dropped in this order; see `Place`.
    _place: Place,
    stream: UnixStream,
}

impl Socket {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Socket> {
        stream.set_read_timeout(Some(SLICE))?;
        let place = Place::take(stream.as_fd())
            .ok_or_else(|| io::Error::other("this process has too many connections to daemons"))?;
        Ok(Socket { _place: place, stream })
    }

    /// Ends the connection for everybody who has the socket.
    pub(crate) fn shut_down(&self) {
        // Fails where the other side was faster.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A child that was forked before the socket got its place may hold a copy: closing is not enough.
        self.shut_down();
    }
}
