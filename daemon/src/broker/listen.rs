//! The listening socket and its lock.
//!
//! What is done with connections is the loop's matter.

use std::fs::{File, OpenOptions};
use std::io;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Event;

/// Connections that wait to be accepted are the kernel's; when accepting fails for want of descriptors, the
/// next attempt waits this long.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// A listening socket that nobody else serves. Its file goes when this is dropped, if it is still ours.
#[derive(Debug)]
pub struct Listening {
    listener: StdUnixListener,
    file: SocketFile,
    lock: File,
}

/// A listening socket whose connections become events. Dropping it ends that and gives the lock back.
#[derive(Debug)]
pub struct Accepting {
    task: JoinHandle<()>,
    file: Option<SocketFile>,
    /// Held as long as this process lives: another daemon cannot take the socket from a living one, nor serve
    /// beside one that is ending.
    _lock: File,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Listening {
    /// Listens at a path. A socket that a dead daemon left behind is replaced; a living one is an error.
    pub fn start(path: &Path, mode: u32) -> io::Result<Listening> {
        let lock = lock(path)?;
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if is_socket(&metadata) => std::fs::remove_file(path)?,
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
        Ok(Listening { listener, file: SocketFile { path: path.to_owned(), inode }, lock })
    }

    /// Makes an event of each connection.
    pub fn accept(self, events: mpsc::Sender<Event>) -> io::Result<Accepting> {
        self.listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(self.listener)?;
        let task = tokio::spawn(accept_each(listener, events));
        Ok(Accepting { task, file: Some(self.file), _lock: self.lock })
    }
}

async fn accept_each(listener: UnixListener, events: mpsc::Sender<Event>) {
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
}

impl Accepting {
    /// Accepts no more. The socket's file is gone when this returns; the lock stays.
    pub fn stop(&mut self) {
        self.task.abort();
        self.file = None;
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.stop();
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
            let reason = format!("another daemon serves {}", path.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, reason))
        }
        Err(error) => Err(error.into()),
    }
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
