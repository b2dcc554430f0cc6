//! A connected socket as the loop sees it: messages go out without ever waiting, and what comes in becomes
//! events.
//!
//! Nothing that may carry a foreign file's descriptor is closed here: what is left of a connection goes to the
//! helpers. What the messages mean is known to `client` and `engines`.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use reeld_protocol::message::Message;
use reeld_protocol::{Frame, FrameReader, Outbox, Received};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::gates::{Gates, Turn};
use super::helpers::Line;
use super::{Event, PeerKey};

/// Bytes that may wait to be sent to one peer. A reply is about 100 bytes and requests in flight are limited,
/// so only a peer that has stopped reading comes near it.
const QUEUED_BYTES_MAX: usize = 1 << 20;

/// What is left of a connection. With its last copy the kernel closes the descriptors that nobody has read,
/// which may be those of a file system that does not answer.
#[derive(Debug)]
pub struct Remains {
    /// Whose socket it is or was.
    pub key: PeerKey,
    /// Whose file systems these are.
    pub line: Line,
    #[expect(dead_code, reason = "one of the copies of the socket, kept to be dropped elsewhere")]
    stream: Arc<UnixStream>,
    #[expect(dead_code, reason = "descriptors that no message claimed, kept to be dropped elsewhere")]
    fds: Vec<OwnedFd>,
}

/// The sending side of a connection.
#[derive(Debug)]
pub struct Peer {
    key: PeerKey,
    line: Line,
    stream: Arc<UnixStream>,
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
        stream: UnixStream,
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
        let (stream, outbox) = (&self.stream, &mut self.outbox);
        match stream.try_io(Interest::WRITABLE, || outbox.send(stream.as_ref(), SendFlags::DONTWAIT)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_waiting = true;
                let (key, line, stream) = (self.key, self.line, Arc::clone(&self.stream));
                let events = self.events.clone();
                tokio::spawn(async move {
                    // An error shows again at the next attempt to send.
                    let _ = stream.writable().await;
                    let _ =
                        events.send(Event::Writable(Remains { key, line, stream, fds: Vec::new() })).await;
                });
                Ok(())
            }
            Err(error) => Err(error),
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
    stream: Arc<UnixStream>,
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
        loop {
            let received = self.receive(is_ready).await?;
            is_ready = false;
            while let Some(frame) =
                self.reader.next_frame().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?
            {
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
        stream.async_io(Interest::READABLE, || reader.receive(stream, RecvFlags::DONTWAIT)).await
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
            let Ok(ready) = self.stream.ready(Interest::READABLE).await else { return };
            if ready.is_read_closed() {
                return;
            }
            // Bytes wait that nobody may read yet. Taking note of them lets the next event through; it is
            // made up for in `receive`.
            let _ = self.stream.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
    }
}

/// How a message came to its turn. Messages that need no answer, and those of engines, have none.
enum Admission {
    AtOnce(Option<Turn>),
    /// After a wait in which readiness was consumed.
    Waited(Turn),
    /// The connection ended before.
    Never,
}
