//! The engine's end of the socketpair: requests in, replies out, in order.
//!
//! What does not live here: what a request means.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use reeld_protocol::codec::CodecError;
use reeld_protocol::frame::{Frame, FrameError, FrameReader, Outbox, Received};
use reeld_protocol::message::Message;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::link::{EngineReply, EngineRequest};

/// Requests that wait while another is worked on. The broker gives an engine one job at a time and what
/// belongs to it; more means that it has lost count.
const WAITING_MAX: usize = 1024;

/// A request with its file descriptor, if it has one.
pub type Letter = (EngineRequest, Option<OwnedFd>);

/// The engine's end.
pub struct Mailbox {
    socket: OwnedFd,
    reader: FrameReader,
    outbox: Outbox,
    waiting: VecDeque<Letter>,
}

/// Why the conversation cannot go on. The engine ends.
#[derive(Debug, thiserror::Error)]
pub enum MailboxError {
    /// The socket failed.
    #[error("the broker cannot be reached: {0}")]
    Io(#[from] io::Error),
    /// Not the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A body that is no message.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A kind of message that engines do not get.
    #[error("a message of kind {0:#06x} is not for engines")]
    WrongKind(u16),
    /// An arena did not come over. A fresh engine, with fewer files open, can go on.
    #[error("this process may not open more files; raise its limit of open files")]
    NoDescriptors,
    /// The broker does not wait for replies.
    #[error("more than {WAITING_MAX} requests are waiting")]
    Flooded,
}

impl Mailbox {
    /// Over a connected stream socket.
    pub fn new(socket: OwnedFd) -> Self {
        Mailbox { socket, reader: FrameReader::new(), outbox: Outbox::new(), waiting: VecDeque::new() }
    }

    /// Waits for the next request. None when the broker has gone.
    pub fn next(&mut self) -> Result<Option<Letter>, MailboxError> {
        loop {
            if let Some(letter) = self.waiting.pop_front() {
                return Ok(Some(letter));
            }
            self.await_bytes()?;
            if self.receive(RecvFlags::DONTWAIT)? == Some(Received::Closed) {
                return Ok(None);
            }
        }
    }

    /// Takes in what has come meanwhile, without waiting, and hands out what `is_wanted` now; the rest keeps
    /// its order and its turn.
    pub fn take_if(
        &mut self,
        is_wanted: impl Fn(&EngineRequest) -> bool,
    ) -> Result<Vec<Letter>, MailboxError> {
        while self.receive(RecvFlags::DONTWAIT)? == Some(Received::Bytes) {}
        let mut taken = Vec::new();
        let mut left = VecDeque::with_capacity(self.waiting.len());
        for letter in self.waiting.drain(..) {
            if is_wanted(&letter.0) { taken.push(letter) } else { left.push_back(letter) }
        }
        self.waiting = left;
        Ok(taken)
    }

    /// Sends a reply, waiting for room if need be.
    pub fn send(&mut self, reply: &EngineReply, fd: Option<OwnedFd>) -> Result<(), MailboxError> {
        self.outbox.push(reply, 0, fd.map(Arc::new).into_iter().collect())?;
        Ok(self.outbox.send(&self.socket, SendFlags::empty())?)
    }

    /// Waits until there is something to read. Not by a read that blocks: that is woken by the broker's taking of a
    /// reply, too, only to fall asleep again.
    fn await_bytes(&self) -> io::Result<()> {
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads once. None if nothing is there.
    fn receive(&mut self, flags: RecvFlags) -> Result<Option<Received>, MailboxError> {
        let received = match self.reader.receive(&self.socket, flags) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Some(Received::Bytes)),
            Err(error) => return Err(error.into()),
        };
        while let Some(frame) = self.reader.next_frame()? {
            if self.waiting.len() >= WAITING_MAX {
                return Err(MailboxError::Flooded);
            }
            self.waiting.push_back(letter(frame)?);
        }
        Ok(Some(received))
    }
}

fn letter(frame: Frame) -> Result<Letter, MailboxError> {
    let kind = frame.header.kind;
    let request = EngineRequest::decode(kind, &frame.body)?.ok_or(MailboxError::WrongKind(kind))?;
    if frame.are_fds_lost() && matches!(request, EngineRequest::AddArena { .. }) {
        return Err(MailboxError::NoDescriptors);
    }
    Ok((request, frame.fds.into_iter().next()))
}
