//! [`SimulatedClient`]: what one client asked for, what it must get for it, and what it holds. The model against
//! which the broker is checked.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use reeld_protocol::error::ErrorCode;
use reeld_protocol::frame::{FrameReader, Received};
use reeld_protocol::ids::{ArenaId, LeaseId, SourceId};
use reeld_protocol::message::{Dtype, FramesReply, Message, Notice, PartLayout, Reply, Ticket, kind};
use reeld_protocol::{Frame, Transforms, Welcome};
use rustix::net::RecvFlags;

use super::engine::inode_of;
use super::media::paint;

/// What a request must bring if it does not fail.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// A source of this file.
    Source(usize),
    /// For each part these stamps, in frames of that size.
    Frames(Vec<ExpectedPart>),
    /// A status.
    Status,
    /// These indices.
    KeyFrames(Vec<u64>),
    /// A ticket for this lease.
    Ticket(LeaseId),
    /// What a ticket stands for.
    Redeemed(Box<Redeemed>),
    /// An error.
    Error,
}

/// What a ticket must bring.
#[derive(Clone, Debug, PartialEq)]
pub struct Redeemed {
    /// What its issuer said of the slot.
    pub frames: FramesReply,
    /// What lies in it.
    pub parts: Vec<ExpectedPart>,
    /// Whether it must bring that, must not, or may (none).
    pub is_due: Option<bool>,
}

/// A ticket as its issuer got it.
#[derive(Clone, Debug)]
pub struct HeldTicket {
    /// Its number.
    pub ticket: Ticket,
    /// The slot.
    pub frames: FramesReply,
    /// What lies in it.
    pub parts: Vec<ExpectedPart>,
    /// The memory: inode, offset, length.
    pub slot: (u64, u64, u64),
}

/// Memory that somebody may still have mapped who is not there any more.
#[derive(Debug)]
pub struct Haunted {
    /// Inode, offset, length.
    pub slot: (u64, u64, u64),
    /// Keeps the inode from being another file's.
    _fd: Arc<OwnedFd>,
}

/// What a part must bring.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpectedPart {
    /// One for each row.
    pub stamps: Vec<f64>,
    /// What was done to the pictures.
    pub transforms: Transforms,
    /// Rows of a frame, after that.
    pub height: u32,
    /// Columns of a frame, after that.
    pub width: u32,
    /// Type of the values.
    pub dtype: Dtype,
}

/// An arena as the client got it.
#[derive(Debug)]
struct Arena {
    fd: Arc<OwnedFd>,
    bytes: u64,
    inode: u64,
    is_borrowed: bool,
}

/// A lease that is held.
#[derive(Debug)]
struct Held {
    frames: FramesReply,
    parts: Vec<ExpectedPart>,
    is_borrowed: bool,
}

/// One client.
#[derive(Debug)]
pub struct SimulatedClient {
    /// What the broker calls it.
    pub key: u64,
    socket: UnixStream,
    reader: FrameReader,
    /// Sources that are open: name and file.
    pub sources: Vec<(SourceId, usize)>,
    /// Unanswered requests.
    pub unanswered: BTreeMap<u64, Expected>,
    next_request: u64,
    quota_bytes: u64,
    arenas: BTreeMap<ArenaId, Arena>,
    held: BTreeMap<LeaseId, Held>,
    /// Tickets that it has just been issued.
    pub issued: Vec<HeldTicket>,
    /// A lease that was given back.
    pub returned: Option<LeaseId>,
    /// What the last error said.
    #[cfg(test)]
    pub last_error: Option<ErrorCode>,
    /// Requests that were answered with frames.
    pub frames_replies: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
}

impl SimulatedClient {
    /// A client that is about to say hello.
    pub fn new(key: u64, socket: UnixStream) -> SimulatedClient {
        SimulatedClient {
            key,
            socket,
            reader: FrameReader::new(),
            sources: Vec::new(),
            unanswered: BTreeMap::new(),
            next_request: 0,
            quota_bytes: 0,
            arenas: BTreeMap::new(),
            held: BTreeMap::new(),
            issued: Vec::new(),
            returned: None,
            #[cfg(test)]
            last_error: None,
            frames_replies: 0,
            errors: 0,
        }
    }

    /// A name for a request, and what it must bring.
    pub fn expect(&mut self, expected: Expected) -> u64 {
        self.next_request += 1;
        self.unanswered.insert(self.next_request, expected);
        self.next_request
    }

    /// Leases that are held, in order.
    pub fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.held.keys().copied()
    }

    /// Gives a lease up; what lies in it must still be what it was.
    pub fn give_up(&mut self, lease: LeaseId) {
        let held = self.held.remove(&lease).expect("a lease that is held");
        self.check_content(&held);
        self.returned = Some(lease);
    }

    /// What lies in all leases must still be what it was.
    pub fn check_contents(&self) {
        self.held.values().for_each(|held| self.check_content(held));
    }

    /// The memory of others that whoever it forked may still have mapped.
    pub fn haunted(&self) -> impl Iterator<Item = Haunted> {
        self.held.values().filter(|held| held.is_borrowed).map(|held| {
            let fd = Arc::clone(&self.arenas[&held.frames.arena].fd);
            Haunted { slot: self.slot(&held.frames), _fd: fd }
        })
    }

    fn slot(&self, frames: &FramesReply) -> (u64, u64, u64) {
        (self.arenas[&frames.arena].inode, frames.slot_offset, frames.slot_bytes)
    }

    /// The memory that it may use: inode, offset, length.
    pub fn slots(&self) -> Vec<(u64, u64, u64)> {
        self.held.values().map(|held| self.slot(&held.frames)).collect()
    }

    /// Reads everything that the broker has said. True if it said something.
    pub fn read(&mut self) -> bool {
        let mut has_heard = false;
        loop {
            while let Some(frame) = self.reader.next_frame().expect("the broker keeps to the framing") {
                self.hear(frame);
            }
            match self.reader.receive(&self.socket, RecvFlags::DONTWAIT) {
                Ok(Received::Bytes) => has_heard = true,
                Ok(Received::Closed) => panic!("a client that keeps to the protocol was let go"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return has_heard,
                Err(error) => panic!("a client's socket: {error}"),
            }
        }
    }

    fn hear(&mut self, mut frame: Frame) {
        let (number, id) = (frame.header.kind, frame.header.request_id);
        if number == kind::WELCOME {
            self.quota_bytes = Welcome::from_bytes(&frame.body).expect("a welcome").quota_bytes;
        } else if id != 0 {
            let reply = Reply::decode(number, &frame.body).expect("a body that can be read");
            self.hear_reply(id, reply.expect("a reply"));
        } else {
            let notice = Notice::decode(number, &frame.body).expect("a body that can be read");
            self.hear_notice(&notice.expect("a notice"), frame.fds.pop());
        }
    }

    fn hear_notice(&mut self, notice: &Notice, fd: Option<OwnedFd>) {
        match *notice {
            Notice::ArenaGranted { arena, bytes } => {
                let fd = fd.expect("an arena is one file");
                reeld_protocol::Arena::map(&fd, bytes).expect("an arena that can be mapped");
                let (inode, fd) = (inode_of(&fd), Arc::new(fd));
                // It comes right before the answer.
                let is_redeeming = |expected: &Expected| matches!(expected, Expected::Redeemed(_));
                let is_borrowed = self.unanswered.values().any(is_redeeming);
                let new = Arena { fd, bytes, inode, is_borrowed };
                assert!(self.arenas.insert(arena, new).is_none(), "{arena} twice");
                let own = self.arenas.values().filter(|arena| !arena.is_borrowed);
                let total: u64 = own.map(|arena| arena.bytes).sum();
                assert!(total <= self.quota_bytes, "arenas of {total} bytes are over the quota");
            }
            Notice::ArenaRevoked(arena) => {
                assert!(self.arenas.remove(&arena).is_some(), "{arena} was not granted");
                let is_used = self.held.values().any(|held| held.frames.arena == arena);
                assert!(!is_used, "{arena} is revoked under a lease");
            }
            Notice::Release(_)
            | Notice::CloseSource(_)
            | Notice::Cancel(_)
            | Notice::Session
            | Notice::Copied { .. }
            | Notice::Prefetch(_) => panic!("not for clients"),
        }
    }

    fn hear_reply(&mut self, id: u64, reply: Reply) {
        let expected =
            self.unanswered.remove(&id).unwrap_or_else(|| panic!("{id} is answered twice: {reply:?}"));
        match (reply, expected) {
            (Reply::Error(error), expected) => {
                if let Expected::Redeemed(redeemed) = &expected {
                    assert_ne!(redeemed.is_due, Some(true), "{error}");
                    assert_eq!(error.code, ErrorCode::FramesLost);
                }
                let is_our_mistake =
                    error.code == ErrorCode::Internal && !error.message.starts_with("simulated");
                assert!(!is_our_mistake, "{id}: {error}");
                #[cfg(test)]
                {
                    self.last_error = Some(error.code);
                }
                self.errors += 1;
            }
            (Reply::SourceOpened(opened), Expected::Source(file)) => self.sources.push((opened.source, file)),
            (Reply::Status(_), Expected::Status) => {}
            (Reply::KeyFrames(found), Expected::KeyFrames(expected)) => assert_eq!(found, expected),
            (Reply::Frames(frames), Expected::Frames(parts)) => self.take(frames, parts, false),
            (Reply::TicketIssued(ticket), Expected::Ticket(lease)) => {
                // It may have given the lease back meanwhile.
                if let Some(held) = self.held.get(&lease) {
                    let (frames, parts) = (held.frames.clone(), held.parts.clone());
                    let slot = self.slot(&frames);
                    self.issued.push(HeldTicket { ticket, frames, parts, slot });
                }
            }
            (Reply::Frames(frames), Expected::Redeemed(redeemed)) => {
                assert_ne!(redeemed.is_due, Some(false), "a ticket that is of no use any more");
                assert!(frames.parts.is_empty());
                let layout = redeemed.frames.parts;
                self.take(FramesReply { parts: layout, ..frames }, redeemed.parts, true);
            }
            (reply, expected) => panic!("{id}: {reply:?}, not {expected:?}"),
        }
    }

    fn take(&mut self, frames: FramesReply, parts: Vec<ExpectedPart>, is_borrowed: bool) {
        self.frames_replies += 1;
        let (begin, end) = (frames.slot_offset, frames.slot_offset + frames.slot_bytes);
        let arena = self.arenas.get(&frames.arena).expect("an arena that was granted");
        assert!(end <= arena.bytes, "{frames:?} reaches out of an arena of {} bytes", arena.bytes);
        for other in self.held.values().filter(|held| held.frames.arena == frames.arena) {
            let other = &other.frames;
            let is_apart = end <= other.slot_offset || other.slot_offset + other.slot_bytes <= begin;
            let is_same = is_borrowed && (begin, frames.slot_bytes) == (other.slot_offset, other.slot_bytes);
            assert!(is_apart || is_same, "{frames:?} overlaps {other:?}");
        }
        let held = Held { frames, parts, is_borrowed };
        self.check_layout(&held);
        self.check_content(&held);
        let lease = held.frames.lease;
        assert!(self.held.insert(lease, held).is_none(), "{lease} is granted twice");
    }

    fn check_layout(&self, held: &Held) {
        assert_eq!(held.frames.parts.len(), held.parts.len());
        let mut stretches = Vec::new();
        for (layout, part) in held.frames.parts.iter().zip(&held.parts) {
            let PartLayout { frame_count, height, width, channels, dtype, .. } = *layout;
            let size = (part.stamps.len() as u64, part.height, part.width, 3, part.dtype);
            assert_eq!((frame_count, height, width, channels, dtype), size);
            stretches.push((layout.pixels_offset, layout.frame_bytes() * frame_count));
            stretches.push((layout.pts_offset, 8 * frame_count));
            stretches.push((layout.durations_offset, 8 * frame_count));
        }
        stretches.retain(|(_, bytes)| *bytes > 0);
        stretches.sort_unstable();
        let is_apart = stretches.is_sorted_by(|one, other| one.0 + one.1 <= other.0);
        let is_inside = stretches.last().is_none_or(|last| last.0 + last.1 <= held.frames.slot_bytes);
        assert!(is_apart && is_inside, "{:?}", held.frames);
    }

    fn check_content(&self, held: &Held) {
        let arena = &self.arenas[&held.frames.arena];
        let read = |offset: u64, bytes: u64| {
            let mut content = vec![0; bytes as usize];
            let read = rustix::io::pread(&arena.fd, &mut content, held.frames.slot_offset + offset);
            assert_eq!(read, Ok(content.len()));
            content
        };
        for (layout, part) in held.frames.parts.iter().zip(&held.parts) {
            for (row, stamp) in part.stamps.iter().enumerate() {
                let row = row as u64;
                assert_eq!(read(layout.pts_offset + 8 * row, 8), stamp.to_le_bytes(), "{:?}", held.frames);
                assert_eq!(read(layout.durations_offset + 8 * row, 8), 1f64.to_le_bytes());
                let pixels = read(layout.pixels_offset + row * layout.frame_bytes(), layout.frame_bytes());
                let shade = paint(*stamp, part.transforms.as_slice());
                assert!(pixels.iter().all(|value| *value == shade), "pixels of {:?}", held.frames);
            }
        }
    }
}
