//! [`Link`]: one connection to the daemon, shared by all threads of this process.
//!
//! There is no thread for the hot path. Whoever waits for an answer reads the socket, one thread at a time
//! (the leader), and hands others their answers; when it has its own, one of the others reads on.
//!
//! Locks, in the order in which they may be taken: `inbound`, `outbound`, `calls`. None is held while
//! waiting: the leader holds `inbound`, but nobody else asks for it.
//!
//! Here is what a link is and how it sends; `wait.rs` is who waits and who reads, `read.rs` what an answer
//! brings, `starved.rs` what becomes of requests without room. How a connection is made is in `handshake.rs`; when a new one is made, in `client.rs`.

mod read;
mod starved;
#[cfg(test)]
mod tests;
mod wait;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use reeld_protocol::frame::OutgoingFd;
use reeld_protocol::message::{Message, Prefetch, Request, Ticket};
use reeld_protocol::{FrameReader, LeaseId, SourceId, Welcome};

use crate::calls::{Aftermath, Answer, CallKey, Calls, Closed, Expected, Sent};
use crate::error::Error;
use crate::housekeeper::{self, Remaining};
use crate::inbound::Inbound;
use crate::lease::ReturnedLease;
use crate::ledger::Ledger;
use crate::outbound::{Outbound, Returned};
use crate::socket::Socket;
use wait::Turn;

/// How long one read waits. A waiting thread looks up this often, for deadlines and as a safety net.
#[cfg(not(test))]
pub(crate) const SLICE: Duration = Duration::from_millis(50);
/// Unit tests hang if anything depends on looking up now and then.
#[cfg(test)]
pub(crate) const SLICE: Duration = Duration::from_secs(3600);

/// Bytes that wait for a socket that takes no more. Above it a blocking call waits instead of queueing.
const QUEUED_BYTES_MAX: usize = 1 << 20;

/// A connection's state. See the module for who may take which lock.
pub(crate) struct Link {
    socket: Socket,
    welcome: Welcome,
    /// Tells connections of this process apart.
    serial: u64,
    began: Instant,
    /// The daemon has answered a request, and not by saying that it is stopping.
    has_answered: AtomicBool,
    /// The daemon has said that it is stopping: no further request goes this way.
    is_stopping: AtomicBool,
    next_request_id: AtomicU64,
    returned: Sender<Returned>,
    ledger: Ledger,
    is_looked_after: AtomicBool,
    has_unsent: AtomicBool,
    /// The daemon was told on whose behalf tickets are issued here.
    is_session_told: AtomicBool,
    inbound: Mutex<Inbound>,
    outbound: Mutex<Outbound>,
    /// Something of `outbound` was sent, and threads wait for that.
    room: Condvar,
    room_waiter_count: AtomicU32,
    calls: Mutex<Calls>,
    /// Wakes the reader thread, if futures made one necessary.
    reader_turn: Condvar,
}

/// Why a request was not sent.
pub(crate) enum SubmitError {
    /// The connection is over, and the daemon saw nothing of the request.
    Closed,
    /// The request itself is impossible.
    Failed(Error),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub(crate) fn new(socket: Socket, welcome: Welcome, reader: FrameReader) -> Arc<Link> {
        static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);
        let (outbound, returned) = Outbound::new();
        Arc::new(Link {
            socket,
            serial: NEXT_SERIAL.fetch_add(1, Ordering::Relaxed),
            began: Instant::now(),
            has_answered: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            next_request_id: AtomicU64::new(1),
            returned,
            ledger: Ledger::new(welcome.quota_bytes),
            welcome,
            is_looked_after: AtomicBool::new(false),
            has_unsent: AtomicBool::new(false),
            is_session_told: AtomicBool::new(false),
            inbound: Mutex::new(Inbound::new(reader)),
            outbound: Mutex::new(outbound),
            room: Condvar::new(),
            room_waiter_count: AtomicU32::new(0),
            calls: Mutex::new(Calls::default()),
            reader_turn: Condvar::new(),
        })
    }

    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    pub(crate) fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.calls).closed().is_some()
    }

    /// True while requests may be sent.
    pub(crate) fn is_usable(&self) -> bool {
        !self.is_stopping.load(Ordering::Acquire) && !self.is_closed()
    }

    /// True if the daemon has answered something, or could have done so for that long: then its loss is news,
    /// and not one more failure of the attempt to reach it.
    pub(crate) fn is_proven(&self, time: Duration) -> bool {
        self.has_answered.load(Ordering::Acquire) || self.began.elapsed() >= time
    }

    /// Ends the connection. All calls that are not over fail.
    pub(crate) fn close(&self, closed: &Closed) {
        self.socket.shut_down();
        let aftermath = lock(&self.calls).close(closed);
        self.reader_turn.notify_all();
        for one in aftermath {
            self.settle(one);
        }
    }

    fn settle(&self, aftermath: Aftermath) {
        match aftermath.unwanted {
            Some(Ok(Answer::SourceOpened(opened))) => self.close_source(opened.source),
            // Frames give their lease back when they are dropped.
            Some(
                Ok(Answer::Frames(_) | Answer::Status(_) | Answer::KeyFrames(_) | Answer::Ticket(_)) | Err(_),
            )
            | None => {}
        }
        if let Some(waker) = aftermath.waker {
            waker.wake();
        }
    }
}

/// Sending.
impl Link {
    /// Sends a request, with what was given back before it. Does not wait for the answer.
    pub(crate) fn submit(
        self: &Arc<Self>,
        request: &Request,
        fds: Vec<OutgoingFd>,
        expected: Expected,
        deadline: Option<Instant>,
    ) -> Result<CallKey, SubmitError> {
        let body = request.encode().map_err(|_| {
            let message = "the request has too many parts for one message; split it";
            SubmitError::Failed(Error::InvalidRequest(message.into()))
        })?;
        let timed = match (request, deadline) {
            (Request::GetFrames(request), Some(deadline)) => Some((request.clone(), deadline)),
            (Request::GetFrames(_), None)
            | (
                Request::OpenSource(_)
                | Request::Status
                | Request::GetKeyFrames(_)
                | Request::IssueTicket(_)
                | Request::RedeemTicket(_),
                _,
            ) => None,
        };
        let sent = Sent { kind: request.kind(), body, fds, timed };
        let key = self.next_request_id.fetch_add(1, Ordering::Relaxed);
        {
            let mut calls = lock(&self.calls);
            if calls.closed().is_some() {
                return Err(SubmitError::Closed);
            }
            calls.insert(key, expected, sent.clone());
        }
        let result = {
            let mut outbound = lock(&self.outbound);
            outbound.collect(&self.ledger);
            lock(&self.calls).note_sent(key, outbound.released_count());
            outbound.push(key, &sent);
            self.send(&mut outbound)
        };
        if self.has_unsent.load(Ordering::Acquire) {
            self.be_looked_after();
        }
        if let Err(closed) = result {
            lock(&self.calls).remove(key);
            self.close(&closed);
            return Err(SubmitError::Closed);
        }
        Ok(key)
    }

    fn send(&self, outbound: &mut Outbound) -> Result<(), Closed> {
        match outbound.send(&self.socket) {
            Ok(is_empty) => {
                self.has_unsent.store(!is_empty, Ordering::Release);
                if self.room_waiter_count.load(Ordering::Acquire) > 0 {
                    self.room.notify_all();
                }
                if !is_empty {
                    housekeeper::nudge();
                }
                Ok(())
            }
            Err(error) => Err(Closed::Lost(format!("the connection to the daemon is lost: {error}"))),
        }
    }

    /// Sends what was given back, and what the socket did not take before. Closes where that fails.
    fn flush(&self, mut outbound: MutexGuard<'_, Outbound>) {
        outbound.collect(&self.ledger);
        let result = self.send(&mut outbound);
        drop(outbound);
        if let Err(closed) = result {
            self.close(&closed);
        }
    }

    /// Waits a while for a socket that takes no more to take enough, reading meanwhile: the daemon may be
    /// waiting for that.
    pub(crate) fn await_room(self: &Arc<Self>, patience: Duration) {
        if self.is_congested() && self.help(patience) == Turn::NotOurs {
            // Another thread reads, and sends as soon as it can.
            let outbound = lock(&self.outbound);
            self.room_waiter_count.fetch_add(1, Ordering::AcqRel);
            drop(self.room.wait_timeout(outbound, patience));
            self.room_waiter_count.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// True while more waits to be sent than is good.
    pub(crate) fn is_congested(&self) -> bool {
        self.has_unsent.load(Ordering::Acquire) && lock(&self.outbound).queued_bytes() > QUEUED_BYTES_MAX
    }

    /// Gives a lease back. Never waits: it may be called anywhere.
    pub(crate) fn give_back(&self, mut lease: ReturnedLease) {
        lease.heritage.drop_lease();
        let is_urgent = self.ledger.give_back(lease.bytes);
        self.hand_in(Returned::Lease(lease), is_urgent);
    }

    /// Asks for a ticket for a lease, and waits for it.
    pub(crate) fn issue_ticket(self: &Arc<Self>, lease: LeaseId) -> Result<Ticket, Error> {
        if let Some(session) = crate::ticket::session()
            && !self.is_session_told.swap(true, Ordering::AcqRel)
        {
            self.hand_in(Returned::Session(session), false);
        }
        let key = match self.submit(&Request::IssueTicket(lease), Vec::new(), Expected::Ticket, None) {
            Ok(key) => key,
            Err(SubmitError::Closed) => return Err(Error::unavailable("the daemon closed the connection")),
            Err(SubmitError::Failed(error)) => return Err(error),
        };
        let outcome = loop {
            if let Some(outcome) = self.wait(key, None) {
                break outcome;
            }
        };
        self.abandon(key);
        match outcome? {
            Answer::Ticket(ticket) => Ok(ticket),
            Answer::SourceOpened(_) | Answer::Frames(_) | Answer::Status(_) | Answer::KeyFrames(_) => {
                Err(Error::Protocol("an answer of another kind".into()))
            }
        }
    }

    /// Counts a copy that a caller has made of a result.
    pub(crate) fn count_copy(self: &Arc<Self>, bytes: u64) {
        self.ledger.copied(0, bytes);
        self.be_looked_after();
        housekeeper::nudge();
    }

    pub(crate) fn close_source(&self, source: SourceId) {
        self.hand_in(Returned::Source(source), false);
    }

    /// Says what is going to be asked for. Never waits: where much is to be sent already, nothing is said.
    pub(crate) fn hint(self: &Arc<Self>, hint: Prefetch) {
        if !self.is_congested() {
            // What the socket does not take now goes with the housekeeper.
            self.be_looked_after();
            self.hand_in(Returned::Hint(hint), true);
        }
    }

    fn hand_in(&self, returned: Returned, is_urgent: bool) {
        // Fails only when the link is being dropped; the daemon then takes back everything by itself.
        let _ = self.returned.send(returned);
        if is_urgent {
            match self.outbound.try_lock() {
                Ok(outbound) => return self.flush(outbound),
                Err(TryLockError::Poisoned(poisoned)) => return self.flush(poisoned.into_inner()),
                // Somebody is sending right now. What comes too late for that goes with the housekeeper.
                Err(TryLockError::WouldBlock) => {}
            }
        }
        housekeeper::nudge();
    }

    /// Asks the daemon to give up on a call. Its answer still comes.
    pub(crate) fn cancel(&self, key: CallKey) {
        let request = lock(&self.calls).current_request(key);
        if let Some(request) = request {
            self.hand_in(Returned::Cancelled(request), true);
        }
    }

    /// Nobody wants a call any more: it is cancelled, and what it brings is given back.
    pub(crate) fn abandon(self: &Arc<Self>, key: CallKey) {
        let request = lock(&self.calls).current_request(key);
        let (is_due, aftermath) = lock(&self.calls).abandon(key);
        self.settle(aftermath);
        if is_due {
            self.be_looked_after();
            if let Some(request) = request {
                self.hand_in(Returned::Cancelled(request), true);
            }
            // Nobody waits for the answer: the housekeeper reads it.
            housekeeper::nudge();
        }
    }

    fn be_looked_after(self: &Arc<Self>) {
        if !self.is_looked_after.swap(true, Ordering::AcqRel) {
            housekeeper::look_after(Arc::downgrade(self));
        }
    }

    /// The housekeeper's round.
    pub(crate) fn keep_house(self: &Arc<Self>) -> Remaining {
        if self.is_closed() {
            return Remaining::Nothing;
        }
        self.flush(lock(&self.outbound));
        self.relieve();
        if lock(&self.calls).has_abandoned() {
            self.help(Duration::ZERO);
        }
        let (calls, has_unsent) = (lock(&self.calls), self.has_unsent.load(Ordering::Acquire));
        if calls.closed().is_none() && (has_unsent || calls.has_abandoned()) {
            return Remaining::Soon;
        }
        drop(calls);
        if lock(&self.outbound).has_deferred() { Remaining::Deferred } else { Remaining::Nothing }
    }
}
