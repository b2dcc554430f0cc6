//! [`Inbound`]: what comes from the daemon: bytes, messages, arenas.
//!
//! Whom an answer concerns is not known here: that is `calls.rs`.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use reeld_protocol::message::{FramesReply, Message, Reply};
use reeld_protocol::vigil::Vigil;
use reeld_protocol::{Arena, ArenaId, Frame, FrameReader, Notice, Received};
use rustix::net::RecvFlags;

use crate::calls::Closed;
use crate::layout::PartPlace;
use crate::memory::Memory;

/// Arenas of one connection that are mapped at a time, its own and others'. They double in size, so that even a quota of many
/// terabytes takes fewer, results with an arena of their own included.
const ARENAS_MAX: usize = 8192;

/// The receiving side of a connection. Whoever leads has it.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    reader: FrameReader,
    arenas: HashMap<ArenaId, Arc<Arena>>,
    /// Of the threads that lead, one after the other.
    pub(crate) vigil: Vigil,
}

/// What one message says.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// Nothing that concerns a call.
    Notice,
    /// The answer to a request; none where its kind is unknown.
    Reply { request_id: u64, reply: Option<Reply> },
}

/// A slot of a reply, after all checks.
pub(crate) struct Slot {
    pub(crate) arena: Arc<Arena>,
    pub(crate) address: std::ptr::NonNull<u8>,
    pub(crate) bytes: usize,
    pub(crate) places: Vec<PartPlace>,
}

impl Inbound {
    /// Goes on with the reader of the handshake: arenas may have come right behind it.
    pub(crate) fn new(reader: FrameReader) -> Inbound {
        Inbound { reader, arenas: HashMap::new(), vigil: Vigil::default() }
    }

    /// Reads once.
    pub(crate) fn receive(&mut self, socket: impl AsFd, flags: RecvFlags) -> io::Result<Received> {
        self.reader.receive(socket, flags)
    }

    /// The next whole message that was read.
    pub(crate) fn next(&mut self) -> Result<Option<Arrival>, Closed> {
        let broken = |error: &dyn std::fmt::Display| Closed::Broken(error.to_string());
        let Some(frame) = self.reader.next_frame().map_err(|error| broken(&error))? else {
            return Ok(None);
        };
        if frame.are_fds_lost() {
            let reason = "this process may not open more files: the daemon's memory file was lost on its way; raise \
                          the limit of open files (`ulimit -n`)";
            return Err(Closed::Lost(reason.into()));
        }
        let Frame { header, body, fds } = frame;
        if header.request_id == 0 {
            // A notice of a later minor version is passed over.
            if let Some(notice) = Notice::decode(header.kind, &body).map_err(|error| broken(&error))? {
                self.take_notice(&notice, fds)?;
            }
            return Ok(Some(Arrival::Notice));
        }
        let reply = Reply::decode(header.kind, &body).map_err(|error| broken(&error))?;
        Ok(Some(Arrival::Reply { request_id: header.request_id, reply }))
    }

    fn take_notice(&mut self, notice: &Notice, fds: Vec<OwnedFd>) -> Result<(), Closed> {
        match notice {
            Notice::ArenaGranted { arena, bytes } => self.map_arena(*arena, *bytes, fds),
            Notice::ArenaRevoked(arena) => {
                // Frames that are still held keep their mapping.
                self.arenas.remove(arena);
                Ok(())
            }
            Notice::Release(_)
            | Notice::CloseSource(_)
            | Notice::Cancel(_)
            | Notice::Session
            | Notice::Copied { .. }
            | Notice::Prefetch(_) => Err(Closed::Broken("it sent a notice that only clients send".into())),
        }
    }

    fn map_arena(&mut self, arena: ArenaId, bytes: u64, fds: Vec<OwnedFd>) -> Result<(), Closed> {
        let Ok([fd]) = <[OwnedFd; 1]>::try_from(fds) else {
            return Err(Closed::Broken("an arena came without its one file descriptor".into()));
        };
        if self.arenas.len() >= ARENAS_MAX || self.arenas.contains_key(&arena) {
            return Err(Closed::Broken(format!("arena {arena} was granted twice, or is one too many")));
        }
        let mapping = Arena::map(fd, bytes)
            .map_err(|error| Closed::Broken(format!("arena {arena} cannot be used: {error}")))?;
        self.arenas.insert(arena, Arc::new(mapping));
        Ok(())
    }

    /// Checks where a reply's frames lie.
    pub(crate) fn slot(&self, reply: &FramesReply) -> Result<Slot, Closed> {
        let broken = || Closed::Broken("a result does not lie within its arena".into());
        let arena = self.arenas.get(&reply.arena).ok_or_else(|| {
            Closed::Broken(format!("a result lies in arena {}, which is unknown", reply.arena))
        })?;
        let address = arena.slice(reply.slot_offset, reply.slot_bytes).map_err(|_| broken())?;
        if !reply.slot_offset.is_multiple_of(8) {
            return Err(broken());
        }
        let bytes = reply.slot_bytes as usize;
        let places: Option<Vec<_>> = reply.parts.iter().map(|part| PartPlace::check(part, bytes)).collect();
        Ok(Slot { arena: Arc::clone(arena), address, bytes, places: places.ok_or_else(broken)? })
    }
}

impl Slot {
    /// A private copy of the slot's bytes.
    pub(crate) fn copy(&self) -> Memory {
        // SAFETY: the range lies in the mapping, which `self` keeps, and the lease is ours.
        Memory::copy_of(unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.bytes) })
    }
}
