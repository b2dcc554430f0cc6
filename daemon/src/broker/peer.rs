//! A connected socket as the loop sees it: messages go out without ever waiting, and what comes in becomes
//! events.
//!
//! What the messages mean is known to `client` and `engines`.

use std::io;
use std::sync::Arc;

use reeld_protocol::message::Message;
use reeld_protocol::{Frame, FrameReader, Outbox, Received};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};

use super::{Event, PeerKey};

/// Bytes that may wait to be sent to one peer. A reply is about 100 bytes and requests in flight are limited,
/// so only a peer that has stopped reading comes near it.
const QUEUED_BYTES_MAX: usize = 1 << 20;

/// The sending side of a connection.
#[derive(Debug)]
pub struct Peer {
    key: PeerKey,
    stream: Arc<UnixStream>,
    outbox: Outbox,
    is_waiting: bool,
    events: mpsc::Sender<Event>,
}

impl Peer {
    /// Takes over a connection. Each message that needs an answer takes a permit of `requests`, if given,
    /// before it becomes an event; without one, the socket is not read.
    pub fn start(
        key: PeerKey,
        stream: UnixStream,
        events: mpsc::Sender<Event>,
        requests: Option<Arc<Semaphore>>,
    ) -> Peer {
        let stream = Arc::new(stream);
        tokio::spawn(read(key, Arc::clone(&stream), events.clone(), requests));
        Peer { key, stream, outbox: Outbox::new(), is_waiting: false, events }
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
                let (key, stream, events) = (self.key, Arc::clone(&self.stream), self.events.clone());
                tokio::spawn(async move {
                    // An error shows again at the next attempt to send.
                    let _ = stream.writable().await;
                    let _ = events.send(Event::Writable(key)).await;
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
    }
}

async fn read(
    key: PeerKey,
    stream: Arc<UnixStream>,
    events: mpsc::Sender<Event>,
    requests: Option<Arc<Semaphore>>,
) {
    let reason = read_frames(key, &stream, &events, requests.as_deref()).await.err();
    let _ = events.send(Event::Gone { key, reason }).await;
}

async fn read_frames(
    key: PeerKey,
    stream: &UnixStream,
    events: &mpsc::Sender<Event>,
    requests: Option<&Semaphore>,
) -> io::Result<()> {
    let mut reader = FrameReader::new();
    loop {
        let received =
            stream.async_io(Interest::READABLE, || reader.receive(stream, RecvFlags::DONTWAIT)).await?;
        while let Some(frame) =
            reader.next_frame().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?
        {
            wait_for_turn(&frame, requests).await;
            if events.send(Event::Frame { key, frame }).await.is_err() {
                return Ok(());
            }
        }
        if received == Received::Closed {
            return Ok(());
        }
    }
}

/// Requests wait while too many are unanswered; notices, which give things back, do not.
async fn wait_for_turn(frame: &Frame, requests: Option<&Semaphore>) {
    if frame.header.request_id == 0 {
        return;
    }
    if let Some(requests) = requests
        && let Ok(permit) = requests.acquire().await
    {
        // Given back by the loop, with the terminal reply.
        permit.forget();
    }
}
