//! A connected socket as the loop sees it: messages go out without ever waiting, and what comes in becomes
//! events.
//!
//! Nothing that may carry a foreign file's descriptor is closed here: what is left of a connection goes to the
//! helpers. What the messages mean is known to `client` and `engines`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use reeld_protocol::message::Message;
use reeld_protocol::{Frame, FrameReader, Outbox, Received};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdRegisterError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::gates::{Gates, Turn};
use super::helpers::Line;
use super::{Event, PeerKey};

/// Bytes that may wait to be sent to one peer. A reply is about 100 bytes and requests in flight are limited,
/// so only a peer that has stopped reading comes near it.
const QUEUED_BYTES_MAX: usize = 1 << 20;

/// A message that has begun must be whole within this time. Peers send it with one or two calls, so only one
/// that is stopped in between takes long. Without a limit a peer could leave a descriptor of its own
/// connection with half a message, and the connection would outlive everyone who could end it.
const MESSAGE_WITHIN: Duration = Duration::from_secs(10);

/// How long to wait before a full socket is tried again whose readiness for writing cannot be watched.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// A connected socket that the loop reads.
///
/// It is watched for reading alone. Whoever watches for writing too is woken each time that the other side has taken
/// a message, though there has been room all the time: three needless wake-ups a request, at 20 us each.
#[derive(Debug)]
pub struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    /// Takes over a connected socket that does not block. Gives it back where it cannot be watched.
    pub fn new(fd: impl Into<OwnedFd>) -> Result<Socket, (OwnedFd, io::Error)> {
        let watched = watched(fd.into(), Interest::READABLE);
        watched.map(Socket)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn watched(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    // SAFETY: the descriptor is owned by the `AsyncFd` and open as long as that is registered.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(AsyncFdRegisterError::into_parts)
}

/// What is left of a connection. With its last copy the kernel closes the descriptors that nobody has read,
/// which may be those of a file system that does not answer.
#[derive(Debug)]
pub struct Remains {
    /// Whose socket it is or was.
    pub key: PeerKey,
    /// Whose file systems these are.
    pub line: Line,
    #[expect(dead_code, reason = "one of the copies of the socket, kept to be dropped elsewhere")]
    stream: Arc<Socket>,
    #[expect(dead_code, reason = "descriptors that no message claimed, kept to be dropped elsewhere")]
    fds: Vec<OwnedFd>,
}

/// The sending side of a connection.
#[derive(Debug)]
pub struct Peer {
    key: PeerKey,
    line: Line,
    stream: Arc<Socket>,
    outbox: Outbox,
    is_waiting: bool,
    events: mpsc::Sender<Event>,
}

impl Peer {
    /// Takes over a connection. Each message that needs an answer passes the gates, if given, before it
    /// becomes an event; until it has, the socket is not read.
    pub fn start(
        key: PeerKey,
        line: Line,
        stream: Socket,
        events: mpsc::Sender<Event>,
        gates: Option<Gates>,
    ) -> Peer {
        let stream = Arc::new(stream);
        let reading = Reading {
            key,
            line,
            stream: Arc::clone(&stream),
            events: events.clone(),
            reader: FrameReader::new(),
        };
        tokio::spawn(reading.run(gates));
        Peer { key, line, stream, outbox: Outbox::new(), is_waiting: false, events }
    }

    /// Queues a message and sends what can be sent.
    pub fn send<M: Message>(
        &mut self,
        message: &M,
        request_id: u64,
        fds: Vec<reeld_protocol::frame::OutgoingFd>,
    ) -> io::Result<()> {
        self.outbox.push(message, request_id, fds).map_err(|error| io::Error::other(error.to_string()))?;
        self.flush()
    }

    /// Queues a message whose body is already encoded and sends what can be sent.
    pub fn send_raw(&mut self, kind: u16, request_id: u64, body: &[u8]) -> io::Result<()> {
        self.outbox.push_raw(kind, request_id, body, Vec::new());
        self.flush()
    }

    /// Says that nothing more will be sent: the other side ends when it has done what it was told.
    pub fn finish(&mut self) {
        let _ = rustix::net::shutdown(self.stream.as_ref(), rustix::net::Shutdown::Write);
    }

    /// True while nothing waits to be sent.
    pub fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }

    /// The socket can be written to again.
    pub fn writable(&mut self) -> io::Result<()> {
        self.is_waiting = false;
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.outbox.queued_bytes() > QUEUED_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read what it asked for"));
        }
        if self.is_waiting || self.outbox.is_empty() {
            return Ok(());
        }
        match self.outbox.send(self.stream.as_ref(), SendFlags::DONTWAIT) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_waiting = true;
                let (key, line, stream) = (self.key, self.line, Arc::clone(&self.stream));
                let events = self.events.clone();
                tokio::spawn(async move {
                    await_room(stream.as_ref()).await;
                    let _ =
                        events.send(Event::Writable(Remains { key, line, stream, fds: Vec::new() })).await;
                });
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Waits until a socket can be written to again, or has ended: that shows at the next attempt to send.
async fn await_room(stream: &Socket) {
    // One descriptor can be watched once: this is another one of the same socket.
    let copy = stream
        .as_fd()
        .try_clone_to_owned()
        .and_then(|fd| watched(fd, Interest::WRITABLE).map_err(|(_, error)| error));
    match copy {
        Ok(copy) => drop(copy.writable().await.map(|_| ())),
        Err(error) => {
            tracing::debug!(%error, "a full socket cannot be watched");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The reading task holds the socket too: this ends it.
        let _ = rustix::net::shutdown(self.stream.as_ref(), rustix::net::Shutdown::Both);
        if let Ok(runtime) = Handle::try_current() {
            let (key, line, stream) = (self.key, self.line, Arc::clone(&self.stream));
            let remains = Remains { key, line, stream, fds: Vec::new() };
            let events = self.events.clone();
            runtime.spawn(async move {
                let _ = events.send(Event::Left(remains)).await;
            });
        }
    }
}

/// What a reading task works with.
struct Reading {
    key: PeerKey,
    line: Line,
    stream: Arc<Socket>,
    events: mpsc::Sender<Event>,
    reader: FrameReader,
}

impl Reading {
    async fn run(mut self, gates: Option<Gates>) {
        let reason = self.read_frames(gates.as_ref()).await.err();
        let Reading { key, line, stream, events, reader } = self;
        let remains = Remains { key, line, stream, fds: reader.into_fds() };
        let _ = events.send(Event::Gone { reason, remains }).await;
    }

    async fn read_frames(&mut self, gates: Option<&Gates>) -> io::Result<()> {
        let mut is_ready = false;
        // Until when the message that has begun must be whole.
        let mut due: Option<Instant> = None;
        loop {
            let receive = self.receive(is_ready);
            let received = match due {
                None => receive.await?,
                Some(due) => tokio::time::timeout_at(due, receive).await.map_err(|_| half_a_message())??,
            };
            is_ready = false;
            while let Some(frame) =
                self.reader.next_frame().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?
            {
                due = None;
                let (turn, is_over) = match self.wait_for_turn(&frame, gates).await {
                    Admission::AtOnce(turn) => (turn, false),
                    Admission::Waited(turn) => {
                        is_ready = true;
                        (Some(turn), false)
                    }
                    Admission::Never => (None, true),
                };
                let (key, line) = (self.key, self.line);
                if self.events.send(Event::Frame { key, line, frame, turn }).await.is_err() || is_over {
                    return Ok(());
                }
            }
            let fds = self.reader.take_strays();
            if !fds.is_empty() {
                let (key, line, stream) = (self.key, self.line, Arc::clone(&self.stream));
                let remains = Remains { key, line, stream, fds };
                let _ = self.events.send(Event::Left(remains)).await;
            }
            if received == Received::Closed {
                return Ok(());
            }
            if !self.reader.is_empty() {
                due = due.or_else(|| Some(Instant::now() + MESSAGE_WITHIN));
            }
        }
    }

    /// Reads once. `is_ready`: there may be something to read of which no event is going to tell.
    async fn receive(&mut self, is_ready: bool) -> io::Result<Received> {
        let (stream, reader) = (self.stream.as_ref(), &mut self.reader);
        if is_ready {
            match reader.receive(stream, RecvFlags::DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                settled => return settled,
            }
        }
        loop {
            let mut ready = stream.0.readable().await?;
            match reader.receive(stream, RecvFlags::DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                settled => {
                    // What comes from now on is an event of its own: no need to look whether there is more.
                    if reader.is_drained() {
                        ready.clear_ready();
                    }
                    return settled;
                }
            }
        }
    }

    /// Requests wait while too many are unanswered; notices, which give things back, do not. The end of the
    /// connection ends the wait.
    async fn wait_for_turn(&self, frame: &Frame, gates: Option<&Gates>) -> Admission {
        let Some(gates) = gates.filter(|_| frame.header.request_id != 0) else {
            return Admission::AtOnce(None);
        };
        // Given back by the loop, with the terminal reply.
        if let Some(turn) = gates.try_pass() {
            return Admission::AtOnce(Some(turn));
        }
        tokio::select! {
            turn = gates.pass() => match turn {
                Some(turn) => Admission::Waited(turn),
                // The client was let go.
                None => Admission::Never,
            },
            () = self.end() => Admission::Never,
        }
    }

    /// Waits until the other side has closed the socket, whatever is still unread.
    async fn end(&self) {
        loop {
            // Errors of the registration mean that the runtime ends.
            let Ok(mut ready) = self.stream.0.readable().await else { return };
            if ready.ready().is_read_closed() {
                return;
            }
            // Bytes wait that nobody may read yet. Taking note of them lets the next event through; it is
            // made up for in `receive`.
            ready.clear_ready();
        }
    }
}

fn half_a_message() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "half a message, and then nothing")
}

/// How a message came to its turn. Messages that need no answer, and those of engines, have none.
enum Admission {
    AtOnce(Option<Turn>),
    /// After a wait in which readiness was consumed.
    Waited(Turn),
    /// The connection ended before.
    Never,
}
