//! Reading: one look at the socket, and what its messages mean for the calls.
//!
//! Who looks, and when, is the matter of `wait.rs`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reeld_protocol::Received;
use reeld_protocol::error::ErrorCode;
use reeld_protocol::message::{Dtype, FramesReply, PartLayout, Reply};
use reeld_protocol::vigil::AWAKE_FOR;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::RecvFlags;

use super::wait::Turn;
use super::{Link, lock};
use crate::calls::{Answer, Closed, Expected};
use crate::error::Error;
use crate::frames::Frames;
use crate::inbound::{Arrival, Inbound, Slot};
use crate::layout::PartPlace;
use crate::lease::Lease;
use crate::memory::Memory;

impl Link {
    pub(super) fn read(self: &Arc<Self>, inbound: &mut Inbound, patience: Duration) -> Result<Turn, Closed> {
        let begin = Instant::now();
        let is_awake = patience > AWAKE_FOR && inbound.vigil.is_worthwhile();
        let mut received = if is_awake { self.receive_awake(inbound, begin) } else { None };
        if received.is_none() {
            // Not by a read that blocks: that is woken by the daemon's taking of a request, too.
            if let Some(turn) = self.await_socket(patience)? {
                return Ok(turn);
            }
            inbound.vigil.slept(begin.elapsed());
            received = Some(inbound.receive(&self.socket, RecvFlags::DONTWAIT));
        }
        match received {
            Some(Ok(Received::Bytes)) | None => {}
            Some(Ok(Received::Closed)) => {
                return Err(Closed::Lost("the daemon closed the connection".into()));
            }
            Some(Err(error)) => {
                return match error.kind() {
                    io::ErrorKind::WouldBlock => Ok(Turn::Done),
                    io::ErrorKind::Interrupted => Ok(Turn::Interrupted),
                    _ => Err(Closed::Lost(format!("the connection to the daemon is lost: {error}"))),
                };
            }
        }
        while let Some(arrival) = inbound.next()? {
            match arrival {
                Arrival::Notice => {}
                Arrival::Reply { request_id, reply } => self.take_reply(inbound, request_id, reply)?,
            }
        }
        self.relieve();
        Ok(Turn::Done)
    }

    /// Reads without sleeping, for a short time. None where nothing comes.
    fn receive_awake(&self, inbound: &mut Inbound, begin: Instant) -> Option<io::Result<Received>> {
        // What could not be sent is the matter of whoever sleeps.
        while !self.has_unsent.load(Ordering::Acquire) {
            match inbound.receive(&self.socket, RecvFlags::DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                settled => {
                    inbound.vigil.watched(Some(begin.elapsed()));
                    return Some(settled);
                }
            }
            if begin.elapsed() >= AWAKE_FOR {
                break;
            }
            // Whoever else is to run on this processor, perhaps the daemon itself, does so now.
            std::thread::yield_now();
        }
        inbound.vigil.watched(None);
        None
    }

    /// Waits until there is something to read; what could not be sent goes out as soon as it can.
    fn await_socket(&self, patience: Duration) -> Result<Option<Turn>, Closed> {
        let mut interest = PollFlags::IN;
        if self.has_unsent.load(Ordering::Acquire) {
            interest |= PollFlags::OUT;
        }
        let mut fds = [PollFd::new(&self.socket, interest)];
        let timeout = Timespec::try_from(patience).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(Some(Turn::Done)),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Some(Turn::Interrupted)),
            Err(errno) => return Err(Closed::Lost(format!("waiting for the daemon failed: {errno}"))),
        }
        let events = fds[0].revents();
        if events.contains(PollFlags::OUT) {
            self.send(&mut lock(&self.outbound))?;
        }
        Ok(if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            None
        } else {
            Some(Turn::Done)
        })
    }

    fn take_reply(
        self: &Arc<Self>,
        inbound: &Inbound,
        request_id: u64,
        reply: Option<Reply>,
    ) -> Result<(), Closed> {
        let (key, expected) = {
            let calls = lock(&self.calls);
            let (key, expected) = calls.answered(request_id).ok_or_else(|| {
                Closed::Broken(format!("it answered request {request_id}, which is not open"))
            })?;
            (key, expected.clone())
        };
        match &reply {
            Some(Reply::Error(error)) if error.code == ErrorCode::ShuttingDown => {
                self.is_stopping.store(true, Ordering::Release);
            }
            Some(
                Reply::Error(_)
                | Reply::Frames(_)
                | Reply::SourceOpened(_)
                | Reply::Status(_)
                | Reply::KeyFrames(_)
                | Reply::TicketIssued(_),
            ) => {
                self.has_answered.store(true, Ordering::Release);
            }
            None => {}
        }
        let outcome = match (reply, &expected) {
            (Some(Reply::Error(error)), _) => match self.take_error(key, error) {
                Some(error) => Err(error),
                None => return Ok(()),
            },
            (Some(Reply::Frames(reply)), Expected::Frames(dtypes)) => {
                Ok(Answer::Frames(self.take_frames(inbound, &reply, dtypes)?))
            }
            (Some(Reply::SourceOpened(opened)), Expected::SourceOpened) => Ok(Answer::SourceOpened(opened)),
            (Some(Reply::Frames(reply)), Expected::Redeemed(layouts)) => {
                self.take_redeemed(inbound, &reply, layouts)?.map(Answer::Frames)
            }
            (Some(Reply::Status(status)), Expected::Status) => Ok(Answer::Status(status)),
            (Some(Reply::KeyFrames(frames)), Expected::KeyFrames) => Ok(Answer::KeyFrames(frames)),
            (Some(Reply::TicketIssued(ticket)), Expected::Ticket) => Ok(Answer::Ticket(ticket)),
            (
                Some(
                    Reply::Frames(_)
                    | Reply::SourceOpened(_)
                    | Reply::Status(_)
                    | Reply::KeyFrames(_)
                    | Reply::TicketIssued(_),
                )
                | None,
                _,
            ) => {
                return Err(Closed::Broken("an answer is not of the kind that was asked for".into()));
            }
        };
        let aftermath = lock(&self.calls).finish(key, outcome);
        self.settle(aftermath);
        Ok(())
    }

    fn take_frames(
        self: &Arc<Self>,
        inbound: &Inbound,
        reply: &FramesReply,
        dtypes: &[Dtype],
    ) -> Result<Frames, Closed> {
        let slot = inbound.slot(reply)?;
        if !slot.places.iter().map(|place| place.dtype).eq(dtypes.iter().copied()) {
            return Err(Closed::Broken("a result has other parts than were asked for".into()));
        }
        let places = slot.places.clone();
        Ok(self.take_slot(reply, slot, places))
    }

    /// A slot for a ticket. What lies there is not the daemon's to say; where who made the ticket says what cannot
    /// be, that is the ticket's fault.
    fn take_redeemed(
        self: &Arc<Self>,
        inbound: &Inbound,
        reply: &FramesReply,
        layouts: &[PartLayout],
    ) -> Result<Result<Frames, Error>, Closed> {
        let slot = inbound.slot(reply)?;
        let check = |layout| PartPlace::check(layout, slot.bytes);
        let places: Option<Vec<PartPlace>> = layouts.iter().map(check).collect();
        let is_valid = places.is_some();
        let frames = self.take_slot(reply, slot, places.unwrap_or_default());
        Ok(if is_valid {
            Ok(frames)
        } else {
            Err(Error::InvalidRequest("the ticket does not say what lies in its memory".into()))
        })
    }

    fn take_slot(self: &Arc<Self>, reply: &FramesReply, slot: Slot, places: Vec<PartPlace>) -> Frames {
        self.be_looked_after();
        let is_copied = self.ledger.arrive(reply.slot_bytes);
        let copy = is_copied.then(|| slot.copy());
        let lease = Lease::new(reply.lease, slot.arena, slot.address, slot.bytes, Arc::clone(self));
        let Some(copy) = copy else { return Frames::new(Memory::Leased(lease), places) };
        let frames = Frames::new(copy, places);
        self.ledger.copied(frames.frame_count() as u64, reply.slot_bytes);
        // Told together with the copy.
        drop(lease);
        frames
    }
}
