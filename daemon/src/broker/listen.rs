//! The listening socket, its lock, and the signals that end the daemon.
//!
//! What is done with connections is the loop's matter.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::Event;

/// Connections that wait to be accepted are the kernel's; when accepting fails for want of descriptors, the
/// next attempt waits this long.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// A listening socket that nobody else serves. Its file goes when this is dropped, if it is still ours.
#[derive(Debug)]
pub struct Listening {
    listener: StdUnixListener,
    path: PathBuf,
    /// None where a service manager listens: then the file is its own, and so is the care that no other daemon
    /// serves it.
    file: Option<SocketFile>,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
    /// Held as long as we serve: another daemon cannot take the socket from a living one.
    _lock: File,
}

impl Listening {
    /// Listens at a path. A socket that a dead daemon left behind is replaced; a living one is an error.
    pub fn start(path: &Path, mode: u32) -> io::Result<Listening> {
        let lock = lock(path)?;
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if is_socket(&metadata) => {
                // A service manager's socket has no lock, and is alive while no daemon serves it.
                if !is_stale(path)? {
                    return Err(in_use(&format!("somebody else listens at {}", path.display())));
                }
                std::fs::remove_file(path)?;
            }
            Ok(_) => {
                let reason = format!("{} exists and is not a socket", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = reeld_protocol::socket::listen(path, mode).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen at {}: {error}", path.display()))
        })?;
        let inode = std::fs::symlink_metadata(path)?.ino();
        let file = SocketFile { path: path.to_owned(), inode, _lock: lock };
        Ok(Listening { listener, path: path.to_owned(), file: Some(file) })
    }

    /// A socket that was passed to us and listens already.
    pub fn passed(listener: StdUnixListener) -> io::Result<Listening> {
        let address = listener.local_addr()?;
        let path = address.as_pathname().unwrap_or(Path::new("(a socket without a path)")).to_owned();
        Ok(Listening { listener, path, file: None })
    }

    /// Where it listens.
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Makes an event of each connection.
    pub fn accept(self, events: mpsc::Sender<Event>) -> io::Result<impl Future<Output = ()>> {
        self.listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(self.listener)?;
        let file = self.file;
        Ok(async move {
            // Lives as long as the loop does.
            let _file = file;
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        if events.send(Event::Connected(stream)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours =
            std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode);
        if is_ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn is_socket(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type())
}

fn in_use(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, reason)
}

/// True if nobody listens at a socket's file any more. Only the kernel's word for that counts: one that may not
/// be connected to, or whose queue is full, has an owner.
fn is_stale(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(path)?;
    Ok(rustix::net::connect(&socket, &address) == Err(rustix::io::Errno::CONNREFUSED))
}

/// Takes the lock beside the socket. The file stays: whoever unlinked it could let two daemons in.
fn lock(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&name).map_err(
        |error| io::Error::new(error.kind(), format!("cannot open {}: {error}", Path::new(&name).display())),
    )?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(in_use(&format!("another daemon serves {}", path.display())))
        }
        Err(error) => Err(error.into()),
    }
}

/// Turns SIGTERM and SIGINT into an event. A second one ends the process at once.
pub fn stop_on_signals(events: mpsc::Sender<Event>) -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("reeld-signals".into()).spawn(move || {
        for (count, _signal) in signals.forever().enumerate() {
            if count > 0 {
                std::process::exit(1);
            }
            if events.blocking_send(Event::Stop).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Says on an inherited descriptor that connections are accepted, and closes it.
pub fn announce(fd: i32) -> io::Result<()> {
    // SAFETY: the number was given to us as ours; an invalid one fails at the write.
    let mut ready = unsafe { File::from_raw_fd(fd) };
    ready.write_all(b"ready\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_socket_is_replaced_and_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        drop(StdUnixListener::bind(&path).unwrap());
        let serving = Listening::start(&path, 0o600).unwrap();
        let second = Listening::start(&path, 0o600).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(serving);
        assert!(!path.exists());
    }

    #[test]
    fn socket_that_somebody_listens_at_without_a_lock_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let listener = StdUnixListener::bind(&path).unwrap();
        let second = Listening::start(&path, 0o600).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(listener);
    }

    #[test]
    fn passed_socket_keeps_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let listening = Listening::passed(StdUnixListener::bind(&path).unwrap()).unwrap();
        assert_eq!(listening.path(), path);
        drop(listening);
        assert!(path.exists());
    }

    #[test]
    fn file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        std::fs::write(&path, b"data").unwrap();
        assert!(Listening::start(&path, 0o600).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn socket_of_a_successor_is_not_unlinked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let serving = Listening::start(&path, 0o600).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _successor = StdUnixListener::bind(&path).unwrap();
        drop(serving);
        assert!(path.exists());
    }
}
