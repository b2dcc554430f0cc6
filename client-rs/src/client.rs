//! [`Client`]: this process's way to the daemon, and [`ClientBuilder`], how it is found.
//!
//! A client outlives its connection: when the daemon was restarted, and in a forked child, the next call
//! connects anew. Where daemons may be is in `locate.rs`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reeld_protocol::StreamIndex;
use reeld_protocol::frame::OutgoingFd;
use reeld_protocol::message::{GetFrames, OpenSource, Part, Request, SourceOpened, Wanted};
use reeld_protocol::status::Status;

use crate::bulk::Bulk;
use crate::call::Call;
use crate::calls::{Answer, Expected};
use crate::connection::Connection;
use crate::error::Error;
use crate::fork::PerProcess;
use crate::ledger::ClientStatistics;
use crate::link::SubmitError;
use crate::locate;
use crate::options::{OpenOptions, RequestOptions};
use crate::pending::Pending;
use crate::source::{MediaSource, SourceFile};
use crate::video::Video;

/// How often a request is sent anew that found its connection closed. Each time a new connection was made
/// just before: a second failure means a daemon that ends at once, or a storm of restarts.
const SUBMIT_ATTEMPTS: u32 = 3;

/// A handle on the daemon. Cheap to clone; all clones and all threads share one connection.
///
/// ```
/// # reeld_tests::enter_example_folder();
/// use reeld_client::Client;
///
/// let client = Client::connect()?;
/// let status = client.status()?;
/// println!("{} clients, {} bytes leased", status.client_count, status.leased_bytes);
/// # Ok::<(), reeld_client::Error>(())
/// ```
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    builder: ClientBuilder,
    connection: PerProcess<Mutex<Option<Arc<Connection>>>>,
}

/// How a daemon is found. Made by [`Client::builder`].
#[derive(Clone, Debug, Default)]
pub struct ClientBuilder {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) autostart: Option<bool>,
    pub(crate) binary: Option<PathBuf>,
    pub(crate) binary_dirs: Vec<PathBuf>,
    pub(crate) name: Option<String>,
}

impl ClientBuilder {
    /// Connects to this socket and to no other. Nothing is started there unless
    /// [`ClientBuilder::autostart`] says so. Default: `$REELD_SOCKET`.
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = Some(path.into());
        self
    }

    /// Whether to start a private daemon where none answers. Default: yes, unless `$REELD_NO_AUTOSTART` is
    /// set or a socket was named.
    pub fn autostart(mut self, is_wanted: bool) -> Self {
        self.autostart = Some(is_wanted);
        self
    }

    /// The `reeld` binary to start. Default: `$REELD_BINARY`, else `reeld` in a folder named by
    /// [`ClientBuilder::binary_dir`], beside this program, or on `$PATH`.
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// Another folder to look for the `reeld` binary in.
    pub fn binary_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary_dirs.push(path.into());
        self
    }

    /// How the daemon's logs call this client. Default: the program's name. The process id is added.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// [`Error::DaemonUnavailable`] where no daemon answers and none could be started.
    pub fn connect(self) -> Result<Client, Error> {
        let client = Client { shared: Arc::new(Shared { builder: self, connection: PerProcess::new() }) };
        client.connection()?;
        Ok(client)
    }
}

impl Client {
    /// Connects to the daemon: the one at `$REELD_SOCKET` if that is set; else the system's at
    /// `/run/reeld/reeld.sock`, else the user's in `$XDG_RUNTIME_DIR/reeld`. Where none answers, a private
    /// daemon is started for this user, which ends after its last client.
    ///
    /// # Errors
    /// [`Error::DaemonUnavailable`]. In particular, a system daemon that this user may not use is an error
    /// that says so, and not a reason to start another one.
    pub fn connect() -> Result<Client, Error> {
        Client::builder().connect()
    }

    /// For choosing the socket, the binary, and whether one is started.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// The process-wide client, connected at the first call.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn shared() -> Result<Client, Error> {
        static SHARED: PerProcess<Mutex<Option<Client>>> = PerProcess::new();
        // Held while connecting: whoever else asks waits for the same daemon.
        let mut shared = SHARED.get().lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = shared.as_ref() {
            return Ok(client.clone());
        }
        let client = Client::connect()?;
        *shared = Some(client.clone());
        Ok(client)
    }

    /// Opens a video.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be opened here; [`Error::Media`] if it is no video;
    /// [`Error::InvalidRequest`] if there is no such stream.
    pub fn open(&self, source: impl Into<MediaSource>, options: OpenOptions) -> Result<Video, Error> {
        Video::new(self.clone(), source.into(), options)
    }

    /// Asks for frames of several videos in one request, which fills one stretch of memory, and does not
    /// wait for them. The result has one part for each pair, in this order.
    ///
    /// ```
    /// # reeld_tests::enter_example_folder();
    /// use reeld_client::{Client, OpenOptions, RequestOptions, Wanted};
    ///
    /// let client = Client::connect()?;
    /// let one = client.open("clip.mp4", OpenOptions::new())?;
    /// let other = client.open(std::fs::read("clip.mp4").unwrap(), OpenOptions::new())?;
    /// let parts = [(&one, Wanted::Indices(vec![0, 1])), (&other, Wanted::PlayedAt(1.0))];
    /// let frames = client.submit(&parts, RequestOptions::new())?.wait()?;
    /// let counts: Vec<_> = frames.parts().map(|part| part.frame_count()).collect();
    /// assert_eq!(counts, [2, 1]);
    /// # Ok::<(), reeld_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::DaemonUnavailable`] if the request cannot be sent; [`Error::InvalidRequest`] if a video
    /// belongs to another client.
    pub fn submit(&self, parts: &[(&Video, Wanted)], options: RequestOptions) -> Result<Pending, Error> {
        if parts.iter().any(|(video, _)| !Arc::ptr_eq(&video.client().shared, &self.shared)) {
            let message = "a video of another client cannot be part of this request";
            return Err(Error::InvalidRequest(message.into()));
        }
        let expected = Expected::Frames(parts.iter().map(|(video, _)| video.dtype()).collect());
        let bulk = Bulk::new(parts.iter().map(|(_, wanted)| wanted));
        let make = |connection: &Arc<Connection>| {
            bulk.check_quota(connection.ledger().quota_bytes())?;
            let part = |((video, _), wanted): (&(&Video, Wanted), Wanted)| {
                Ok(Part { source: video.source_on(connection)?, wanted, dtype: video.dtype() })
            };
            let (wanted, fds) = bulk.place()?;
            let parts = parts.iter().zip(wanted).map(part).collect::<Result<_, Error>>()?;
            let timeout_millis = options.timeout_millis();
            Ok((Request::GetFrames(GetFrames { parts, priority: options.priority, timeout_millis }), fds))
        };
        self.call(make, &expected).map(Pending::new)
    }

    /// Asks the daemon how it does.
    ///
    /// # Errors
    /// [`Error::DaemonUnavailable`].
    pub fn status(&self) -> Result<Status, Error> {
        status_of(self.submit_status()?.wait()?)
    }

    /// What this process holds, and what was copied out. Asks nobody.
    pub fn statistics(&self) -> ClientStatistics {
        match self.lock().as_ref() {
            Some(connection) => connection.ledger().statistics(),
            None => ClientStatistics::default(),
        }
    }

    /// The daemon's name and version, and those of its FFmpeg libraries.
    ///
    /// # Errors
    /// [`Error::DaemonUnavailable`].
    pub fn daemon_versions(&self) -> Result<(String, String), Error> {
        let connection = self.connection()?;
        let welcome = connection.welcome();
        Ok((welcome.daemon.clone(), welcome.ffmpeg.clone()))
    }
}

/// Requests.
impl Client {
    /// Sends a request on a connection that is open, made anew where necessary.
    fn call(
        &self,
        make: impl Fn(&Arc<Connection>) -> Result<(Request, Vec<OutgoingFd>), Error>,
        expected: &Expected,
    ) -> Result<Call, Error> {
        for _ in 0..SUBMIT_ATTEMPTS {
            let connection = self.connection()?;
            let (request, fds) = match make(&connection) {
                Ok(request) => request,
                // Opening a file again found the connection closed.
                Err(Error::DaemonUnavailable { .. }) if connection.is_closed() => continue,
                Err(error) => return Err(error),
            };
            connection.wait_for_room();
            match connection.submit(&request, fds, expected.clone()) {
                Ok(key) => return Ok(Call::new(connection, key)),
                Err(SubmitError::Closed) => {}
                Err(SubmitError::Failed(error)) => return Err(error),
            }
        }
        Err(Error::unavailable("the daemon closes each connection as soon as it is used"))
    }

    pub(crate) fn submit_status(&self) -> Result<Call, Error> {
        self.call(|_| Ok((Request::Status, Vec::new())), &Expected::Status)
    }

    /// Opens a source on the current connection.
    pub(crate) fn open_source(
        &self,
        file: &SourceFile,
        options: &OpenOptions,
    ) -> Result<(Arc<Connection>, SourceOpened), Error> {
        let mut attempt = 1;
        loop {
            let connection = self.connection()?;
            match self.open_source_on(&connection, file, options) {
                Ok(opened) => return Ok((connection, opened)),
                Err(Error::DaemonUnavailable { .. })
                    if connection.is_closed() && attempt < SUBMIT_ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn open_source_on(
        &self,
        connection: &Arc<Connection>,
        file: &SourceFile,
        options: &OpenOptions,
    ) -> Result<SourceOpened, Error> {
        let request = Request::OpenSource(OpenSource {
            label: file.label.clone(),
            stream: options.stream.map(StreamIndex),
            seek_mode: options.seek_mode,
            is_memory: file.is_memory,
            thread_count: options.thread_count,
        });
        let fds = vec![Arc::clone(&file.fd)];
        let key = match connection.submit(&request, fds, Expected::SourceOpened) {
            Ok(key) => key,
            Err(SubmitError::Closed) => {
                return Err(Error::unavailable("the connection to the daemon is lost"));
            }
            Err(SubmitError::Failed(error)) => return Err(error),
        };
        match Call::new(Arc::clone(connection), key).wait()? {
            Answer::SourceOpened(opened) => Ok(*opened),
            Answer::Frames(_) | Answer::Status(_) => Err(Error::Protocol("an answer of another kind".into())),
        }
    }
}

/// The connection.
impl Client {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.shared.connection.get().lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open connection of this process, or a new one.
    pub(crate) fn connection(&self) -> Result<Arc<Connection>, Error> {
        // Held while connecting, against the usual rule: whoever else asks waits for the same daemon.
        let mut current = self.lock();
        if let Some(connection) = current.as_ref()
            && !connection.is_closed()
        {
            return Ok(Arc::clone(connection));
        }
        let connection = Arc::new(Connection::new(locate::connect(&self.shared.builder)?));
        *current = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// The open connection of this process, if no waiting is necessary to have it.
    pub(crate) fn open_connection(&self) -> Option<Arc<Connection>> {
        let current = self.shared.connection.get().try_lock().ok()?;
        current.as_ref().filter(|connection| !connection.is_closed()).cloned()
    }
}

pub(crate) fn status_of(answer: Answer) -> Result<Status, Error> {
    match answer {
        Answer::Status(status) => Ok(*status),
        Answer::SourceOpened(_) | Answer::Frames(_) => {
            Err(Error::Protocol("an answer of another kind".into()))
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("builder", &self.shared.builder).finish_non_exhaustive()
    }
}
