//! Listening, connecting, and who the peer is.
//!
//! Where sockets lie, and who may connect, is configuration and not decided here.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use interprocess::local_socket::{GenericFilePath, Listener, ListenerOptions, ToFsName};
use interprocess::os::unix::local_socket::ListenerOptionsExt;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Listens at a path. The socket file never has more permissions than `mode`. An existing file is an error:
/// whether it is stale is for the caller to find out.
pub fn listen(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let listener = ListenerOptions::new()
        .name(path.to_fs_name::<GenericFilePath>()?)
        .mode(mode as _)
        .reclaim_name(false)
        .create_sync()?;
    let Listener::UdSocket(listener) = listener;
    // The kernel takes away what the umask forbids, such as the group's right to write, which is to connect.
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(listener.into())
}

/// Connects to a path. Where the listener's queue is full, as that of a daemon is that hangs, it waits at most
/// that long, and then fails as a call does that would block.
pub fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The kernel takes the limit for sending as that for connecting, and 0 as none.
    let limit = patience.max(Duration::from_millis(1));
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    let address = SocketAddrUnix::new(path)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            // Nothing has happened: a local connection is made whole or not at all.
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    }
    sockopt::set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket.into())
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

/// A pidfd of the process that connected, as the kernel kept it since then: it cannot mean another process.
/// An error where the kernel cannot do that (before 6.5), or where that process is gone (`ESRCH`).
pub fn peer_pidfd(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut pidfd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `pidfd`, which has that size.
    let status = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut pidfd).cast(),
            &raw mut length,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else has its number.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_has_its_mode_whatever_the_umask() {
        let path = std::env::temp_dir().join(format!("reeld-mode-{}.sock", std::process::id()));
        let listener = listen(&path, 0o666).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        std::fs::remove_file(&path).unwrap();
        drop(listener);
        assert_eq!(mode & 0o777, 0o666);
    }

    #[test]
    fn peer_of_a_socketpair_is_this_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let identity = peer_identity(&ours).unwrap();
        assert_eq!(identity.pid, std::process::id());
        assert_eq!(identity.uid, rustix::process::getuid().as_raw());
    }
}
