//! [`Client`]: this process's way to the daemon, and [`ClientBuilder`], how it is found.
//!
//! A client outlives its connection: when the daemon goes away, and in a forked child, it connects anew, and
//! requests are made again (`errand.rs`). Where daemons may be is in `locate.rs`, for how long one is looked
//! for in `outage.rs`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reeld_protocol::message::{SourceOpened, Wanted};
use reeld_protocol::status::Status;

use crate::ask::Ask;
use crate::call::Call;
use crate::calls::Answer;
use crate::connection::Connection;
use crate::dispatcher::Dispatcher;
use crate::errand::{Answered, Errand};
use crate::error::Error;
use crate::fork::PerProcess;
use crate::ledger::ClientStatistics;
use crate::link::SLICE;
use crate::locate::{self, Home, Redialled};
use crate::opening::Opening;
use crate::options::{OpenOptions, RequestOptions};
use crate::outage::{Outage, RECONNECT_FOR};
use crate::pending::Pending;
use crate::source::{MediaSource, SourceFile};
use crate::ticket::Ticket;
use crate::video::Video;

/// What the last look for a daemon may take, when the time for looking is over.
const LAST_LOOK: Duration = Duration::from_secs(1);

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
    /// Where the daemon was found: the number of a [`Home`], so that a forked child can read it without a lock.
    home: AtomicU8,
    state: PerProcess<State>,
}

/// What one process has of a client.
#[derive(Default)]
struct State {
    /// Never held while waiting.
    current: Mutex<Current>,
    /// Held while connecting: whoever else needs a connection waits for the same one.
    dialling: Mutex<()>,
    dispatcher: Dispatcher,
}

#[derive(Default)]
struct Current {
    connection: Option<Arc<Connection>>,
    /// The last one, which may be over.
    outage: Option<Outage>,
}

impl Current {
    /// Lets go of the connection, which the caller drops without any lock.
    fn lose(&mut self, reason: &str, window: Duration) -> Option<Arc<Connection>> {
        let lost = self.connection.take()?;
        if self.outage.is_none() || lost.is_proven(window) {
            self.outage = Some(Outage::new(Instant::now(), reason.to_owned()));
        }
        Some(lost)
    }
}

/// How a daemon is found. Made by [`Client::builder`].
#[derive(Clone, Debug, Default)]
pub struct ClientBuilder {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) autostart: Option<bool>,
    pub(crate) binary: Option<PathBuf>,
    pub(crate) binary_dirs: Vec<PathBuf>,
    pub(crate) name: Option<String>,
    pub(crate) reconnect_for: Option<Duration>,
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

    /// How long calls look for a daemon that went away, counted from the moment when that was noticed, before
    /// they fail with [`Error::DaemonUnavailable`]. Default: ten seconds. With none, one look is taken.
    ///
    /// Meanwhile requests wait, those in flight too, and are made again on the new connection. It is looked
    /// for where it was found before and nowhere else: a program that was connected to the system's daemon
    /// never gets a private one in its place. A private daemon is started anew at once.
    pub fn reconnect_for(mut self, time: Duration) -> Self {
        self.reconnect_for = Some(time);
        self
    }

    /// Connects. What the environment says of the daemon's place is read now, and holds for ever.
    ///
    /// # Errors
    /// [`Error::DaemonUnavailable`] where no daemon answers and none could be started: the first connection
    /// is not waited for.
    pub fn connect(self) -> Result<Client, Error> {
        let builder = locate::settle(self);
        let shared = Shared { builder, home: AtomicU8::new(0), state: PerProcess::new() };
        let client = Client { shared: Arc::new(shared) };
        let (link, home) = locate::connect(&client.shared.builder)?;
        client.shared.home.store(home as u8, Ordering::Release);
        client.current().connection = Some(Arc::new(Connection::new(link)));
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

    /// One whose daemon is nowhere.
    #[cfg(test)]
    pub(crate) fn unconnected() -> Client {
        let builder = Client::builder().socket("/no/such/reeld.sock").reconnect_for(Duration::ZERO);
        let builder = locate::settle(builder);
        let home = AtomicU8::new(Home::Named as u8);
        Client { shared: Arc::new(Shared { builder, home, state: PerProcess::new() }) }
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

    /// Begins to open a video, if that can be done without waiting for anything: none where it may not, and where it
    /// fails. For callers who have to look after signals; [`Client::open`] opens whatever can be opened.
    pub fn begin_open(&self, path: &Path, options: &OpenOptions) -> Option<Opening> {
        Opening::begin(self, path, options)
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
    /// Where the daemon is away this does not wait for it: waiting for the result does.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if a video belongs to another client; [`Error::Deadline`] if earlier
    /// requests could not be sent in that time. What else is wrong is found out by waiting.
    pub fn submit(&self, parts: &[(&Video, Wanted)], options: RequestOptions) -> Result<Pending, Error> {
        let deadline = options.deadline();
        self.check_parts(parts)?;
        self.wait_for_room(deadline)?;
        self.submit_now(owned(parts), options.priority, deadline)
    }

    /// As [`Client::submit`], but where many requests wait to be sent, it waits for them at most that long,
    /// and not after a signal; then there is none. For callers who have to look after signals.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub fn submit_within(
        &self,
        parts: &[(&Video, Wanted)],
        options: RequestOptions,
        patience: Duration,
    ) -> Result<Option<Pending>, Error> {
        self.check_parts(parts)?;
        if !self.has_room() {
            self.await_room(patience);
            if !self.has_room() {
                return Ok(None);
            }
        }
        self.submit_now(owned(parts), options.priority, options.deadline()).map(Some)
    }

    /// Takes over frames that another process has handed on, and does not wait for them. They count against the
    /// quota of this process like its own, and are copied where it keeps much.
    ///
    /// # Errors
    /// Waiting fails with [`Error::FramesLost`] if the ticket was redeemed already, if the processes that it
    /// depends on have ended, or if the daemon was restarted meanwhile.
    pub fn redeem(&self, ticket: &Ticket) -> Result<Pending, Error> {
        Call::start(self.clone(), Ask::Redeem(ticket.clone()), None).map(Pending::new)
    }

    /// Counts a copy of pixels that the caller has made, with those that this library makes: `reelctl status`
    /// shows both.
    pub fn count_copy(&self, byte_count: u64) {
        if let Some(connection) = self.open_connection() {
            connection.count_copy(byte_count);
        }
    }

    /// Asks the daemon how it does.
    ///
    /// # Errors
    /// [`Error::DaemonUnavailable`].
    pub fn status(&self) -> Result<Status, Error> {
        status_of(self.start_status()?.wait()?)
    }

    /// What this process holds, and what was copied out. Asks nobody. Numbers count from the last time that
    /// the process connected; results of an earlier connection stay readable, but count no more.
    pub fn statistics(&self) -> ClientStatistics {
        match &self.current().connection {
            Some(connection) => connection.ledger().statistics(),
            None => ClientStatistics::default(),
        }
    }

    /// The daemon's name and version, and those of its FFmpeg libraries.
    ///
    /// # Errors
    /// [`Error::DaemonUnavailable`].
    pub fn daemon_versions(&self) -> Result<(String, String), Error> {
        let answered = self.start_status()?.wait_answered()?;
        let welcome = answered.connection.welcome();
        Ok((welcome.daemon.clone(), welcome.ffmpeg.clone()))
    }
}

fn owned(parts: &[(&Video, Wanted)]) -> Vec<(Video, Wanted)> {
    parts.iter().map(|(video, wanted)| ((*video).clone(), wanted.clone())).collect()
}

/// Requests.
impl Client {
    fn check_parts(&self, parts: &[(&Video, Wanted)]) -> Result<(), Error> {
        if parts.iter().any(|(video, _)| !Arc::ptr_eq(&video.client().shared, &self.shared)) {
            let message = "a video of another client cannot be part of this request";
            return Err(Error::InvalidRequest(message.into()));
        }
        Ok(())
    }

    /// Never waits.
    pub(crate) fn submit_now(
        &self,
        parts: Vec<(Video, Wanted)>,
        priority: i8,
        deadline: Option<Instant>,
    ) -> Result<Pending, Error> {
        Call::start(self.clone(), Ask::Frames { parts, priority }, deadline).map(Pending::new)
    }

    pub(crate) fn start_status(&self) -> Result<Call, Error> {
        Call::start(self.clone(), Ask::Status, None)
    }

    /// Keyframes of a video from a frame on, as many as one answer has.
    pub(crate) fn key_frames(&self, video: &Video, from: u64) -> Result<Vec<u64>, Error> {
        let ask = Ask::KeyFrames { video: video.clone(), from };
        match Call::start(self.clone(), ask, None)?.wait()? {
            Answer::KeyFrames(key_frames) => Ok(key_frames),
            Answer::SourceOpened(_) | Answer::Frames(_) | Answer::Status(_) | Answer::Ticket(_) => {
                Err(Error::Protocol("an answer of another kind".into()))
            }
        }
    }

    /// Opens a source, and says on which connection.
    pub(crate) fn open_source(
        &self,
        file: SourceFile,
        options: OpenOptions,
    ) -> Result<(Arc<Connection>, SourceOpened), Error> {
        source_of(self.start_open(file, options)?.wait_answered()?)
    }

    /// Never waits.
    pub(crate) fn start_open(&self, file: SourceFile, options: OpenOptions) -> Result<Call, Error> {
        Call::start(self.clone(), Ask::Open { file, options: Box::new(options) }, None)
    }

    /// True unless so much waits to be sent that further requests should not be made.
    pub(crate) fn has_room(&self) -> bool {
        !self.dispatcher().is_full()
            && self.open_connection().is_none_or(|connection| !connection.is_congested())
    }

    fn await_room(&self, patience: Duration) {
        match self.open_connection() {
            Some(connection) if connection.is_congested() => connection.await_room(patience),
            Some(_) | None => self.dispatcher().await_room(patience),
        }
    }

    pub(crate) fn wait_for_room(&self, deadline: Option<Instant>) -> Result<(), Error> {
        while !self.has_room() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                let message = "the deadline of the request passed while earlier ones waited to be sent";
                return Err(Error::Deadline(message.into()));
            }
            self.await_room(left.map_or(SLICE, |left| left.min(SLICE)));
        }
        Ok(())
    }

    fn dispatcher(&self) -> &Dispatcher {
        &self.shared.state.get().dispatcher
    }

    /// Has an errand sent by another thread.
    pub(crate) fn dispatch(&self, errand: &Arc<Errand>) {
        self.dispatcher().dispatch(self, errand);
    }

    /// The work of such a thread.
    pub(crate) fn run_dispatcher(&self) {
        self.dispatcher().run();
    }
}

/// The connection.
impl Client {
    fn current(&self) -> MutexGuard<'_, Current> {
        self.shared.state.get().current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn window(&self) -> Duration {
        self.shared.builder.reconnect_for.unwrap_or(RECONNECT_FOR)
    }

    /// The open connection of this process. Never waits.
    pub(crate) fn open_connection(&self) -> Option<Arc<Connection>> {
        let lost = {
            let mut current = self.current();
            match &current.connection {
                Some(connection) if connection.is_usable() => return Some(Arc::clone(connection)),
                Some(_) => current.lose("the daemon closed the connection", self.window()),
                None => None,
            }
        };
        drop(lost);
        None
    }

    /// A connection is of no use any more.
    pub(crate) fn note_loss(&self, connection: &Connection, reason: &str) {
        let lost = {
            let mut current = self.current();
            match &current.connection {
                Some(known) if known.serial() == connection.serial() => current.lose(reason, self.window()),
                Some(_) | None => None,
            }
        };
        drop(lost);
    }

    /// The open connection, or a new one to where the daemon was before. Tries for as long as the outage may
    /// last and the errand is wanted.
    pub(crate) fn reconnect(&self, errand: &Errand) -> Result<Arc<Connection>, Error> {
        let state = self.shared.state.get();
        let _dialling = state.dialling.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(connection) = self.open_connection() {
                return Ok(connection);
            }
            let (pause, end) = self.next_look();
            let now = Instant::now();
            let left = end.map(|end| end.saturating_duration_since(now));
            errand.pause(left.map_or(pause, |left| left.min(pause)));
            if !errand.is_queued() {
                return Err(Error::Cancelled("nobody waits for the request any more".into()));
            }
            let now = Instant::now();
            let is_last = end.is_some_and(|end| now >= end);
            // Without an end the handshake has its own limit.
            let patience = end.map_or(Duration::MAX, |end| end.saturating_duration_since(now));
            let home = Home::from_number(self.shared.home.load(Ordering::Acquire));
            let looked = locate::redial(&self.shared.builder, home, patience.max(LAST_LOOK));
            let is_denied = matches!(looked, Err(Redialled::Denied(_)));
            let is_denied_for_good = self.note_denied(is_denied);
            match looked {
                Ok(link) => {
                    let connection = Arc::new(Connection::new(link));
                    self.current().connection = Some(Arc::clone(&connection));
                    return Ok(connection);
                }
                Err(Redialled::Failed(error)) => return Err(error),
                Err(Redialled::Denied(error)) if is_denied_for_good || is_last => return Err(error),
                Err(Redialled::Absent(what)) if is_last => return Err(self.unavailable(&what)),
                Err(Redialled::Denied(_) | Redialled::Absent(_)) => {}
            }
        }
    }

    /// Counts a look for the daemon: how long to wait before it, and when looking ends.
    fn next_look(&self) -> (Duration, Option<Instant>) {
        let mut current = self.current();
        // Without a loss this is a forked child, whose parent was connected.
        let outage = current.outage.get_or_insert_with(|| {
            Outage::new(Instant::now(), "this process was forked and has to connect anew".into())
        });
        (outage.next_pause(), outage.end(self.window()))
    }

    fn note_denied(&self, is_denied: bool) -> bool {
        let mut current = self.current();
        current.outage.as_mut().is_some_and(|outage| outage.note_denied(Instant::now(), is_denied))
    }

    fn unavailable(&self, what: &str) -> Error {
        let current = self.current();
        let (reason, look_count) =
            current.outage.as_ref().map_or(("", 0), |outage| (outage.reason(), outage.look_count()));
        Error::unavailable(format!(
            "the reeld daemon is gone ({reason}) and was not back within {} s: {what}, looked \
             {look_count} times. Start it again",
            self.window().as_secs_f64()
        ))
    }
}

/// The source that was opened, and on which connection.
pub(crate) fn source_of(answered: Answered) -> Result<(Arc<Connection>, SourceOpened), Error> {
    match answered.answer {
        Answer::SourceOpened(opened) => Ok((answered.connection, *opened)),
        Answer::Frames(_) | Answer::Status(_) | Answer::KeyFrames(_) | Answer::Ticket(_) => {
            Err(Error::Protocol("an answer of another kind".into()))
        }
    }
}

pub(crate) fn status_of(answer: Answer) -> Result<Status, Error> {
    match answer {
        Answer::Status(status) => Ok(*status),
        Answer::SourceOpened(_) | Answer::Frames(_) | Answer::KeyFrames(_) | Answer::Ticket(_) => {
            Err(Error::Protocol("an answer of another kind".into()))
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("builder", &self.shared.builder).finish_non_exhaustive()
    }
}
