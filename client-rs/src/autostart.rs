//! The private daemon: one for this user, started where no other daemon answers, which ends after its last
//! client.
//!
//! When one is wanted is decided in `locate.rs`.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeld_protocol::VERSION_MAJOR;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, Mode};
use rustix::pipe::PipeFlags;

use crate::client::ClientBuilder;
use crate::error::Error;
use crate::handshake::{ANSWER_TIMEOUT, Dialled, dial};
use crate::link::Link;
use crate::locate::path_variable;

/// How long a daemon may take until it listens. It takes milliseconds, but FFmpeg's libraries may have to
/// come from a slow disk first.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// How much of a failed daemon's log is quoted: the end of it, where the reason stands.
const LOG_LINES_MAX: usize = 5;

/// What the daemon writes when it listens.
const READY: &[u8] = b"ready\n";

/// Where a private daemon listens, and the files beside its socket.
pub(crate) struct Private {
    socket: PathBuf,
}

impl Private {
    /// At a named socket, else at the usual one in the user's runtime folder, which is made if necessary.
    pub(crate) fn new(named: Option<&Path>) -> Result<Private, Error> {
        if let Some(socket) = named {
            return Ok(Private { socket: socket.to_owned() });
        }
        let folder = make_folder().map_err(|(folder, error)| {
            Error::unavailable(format!(
                "no folder for a private daemon's socket: {}: {error}. Set XDG_RUNTIME_DIR or REELD_SOCKET",
                folder.display()
            ))
        })?;
        Ok(Private { socket: folder.join(socket_name()) })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Held while somebody starts a daemon. Not the daemon's own lock, which it holds as long as it lives.
    fn lock_file(&self) -> PathBuf {
        self.socket.with_extension("starting")
    }

    fn log_file(&self) -> PathBuf {
        self.socket.with_extension("log")
    }
}

/// Two builds do not share a private daemon: each starts its own.
pub(crate) fn socket_name() -> String {
    format!("reeld-{VERSION_MAJOR}-{}.sock", env!("CARGO_PKG_VERSION"))
}

/// Where this user's daemons listen, if there is such a folder already.
pub(crate) fn user_folder() -> Option<PathBuf> {
    let folder = folder_path();
    is_ours(&folder).is_ok().then_some(folder)
}

pub(crate) fn folder_path() -> PathBuf {
    // The variable outlives its folder where a user was changed without a login.
    match path_variable("XDG_RUNTIME_DIR").filter(|runtime| runtime.is_dir()) {
        Some(runtime) => runtime.join("reeld"),
        None => PathBuf::from(format!("/tmp/reeld-{}", rustix::process::geteuid().as_raw())),
    }
}

fn make_folder() -> Result<PathBuf, (PathBuf, io::Error)> {
    let folder = folder_path();
    let result = match rustix::fs::mkdir(&folder, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => is_ours(&folder),
        Err(errno) => Err(errno.into()),
    };
    match result {
        Ok(()) => Ok(folder),
        Err(error) => Err((folder, error)),
    }
}

/// In /tmp anybody can make a folder of that name first, and then own what we connect to. Who may only
/// look into it is no danger: a private daemon accepts its own user alone.
fn is_ours(folder: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(folder)?;
    if !metadata.is_dir()
        || metadata.uid() != rustix::process::geteuid().as_raw()
        || metadata.permissions().mode() & 0o022 != 0
    {
        return Err(io::Error::other("it is not a folder that only this user may write to"));
    }
    Ok(())
}

/// Starts a daemon, unless somebody else was faster, and connects to it. None if it went away again.
pub(crate) fn start(
    private: &Private,
    builder: &ClientBuilder,
    name: &str,
) -> Result<Option<Arc<Link>>, Error> {
    let _lock = lock(&private.lock_file())?;
    if let Dialled::Connected(link) = dial(&private.socket, name, ANSWER_TIMEOUT)? {
        return Ok(Some(link));
    }
    let binary = find_binary(builder)?;
    let ready = spawn(&binary, private)
        .map_err(|error| Error::unavailable(format!("cannot start {}: {error}", binary.display())))?;
    if let Err(reason) = await_ready(&ready) {
        return Err(Error::unavailable(format!(
            "{} was started, but {reason}{}",
            binary.display(),
            quote_log(&private.log_file())
        )));
    }
    match dial(&private.socket, name, ANSWER_TIMEOUT)? {
        Dialled::Connected(link) => Ok(Some(link)),
        Dialled::NobodyThere(_) | Dialled::NotPermitted | Dialled::Silent(_) => Ok(None),
    }
}

/// Waits for whoever is starting a daemon at this moment. That takes at most [`READY_TIMEOUT`].
fn lock(path: &Path) -> Result<File, Error> {
    let open = || {
        let file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other.map(|()| file).map_err(io::Error::from),
            }
        }
    };
    open().map_err(|error: io::Error| {
        Error::unavailable(format!("cannot lock {} to start a daemon: {error}", path.display()))
    })
}

fn find_binary(builder: &ClientBuilder) -> Result<PathBuf, Error> {
    let named = builder.binary.clone().or_else(|| path_variable("REELD_BINARY"));
    if let Some(named) = named {
        // The daemon starts in another folder.
        return named.canonicalize().map_err(|error| {
            Error::unavailable(format!("the reeld binary {} cannot be used: {error}", named.display()))
        });
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = builder.binary_dirs.iter().cloned().chain(beside).chain(std::env::split_paths(&path));
    let mut candidates = folders.map(|folder| folder.join("reeld"));
    candidates
        .find_map(|candidate| is_executable(&candidate).then(|| candidate.canonicalize().ok())?)
        .ok_or_else(|| {
            Error::unavailable(
                "no reeld daemon answers, and there is no `reeld` binary to start one: it is neither beside \
                 this program nor on PATH. Start `reeld serve`, or set REELD_SOCKET or REELD_BINARY",
            )
        })
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Starts the daemon as nobody's child, in a session of its own, with nothing of ours but its log.
/// Returns the pipe that it reports on.
fn spawn(binary: &Path, private: &Private) -> io::Result<OwnedFd> {
    let (ready, report) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let log = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(private.log_file())?;
    let mut command = Command::new(binary);
    let number = report.as_raw_fd();
    command.arg("serve").arg("--socket").arg(&private.socket).arg("--private");
    // A descriptor of its own: the daemon closes it, and its standard output shall stay what it is.
    command.arg("--ready-fd").arg(number.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/");
    // SAFETY: between fork and exec only async-signal-safe calls are made.
    unsafe { command.pre_exec(move || detach(number)) };
    // The child that is waited for here ends at once; see `detach`.
    command.spawn()?.wait()?;
    // From here on the daemon alone has this end, and its end is seen.
    drop(report);
    Ok(ready)
}

/// In the new process: leaves the session, and lets another process take over, so that the program that
/// started the daemon has no child that it does not know of.
fn detach(report: RawFd) -> io::Result<()> {
    rustix::process::setsid()?;
    // SAFETY: async-signal-safe; both sides go on with calls that are so too.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => keep_at_exec(report),
        // SAFETY: ends this process without running anything else.
        _ => unsafe { libc::_exit(0) },
    }
}

/// Descriptors that the program forgot to mark must not live on in a daemon; it gets this one.
fn keep_at_exec(report: RawFd) -> io::Result<()> {
    // SAFETY: only sets flags of descriptors. Kernels before 5.11 refuse; then nothing is closed.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    // SAFETY: as above.
    match unsafe { libc::fcntl(report, libc::F_SETFD, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits until the daemon says that it listens.
fn await_ready(ready: &OwnedFd) -> Result<(), String> {
    let deadline = Instant::now() + READY_TIMEOUT;
    let mut said = Vec::new();
    while said.len() < READY.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
        let mut fds = [PollFd::new(ready, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Err(format!("did not get ready within {} s", READY_TIMEOUT.as_secs())),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(format!("waiting for it failed: {errno}")),
        }
        let mut bytes = [0; READY.len()];
        match rustix::io::read(ready.as_fd(), &mut bytes) {
            Ok(0) => return Err("ended at once".into()),
            Ok(count) => said.extend(&bytes[..count]),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(format!("waiting for it failed: {errno}")),
        }
    }
    if said.starts_with(READY) { Ok(()) } else { Err("reported something else than that it is ready".into()) }
}

fn quote_log(path: &Path) -> String {
    let log = fs::read_to_string(path).unwrap_or_default();
    let mut lines: Vec<_> =
        log.lines().rev().filter(|line| !line.trim().is_empty()).take(LOG_LINES_MAX).collect();
    lines.reverse();
    if lines.is_empty() {
        return format!(" (its log {} is empty)", path.display());
    }
    format!(". The end of its log {}:\n{}", path.display(), lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_that_others_may_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(is_ours(folder.path()).is_ok());
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o720)).unwrap();
        assert!(is_ours(folder.path()).is_err());
    }

    #[test]
    fn binary_that_ends_at_once_is_reported_with_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("reeld");
        fs::write(&binary, "#!/bin/sh\necho no such thing >&2\nexit 3\n").unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o700)).unwrap();
        let private = Private::new(Some(&folder.path().join("reeld.sock"))).unwrap();
        let builder = ClientBuilder::default().binary(&binary);
        let error = start(&private, &builder, "test").err().unwrap().to_string();
        assert!(error.contains("ended at once") && error.ends_with("no such thing"), "{error}");
    }

    #[test]
    fn missing_binary_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let private = Private::new(Some(&folder.path().join("reeld.sock"))).unwrap();
        let builder = ClientBuilder::default().binary("/no/such/reeld");
        let error = start(&private, &builder, "test").err().unwrap().to_string();
        assert!(error.contains("/no/such/reeld"), "{error}");
    }
}
