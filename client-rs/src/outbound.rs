//! [`Outbound`]: what goes to the daemon, and what is given back with it.
//!
//! When it is sent is decided in `link.rs`.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use reeld_protocol::frame::OutgoingFd;
use reeld_protocol::message::Prefetch;
use reeld_protocol::{LeaseId, Notice, Outbox, SourceId};
use rustix::net::SendFlags;

use crate::calls::Sent;
use crate::fork::heirs;
use crate::lease::ReturnedLease;
use crate::ledger::Ledger;

/// What any thread may hand in without waiting, to go with the next message.
#[derive(Debug)]
pub(crate) enum Returned {
    Lease(ReturnedLease),
    Source(SourceId),
    Cancelled(u64),
    Hint(Prefetch),
    /// The process on whose behalf tickets are issued.
    Session(OutgoingFd),
}

/// Leases in one notice. A body of 64 KiB would hold 7,000 even if each took the longest form.
const LEASES_PER_NOTICE: usize = 4096;

/// How long a look at forked children stays valid: a busy program need not poll pipes at each request.
const LOOK_VALID: Duration = Duration::from_millis(10);

/// The sending side of a connection, under its lock.
#[derive(Debug)]
pub(crate) struct Outbound {
    outbox: Outbox,
    returned: Receiver<Returned>,
    /// Dropped here, but perhaps not by forked children. Bounded by the quota.
    deferred: Vec<ReturnedLease>,
    last_look: Option<Instant>,
    /// Leases that the daemon was told of, or is about to be, since the start.
    released_count: u64,
}

impl Outbound {
    pub(crate) fn new() -> (Outbound, Sender<Returned>) {
        let (sender, returned) = channel();
        let outbound = Outbound {
            outbox: Outbox::new(),
            returned,
            deferred: Vec::new(),
            last_look: None,
            released_count: 0,
        };
        (outbound, sender)
    }

    /// Puts what was handed in into messages.
    pub(crate) fn collect(&mut self, ledger: &Ledger) {
        let mut leases = Vec::new();
        self.reconsider_deferred(ledger, &mut leases);
        while let Ok(returned) = self.returned.try_recv() {
            match returned {
                Returned::Lease(lease) => {
                    ledger.take_returned(lease.bytes);
                    if lease.heritage.is_ours_alone() {
                        leases.push(lease.id);
                    } else {
                        ledger.defer(lease.bytes);
                        self.deferred.push(lease);
                    }
                }
                Returned::Source(source) => self.push_notice(&Notice::CloseSource(source)),
                Returned::Cancelled(request) => self.push_notice(&Notice::Cancel(request)),
                Returned::Hint(hint) => self.push_notice(&Notice::Prefetch(hint)),
                Returned::Session(process) => {
                    let _ = self.outbox.push(&Notice::Session, 0, vec![process]);
                }
            }
        }
        self.released_count += leases.len() as u64;
        for chunk in leases.chunks(LEASES_PER_NOTICE) {
            self.push_notice(&Notice::Release(chunk.to_vec()));
        }
        if let Some((results, bytes)) = ledger.take_unreported() {
            self.push_notice(&Notice::Copied { results, bytes });
        }
    }

    fn reconsider_deferred(&mut self, ledger: &Ledger, leases: &mut Vec<LeaseId>) {
        if self.deferred.is_empty() || self.last_look.is_some_and(|look| look.elapsed() < LOOK_VALID) {
            return;
        }
        heirs::look();
        self.last_look = Some(Instant::now());
        self.deferred.retain(|lease| {
            let is_kept = !lease.heritage.is_ours_alone();
            if !is_kept {
                ledger.take_deferred(lease.bytes);
                leases.push(lease.id);
            }
            is_kept
        });
    }

    fn push_notice(&mut self, notice: &Notice) {
        // Notices of this size always fit into a body.
        let _ = self.outbox.push(notice, 0, Vec::new());
    }

    /// Appends a request that is already encoded.
    pub(crate) fn push(&mut self, request_id: u64, sent: &Sent) {
        self.outbox.push_raw(sent.kind, request_id, &sent.body, sent.fds.clone());
    }

    /// Sends what the socket takes without waiting. True if nothing is left.
    pub(crate) fn send(&mut self, socket: impl AsFd) -> io::Result<bool> {
        match self.outbox.send(socket, SendFlags::DONTWAIT) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.outbox.queued_bytes()
    }

    pub(crate) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    pub(crate) fn released_count(&self) -> u64 {
        self.released_count
    }
}
