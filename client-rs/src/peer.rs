//! A daemon's end of a socketpair, for unit tests: it answers by hand, message by message.
//!
//! It decodes nothing and decides nothing; end-to-end tests use the real daemon.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use reeld_protocol::arena::create_arena;
use reeld_protocol::error::ErrorCode;
use reeld_protocol::message::{
    Dtype, FramesReply, GetFrames, Message, Part, PartLayout, Reply, Request, Wanted,
};
use reeld_protocol::{
    Arena, ArenaId, Frame, FrameReader, LeaseId, Notice, Outbox, Received, SourceId, Welcome, WireError,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags};

use crate::calls::{CallKey, Expected};
use crate::link::{Link, SubmitError};
use crate::socket::Socket;

/// Bytes of one frame of the results that [`Peer::send_frames`] sends.
pub(crate) const FRAME_BYTES: u64 = 4096;

/// Bytes of such a result's slot: one frame and two times.
pub(crate) const SLOT_BYTES: u64 = 2 * FRAME_BYTES;

/// What a client sent.
#[derive(Debug)]
pub(crate) enum Said {
    Request(u64, Request),
    Notice(Notice),
}

/// The daemon's end.
pub(crate) struct Peer {
    pub(crate) socket: UnixStream,
    reader: FrameReader,
    outbox: Outbox,
    pub(crate) arena: Option<Arena>,
    heard: VecDeque<Said>,
}

impl Peer {
    /// Both ends of a connection.
    pub(crate) fn connected(quota_bytes: u64) -> (Arc<Link>, Peer) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let welcome = Welcome {
            major: 1,
            minor: 0,
            features: 0,
            instance: 0,
            quota_bytes,
            requests_max: 64,
            daemon: "peer".into(),
            ffmpeg: String::new(),
        };
        let link = Link::new(Socket::new(ours).unwrap(), welcome, FrameReader::new());
        let (reader, outbox) = (FrameReader::new(), Outbox::new());
        (link, Peer { socket: theirs, reader, outbox, arena: None, heard: VecDeque::new() })
    }

    /// The next message, however long it takes.
    pub(crate) fn hear(&mut self) -> Said {
        loop {
            if let Some(said) = self.heard.pop_front() {
                return said;
            }
            if let Some(frame) = self.reader.next_frame().unwrap() {
                self.heard.push_back(understand(&frame));
            } else {
                assert_eq!(self.reader.receive(&self.socket, RecvFlags::empty()).unwrap(), Received::Bytes);
            }
        }
    }

    /// True if something came that was not heard yet.
    pub(crate) fn can_hear(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        !self.heard.is_empty()
            || !self.reader.is_empty()
            || rustix::event::poll(&mut fds, Some(&now)) == Ok(1)
    }

    /// The next message, which must be a request.
    pub(crate) fn hear_request(&mut self) -> u64 {
        match self.hear() {
            Said::Request(id, _) => id,
            Said::Notice(notice) => panic!("expected a request, got {notice:?}"),
        }
    }

    /// The next message, which must be a notice.
    pub(crate) fn hear_notice(&mut self) -> Notice {
        match self.hear() {
            Said::Notice(notice) => notice,
            Said::Request(id, request) => panic!("expected a notice, got request {id} {request:?}"),
        }
    }

    pub(crate) fn send<M: Message>(&mut self, message: &M, request_id: u64, fds: Vec<OwnedFd>) {
        self.outbox.push(message, request_id, fds.into_iter().map(Arc::new).collect()).unwrap();
        self.outbox.send(&self.socket, SendFlags::empty()).unwrap();
    }

    /// Bytes that need not mean anything.
    pub(crate) fn send_raw(&mut self, kind: u16, request_id: u64, body: &[u8]) {
        self.outbox.push_raw(kind, request_id, body, Vec::new());
        self.outbox.send(&self.socket, SendFlags::empty()).unwrap();
    }

    /// Grants arena 1.
    pub(crate) fn grant_arena(&mut self, bytes: u64) {
        let fd = create_arena(bytes).unwrap();
        self.arena = Some(Arena::map(&fd, bytes).unwrap());
        self.send(&Notice::ArenaGranted { arena: ArenaId(1), bytes }, 0, vec![fd]);
    }

    /// Answers with one frame of that value, in the slot of that number.
    pub(crate) fn send_frames(&mut self, request_id: u64, lease: u64, value: u8) {
        let reply = frames_reply(lease);
        let slot = self.arena.as_ref().unwrap().slice(reply.slot_offset, SLOT_BYTES).unwrap();
        // SAFETY: the slot lies in a live mapping, and the client has no lease of it yet.
        unsafe { slot.write_bytes(value, FRAME_BYTES as usize) };
        self.send(&Reply::Frames(reply), request_id, Vec::new());
    }

    pub(crate) fn send_error(&mut self, request_id: u64, code: ErrorCode, is_retryable: bool) {
        let error = WireError { code, is_retryable, message: "no".into() };
        self.send(&Reply::Error(error), request_id, Vec::new());
    }
}

/// A result of one frame whose slot and lease have the same number.
pub(crate) fn frames_reply(lease: u64) -> FramesReply {
    let layout = PartLayout {
        frame_count: 1,
        height: 1,
        width: FRAME_BYTES as u32,
        channels: 1,
        dtype: Dtype::Uint8,
        pixels_offset: 0,
        pts_offset: FRAME_BYTES,
        durations_offset: FRAME_BYTES + 8,
    };
    FramesReply {
        lease: LeaseId(lease),
        arena: ArenaId(1),
        slot_offset: lease * SLOT_BYTES,
        slot_bytes: SLOT_BYTES,
        parts: vec![layout],
    }
}

/// Asks for one frame.
pub(crate) fn ask(link: &Arc<Link>) -> CallKey {
    let part = Part {
        source: SourceId(1),
        wanted: Wanted::PlayedAt(0.0),
        dtype: Dtype::Uint8,
        transforms: Vec::new(),
    };
    let request = Request::GetFrames(GetFrames { parts: vec![part], priority: 0, timeout_millis: None });
    match link.submit(&request, Vec::new(), Expected::Frames(vec![Dtype::Uint8]), None) {
        Ok(key) => key,
        Err(SubmitError::Closed) => panic!("the link is closed"),
        Err(SubmitError::Failed(error)) => panic!("{error}"),
    }
}

fn understand(frame: &Frame) -> Said {
    match frame.header.request_id {
        0 => Said::Notice(Notice::decode(frame.header.kind, &frame.body).unwrap().unwrap()),
        id => Said::Request(id, Request::decode(frame.header.kind, &frame.body).unwrap().unwrap()),
    }
}
