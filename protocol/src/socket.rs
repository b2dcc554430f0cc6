//! Listening, connecting, and who the peer is.
//!
//! Where sockets lie, and who may connect, is configuration and not decided here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use interprocess::local_socket::traits::Stream as _;
use interprocess::local_socket::{GenericFilePath, Listener, ListenerOptions, Stream, ToFsName};
use interprocess::os::unix::local_socket::ListenerOptionsExt;

/// Listens at a path. The socket file has `mode` from its first moment on. An existing file is an error:
/// whether it is stale is for the caller to find out.
pub fn listen(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let listener = ListenerOptions::new()
        .name(path.to_fs_name::<GenericFilePath>()?)
        .mode(mode as _)
        .reclaim_name(false)
        .create_sync()?;
    let Listener::UdSocket(listener) = listener;
    Ok(listener.into())
}

/// Connects to a path.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let Stream::UdSocket(stream) = Stream::connect(path.to_fs_name::<GenericFilePath>()?)?;
    Ok(OwnedFd::from(stream).into())
}

/// Who connected, as the kernel recorded it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Process id; 0 where the peer lives in a process namespace that we cannot see.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The peer of a connected socket. A pid of 0 is not an error here: the uid is valid all the same.
pub fn peer_identity(socket: impl AsFd) -> io::Result<PeerIdentity> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // The safe wrappers turn a pid of 0 into an error, so the call is made by hand.
    // SAFETY: the kernel writes at most `length` bytes to `credentials`, which has that size.
    let status = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(PeerIdentity {
        pid: u32::try_from(credentials.pid).unwrap_or(0),
        uid: credentials.uid,
        gid: credentials.gid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_of_a_socketpair_is_this_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let identity = peer_identity(&ours).unwrap();
        assert_eq!(identity.pid, std::process::id());
        assert_eq!(identity.uid, rustix::process::getuid().as_raw());
    }
}
