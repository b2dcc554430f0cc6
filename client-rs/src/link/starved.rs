//! Requests whose results found no room: they are sent again when leases were given back since.
//!
//! Whether there is room is the daemon's decision.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use reeld_protocol::WireError;
use reeld_protocol::error::ErrorCode;

use super::{Link, lock};
use crate::calls::{Answer, CallKey};
use crate::error::Error;

impl Link {
    /// An error, unless the request is set aside to be sent again.
    pub(super) fn take_error(&self, key: CallKey, error: WireError) -> Option<Error> {
        if error.code != ErrorCode::NoSlots {
            return Some(error.into());
        }
        let mut message = error.message;
        let held = self.ledger.statistics();
        if held.leases_deferred > 0 {
            // What the daemon counts as kept, and the caller believes to have dropped.
            message += &format!(
                " ({} results of {} bytes were dropped here, but may still be read by forked children)",
                held.leases_deferred, held.deferred_bytes
            );
        }
        let is_final = !error.is_retryable;
        let error = Error::NoSlots(message);
        if is_final { Some(error) } else { lock(&self.calls).starve(key, error) }
    }

    /// Sends starved requests again if leases were given back since. If none can be given back any more,
    /// they fail: their callers keep what they wait for.
    pub(super) fn relieve(self: &Arc<Self>) {
        while lock(&self.calls).has_starved() {
            let mut outbound = lock(&self.outbound);
            outbound.collect(&self.ledger);
            let released = outbound.released_count();
            let mut is_any_sent = false;
            loop {
                let request_id = self.next_request_id.fetch_add(1, Ordering::Relaxed);
                let Some(sent) = lock(&self.calls).resend(released, request_id) else { break };
                outbound.push(request_id, &sent);
                is_any_sent = true;
            }
            let result = self.send(&mut outbound);
            drop(outbound);
            if let Err(closed) = result {
                return self.close(&closed);
            }
            // What comes for the others may bring leases to give back: then there is another round.
            if is_any_sent || lock(&self.calls).has_frames_in_flight() {
                return;
            }
            if !self.copy_undelivered() {
                let given_up = lock(&self.calls).give_up_starved();
                given_up.into_iter().for_each(|aftermath| self.settle(aftermath));
            }
        }
    }

    /// Copies one result that nobody has asked for yet, so that its lease goes back.
    fn copy_undelivered(&self) -> bool {
        let Some((key, frames)) = lock(&self.calls).borrow_leased() else { return false };
        let copy = frames.copied();
        self.ledger.copied(copy.frame_count() as u64, frames.len() as u64);
        drop(frames);
        let aftermath = lock(&self.calls).finish(key, Ok(Answer::Frames(copy)));
        self.settle(aftermath);
        true
    }
}
