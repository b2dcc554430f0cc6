//! How the death of a client's process is noticed where its socket does not show it: by a pidfd.
//!
//! A socket ends with its last copy. A client that was forked, or that started another program, may have left
//! copies behind, so the end of the process that connected is watched for by itself. By design that process is
//! the client: a forked child never uses its parent's connection, it connects anew. What a client's death
//! means for what it held is decided by `Broker::forget_client`; the end of the socket is seen by `peer`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use reeld_protocol::socket::{PeerIdentity, peer_pidfd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Event;

/// Ways to get a pidfd of a peer, the best first. Each is tried where the one before is not to be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The socket itself knows its peer, from Linux 6.5 on.
    #[default]
    PeerPidfd,
    /// By the number that the socket names. It may belong to another process by now: then the one that
    /// connected is dead, and nobody but its children holds the socket. Watching a stranger in that case
    /// costs nothing but a later notice: the end of the socket is an event all the same.
    PidfdOpen,
    /// Not at all: the end of the socket has to do.
    HangUp,
}

/// What is known of the process that connected.
#[derive(Debug)]
enum Found {
    Alive(OwnedFd),
    Dead,
    /// Not to be seen, such as a process of another process namespace for `pidfd_open`.
    Unknown(io::Error),
}

/// Watches for the end of a process. Dropping it ends that, and closes the pidfd.
#[derive(Debug)]
pub struct Watch {
    task: Option<AbortHandle>,
}

impl Watch {
    /// Makes the end of the process that connected an event. It costs a descriptor per client. Where there is
    /// none to be had, the end of the socket has to do; that is logged, but no reason to refuse anybody.
    pub fn start(
        best: Way,
        client: u64,
        socket: impl AsFd,
        identity: PeerIdentity,
        events: mpsc::Sender<Event>,
    ) -> Watch {
        let is_dead = match find(best, socket.as_fd(), identity) {
            Found::Alive(pidfd) => match watched(pidfd) {
                Ok(pidfd) => return Watch::spawn(Event::Died(client), Some(pidfd), events),
                Err(error) => {
                    tracing::warn!(client, %error, "the client's process cannot be watched");
                    false
                }
            },
            Found::Dead => true,
            Found::Unknown(error) => {
                tracing::debug!(client, pid = identity.pid, %error, "no pidfd: only the socket tells its end");
                false
            }
        };
        if is_dead { Watch::spawn(Event::Died(client), None, events) } else { Watch { task: None } }
    }

    /// Makes the end of the process an event on whose behalf a client issues tickets.
    pub fn of_session(client: u64, pidfd: OwnedFd, events: mpsc::Sender<Event>) -> io::Result<Watch> {
        Ok(Watch::spawn(Event::SessionEnded(client), Some(watched(pidfd)?), events))
    }

    fn spawn(event: Event, pidfd: Option<AsyncFd<OwnedFd>>, events: mpsc::Sender<Event>) -> Watch {
        let task = tokio::spawn(async move {
            if let Some(pidfd) = pidfd {
                // A pidfd becomes readable once and stays so; one of a process that has ended already is so
                // from the start. That is why the guard is not cleared.
                let _ = pidfd.readable().await;
            }
            let _ = events.send(event).await;
        });
        Watch { task: Some(task.abort_handle()) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// True if a descriptor is one of a process, whether or not that has ended. Whatever else it is, nobody is asked but
/// the kernel.
pub fn is_process(fd: impl AsFd) -> bool {
    let (fd, no_signal, no_info, no_flags) =
        (fd.as_fd().as_raw_fd(), 0, std::ptr::null::<libc::siginfo_t>(), 0);
    // SAFETY: signal 0 is none, so that nothing happens to the process; the kernel takes null for the rest.
    let status = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, no_signal, no_info, no_flags) };
    // That we may not send it a signal, or do not see it, is no matter.
    status == 0 || io::Error::last_os_error().raw_os_error() != Some(Errno::BADF.raw_os_error())
}

fn watched(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the `AsyncFd` and open as long as that is registered.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

fn find(best: Way, socket: impl AsFd, identity: PeerIdentity) -> Found {
    let asked = match best {
        Way::PeerPidfd => peer_pidfd(socket),
        Way::PidfdOpen | Way::HangUp => Err(io::ErrorKind::Unsupported.into()),
    };
    match (asked, best) {
        (Ok(pidfd), _) => Found::Alive(pidfd),
        (Err(error), _) if is_dead(&error) => Found::Dead,
        // Kernels before 6.5 cannot, and some say no more of a process that is gone than that it is not there.
        (Err(_), Way::PeerPidfd | Way::PidfdOpen) => by_number(identity.pid),
        (Err(error), Way::HangUp) => Found::Unknown(error),
    }
}

fn by_number(pid: u32) -> Found {
    // 0: a process of a namespace that we cannot see.
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Found::Unknown(io::ErrorKind::NotFound.into());
    };
    match pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from) {
        Ok(pidfd) => Found::Alive(pidfd),
        Err(error) if is_dead(&error) => Found::Dead,
        Err(error) => Found::Unknown(error),
    }
}

fn is_dead(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn found(best: Way, pid: u32) -> Found {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        find(best, &ours, PeerIdentity { pid, uid: 0, gid: 0 })
    }

    #[test]
    fn living_process_is_found_by_its_number() {
        assert!(matches!(found(Way::PidfdOpen, std::process::id()), Found::Alive(_)));
    }

    #[test]
    fn process_that_was_reaped_is_dead() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        assert!(matches!(found(Way::PidfdOpen, child.id()), Found::Dead));
    }

    #[test]
    fn process_of_another_namespace_is_unknown() {
        assert!(matches!(found(Way::PidfdOpen, 0), Found::Unknown(_)));
    }

    #[test]
    fn processes_are_told_from_everything_else() {
        let myself = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        assert!(is_process(&myself));
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let ended = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        child.wait().unwrap();
        assert!(is_process(&ended));
        assert!(!is_process(std::fs::File::open("/dev/null").unwrap()));
        assert!(!is_process(UnixStream::pair().unwrap().0));
    }

    #[test]
    fn nothing_is_looked_for_where_the_socket_has_to_do() {
        assert!(matches!(found(Way::HangUp, std::process::id()), Found::Unknown(_)));
    }
}
