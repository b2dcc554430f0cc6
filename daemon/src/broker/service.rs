//! [`Service`]: what the service manager is told, in the protocol of `sd_notify`, and the listening socket that
//! it may have passed.
//!
//! Which signals a service manager sends, and what they mean, does not live here.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, sockopt};
use sd_notify::NotifyState;

/// What a service manager puts into the environment of the process that it starts. It is meant for the broker:
/// an engine that inherited it could speak in the broker's name.
pub const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Messages that wait for a service manager that does not read. It is told about starts, reloads and stops, so
/// a few are many; of status lines and signs of life only the last is kept anyway.
const UNSENT_MAX: usize = 16;

/// The watchdog is fed four times in its period. Half would do; a quarter leaves room for a loaded machine.
const FEEDINGS: u32 = 4;

/// The service manager, if there is one. Telling it something never waits: what it does not take at once is
/// offered again with the next word.
#[derive(Debug, Default)]
pub struct Service {
    manager: Option<UnixDatagram>,
    unsent: VecDeque<String>,
    watchdog: Option<Watchdog>,
    status: String,
}

#[derive(Debug)]
struct Watchdog {
    feed_every: Duration,
    fed_at: Option<Instant>,
}

impl Service {
    /// The service manager that the environment names.
    pub fn from_environment() -> io::Result<Service> {
        match env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) {
            Some(address) => Service::at(&address, sd_notify::watchdog_enabled()).map_err(|error| {
                let reason =
                    format!("the service manager cannot be reached at {}: {error}", address.display());
                io::Error::new(error.kind(), reason)
            }),
            None => Ok(Service::default()),
        }
    }

    /// The service manager at an address as in `NOTIFY_SOCKET`: a path, or `@` and an abstract name.
    fn at(address: &OsStr, watchdog: Option<Duration>) -> io::Result<Service> {
        let address = match address.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(address)?,
        };
        let manager = UnixDatagram::unbound()?;
        manager.set_nonblocking(true)?;
        manager.connect_addr(&address)?;
        let watchdog = watchdog.map(|period| Watchdog { feed_every: period / FEEDINGS, fed_at: None });
        Ok(Service { manager: Some(manager), watchdog, ..Service::default() })
    }

    /// True if somebody reads the status line.
    pub fn is_there(&self) -> bool {
        self.manager.is_some()
    }

    /// Connections are accepted, or what was reloaded is in force.
    pub fn ready(&mut self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// The configuration is being read again; [`Service::ready`] must follow.
    pub fn reloading(&mut self) {
        let states: Vec<_> =
            [NotifyState::Reloading].into_iter().chain(NotifyState::monotonic_usec_now()).collect();
        self.tell(&states);
    }

    /// The daemon is about to end.
    pub fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// By the clock, from the broker's loop and from nowhere else: that the loop goes round is what the watchdog
    /// is told. And what the daemon does, where that has changed.
    pub fn tend(&mut self, now: Instant, status: &str) {
        self.send_unsent();
        if self.status != status {
            self.tell(&[NotifyState::Status(status)]);
            status.clone_into(&mut self.status);
        }
        let Some(watchdog) = &mut self.watchdog else { return };
        if watchdog.fed_at.is_none_or(|fed_at| now.duration_since(fed_at) >= watchdog.feed_every) {
            watchdog.fed_at = Some(now);
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    fn tell(&mut self, states: &[NotifyState<'_>]) {
        if self.manager.is_none() {
            return;
        }
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        // Old news of the same kind is of no use to anybody.
        let kind = |message: &str| message.split_once('=').map(|(kind, _)| kind.to_owned());
        if matches!(kind(&message).as_deref(), Some("STATUS" | "WATCHDOG")) {
            self.unsent.retain(|unsent| kind(unsent) != kind(&message));
        }
        if self.unsent.len() == UNSENT_MAX {
            self.unsent.pop_front();
        }
        self.unsent.push_back(message);
        self.send_unsent();
    }

    fn send_unsent(&mut self) {
        let Some(manager) = &self.manager else { return };
        while let Some(message) = self.unsent.front() {
            match manager.send(message.as_bytes()) {
                Ok(_) => {}
                // Its queue is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, message = message.trim_end(), "the service manager is gone");
                }
            }
            self.unsent.pop_front();
        }
    }
}

/// The socket that the service manager listens on in our place, if it passed one. Connections wait in it while
/// no daemon runs. It stays the manager's: it made the file, keeps the socket open and removes the file.
pub fn passed_socket() -> io::Result<Option<UnixListener>> {
    let mut passed = sd_notify::listen_fds()?;
    let Some(fd) = passed.next() else { return Ok(None) };
    if passed.len() > 0 {
        let count = passed.len() + 1;
        return Err(refused(&format!("{count} sockets were passed by the service manager; one is served")));
    }
    // SAFETY: the descriptor was passed to this process, as LISTEN_PID says, and nothing else has taken it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let is_listening = sockopt::socket_domain(&socket)? == AddressFamily::UNIX
        && sockopt::socket_type(&socket)? == SocketType::STREAM
        && sockopt::socket_acceptconn(&socket)?;
    if !is_listening {
        return Err(refused("what the service manager passed is not a Unix stream socket that listens"));
    }
    Ok(Some(socket.into()))
}

fn refused(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service manager's end.
    struct Manager {
        folder: tempfile::TempDir,
        socket: UnixDatagram,
    }

    impl Manager {
        fn new() -> Manager {
            let folder = tempfile::tempdir().unwrap();
            let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
            socket.set_nonblocking(true).unwrap();
            Manager { folder, socket }
        }

        fn service(&self, watchdog: Option<Duration>) -> Service {
            Service::at(self.folder.path().join("notify").as_os_str(), watchdog).unwrap()
        }

        fn heard(&self) -> Vec<String> {
            let mut heard = Vec::new();
            let mut bytes = [0; 4096];
            while let Ok(count) = self.socket.recv(&mut bytes) {
                heard.push(String::from_utf8(bytes[..count].to_vec()).unwrap());
            }
            heard
        }
    }

    #[test]
    fn reload_names_its_time() {
        let manager = Manager::new();
        manager.service(None).reloading();
        let heard = manager.heard().concat();
        let time = heard.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end();
        assert!(time.parse::<u64>().unwrap() > 0);
    }

    #[test]
    fn status_is_told_when_it_changes() {
        let (manager, now) = (Manager::new(), Instant::now());
        let mut service = manager.service(None);
        for status in ["one", "one", "two"] {
            service.tend(now, status);
        }
        assert_eq!(manager.heard(), ["STATUS=one\n", "STATUS=two\n"]);
    }

    #[test]
    fn watchdog_is_fed_at_least_twice_in_its_period() {
        let (manager, start) = (Manager::new(), Instant::now());
        let mut service = manager.service(Some(Duration::from_secs(10)));
        for half_second in 0..20 {
            service.tend(start + Duration::from_millis(500) * half_second, "");
        }
        assert_eq!(manager.heard(), ["WATCHDOG=1\n"; 4]);
    }

    #[test]
    fn manager_that_does_not_read_is_told_later_what_matters() {
        let (manager, start) = (Manager::new(), Instant::now());
        let mut service = manager.service(Some(Duration::from_secs(1)));
        // More than any queue holds: a blocking call would never return.
        for second in 0..10_000 {
            service.tend(start + Duration::from_secs(second), &second.to_string());
        }
        service.stopping();
        assert!(service.unsent.len() <= 3, "{:?}", service.unsent);
        manager.heard();
        service.tend(start, "9999");
        assert!(manager.heard().contains(&"STOPPING=1\n".to_owned()));
    }

    #[test]
    fn abstract_address_is_understood() {
        let name = format!("reeld-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        Service::at(OsStr::new(&format!("@{name}")), None).unwrap().ready();
        let mut bytes = [0; 64];
        let count = manager.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"READY=1\n");
    }

    #[test]
    fn without_a_manager_nothing_is_kept() {
        let mut service = Service::default();
        service.ready();
        service.tend(Instant::now(), "busy");
        assert!(!service.is_there() && service.unsent.is_empty());
    }
}
