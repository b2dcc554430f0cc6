//! The listening socket and its lock.
//!
//! What is done with connections is the loop's matter.

use std::fs::{File, OpenOptions};
use std::io;
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use reeld_protocol::handshake::{Refusal, RefusalCause};
use reeld_protocol::message::kind;
use reeld_protocol::{Outbox, VERSION_MAJOR, VERSION_MINOR};
use rustix::fs::FlockOperation;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Event, descriptors};

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
    own: Option<(SocketFile, File)>,
}

/// A listening socket whose connections become events. Dropping it ends that and gives the lock back.
#[derive(Debug)]
pub struct Accepting {
    task: JoinHandle<()>,
    file: Option<SocketFile>,
    /// Held as long as this process lives: another daemon cannot take the socket from a living one, nor serve
    /// beside one that is ending.
    _lock: Option<File>,
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
        let file = SocketFile { path: path.to_owned(), inode };
        Ok(Listening { listener, path: path.to_owned(), own: Some((file, lock)) })
    }

    /// A socket that was passed to us and listens already.
    pub fn passed(listener: StdUnixListener) -> io::Result<Listening> {
        let address = listener.local_addr()?;
        let path = address.as_pathname().unwrap_or(Path::new("(a socket without a path)")).to_owned();
        Ok(Listening { listener, path, own: None })
    }

    /// Where it listens.
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Makes an event of each connection.
    pub fn accept(self, events: mpsc::Sender<Event>) -> io::Result<Accepting> {
        self.listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(self.listener)?;
        let task = tokio::spawn(accept_each(listener, events));
        let (file, lock) = self.own.unzip();
        Ok(Accepting { task, file, _lock: lock })
    }
}

async fn accept_each(listener: UnixListener, events: mpsc::Sender<Event>) {
    let mut spare = spare_descriptor();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if events.send(Event::Connected(stream)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                if descriptors::are_exhausted(&error) {
                    spare = make_do(&listener, &events, spare).await;
                } else {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
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

/// Held back, so that even without descriptors a connection can be taken to be refused.
fn spare_descriptor() -> Option<OwnedFd> {
    File::open("/dev/null").ok().map(OwnedFd::from)
}

/// A connection waits and no descriptor is left for it: files that can be spared are closed for it, or it is
/// refused with a sentence, so that its process does not wait in vain.
async fn make_do(
    listener: &UnixListener,
    events: &mpsc::Sender<Event>,
    spare: Option<OwnedFd>,
) -> Option<OwnedFd> {
    let (tried, closed) = oneshot::channel();
    if events.send(Event::OutOfDescriptors { tried }).await.is_err() {
        return spare;
    }
    // A file system that hangs must not keep connections out.
    let _ = timeout(ACCEPT_PAUSE, closed).await;
    match timeout(ACCEPT_PAUSE, listener.accept()).await {
        Ok(Ok((stream, _))) => {
            let _ = events.send(Event::Connected(stream)).await;
            return spare;
        }
        Ok(Err(_)) => {}
        // Nobody waits any more.
        Err(_) => return spare,
    }
    drop(spare);
    match timeout(ACCEPT_PAUSE, listener.accept()).await {
        Ok(Ok((stream, _))) => {
            let reason = "the daemon may not open more files; raise its limit of open files (LimitNOFILE in its \
                          unit, or ulimit -n)";
            refuse(&stream, RefusalCause::Limit, reason.to_owned());
        }
        Ok(Err(_)) => tokio::time::sleep(ACCEPT_PAUSE).await,
        Err(_) => {}
    }
    spare_descriptor()
}

/// Says no, without waiting for the peer to speak first: what was sent can be read even after the connection
/// was closed. The socket is fresh, so there is room for it.
pub fn refuse(stream: &UnixStream, cause: RefusalCause, reason: String) {
    let refusal = Refusal { major: VERSION_MAJOR, minor: VERSION_MINOR, reason, cause };
    let mut outbox = Outbox::new();
    outbox.push_raw(kind::REFUSAL, 0, &refusal.to_bytes(), Vec::new());
    if let Err(error) = outbox.send(stream, SendFlags::DONTWAIT) {
        tracing::debug!(%error, "a refused peer is gone already");
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
    // In a folder that others may write to, neither a link nor a pipe leads astray or waits.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut options = OpenOptions::new();
    let lock = options.create(true).truncate(false).write(true).mode(0o600).custom_flags(flags).open(&name);
    let lock = lock.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot open {}: {error}", Path::new(&name).display()))
    })?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(in_use(&format!("another daemon serves {}", path.display())))
        }
        Err(error) => Err(error.into()),
    }
}

/// Says on an inherited descriptor that connections are accepted, and closes it.
pub fn announce(fd: i32) -> io::Result<()> {
    // SAFETY: the number was given to us as ours; an invalid one fails at the write.
    let mut ready = unsafe { File::from_raw_fd(fd) };
    ready.write_all(b"ready\n").map_err(|error| {
        io::Error::new(error.kind(), format!("--ready-fd {fd} cannot be written to: {error}"))
    })
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
    fn lock_that_is_a_pipe_or_a_link_is_an_error_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let lock = folder.path().join("a.sock.lock");
        rustix::fs::mknodat(rustix::fs::CWD, &lock, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        assert!(Listening::start(&path, 0o600).unwrap_err().to_string().contains("a.sock.lock"));
        std::fs::remove_file(&lock).unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &lock).unwrap();
        assert!(Listening::start(&path, 0o600).unwrap_err().to_string().contains("a.sock.lock"));
        assert!(!folder.path().join("elsewhere").exists());
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
