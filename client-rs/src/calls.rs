//! [`Calls`]: the requests of one connection that are not over yet, and who waits for them.
//!
//! A plain table under the connection's lock. It reads and sends nothing: that is `link.rs`.

use std::collections::HashMap;
use std::sync::{Arc, Condvar};
use std::task::Waker;
use std::time::Instant;

use reeld_protocol::frame::OutgoingFd;
use reeld_protocol::message::{Dtype, GetFrames, Message, PartLayout, Request, SourceOpened, Ticket};
use reeld_protocol::status::Status;

use crate::ask::millis_until;
use crate::error::Error;
use crate::frames::Frames;

/// What a successful request brings.
#[derive(Debug)]
pub(crate) enum Answer {
    SourceOpened(Box<SourceOpened>),
    Frames(Frames),
    Status(Box<Status>),
    KeyFrames(Vec<u64>),
    Ticket(Ticket),
}

/// How a request ended.
pub(crate) type Outcome = Result<Answer, Error>;

/// Which answer a request may get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    SourceOpened,
    /// One part for each, of this type.
    Frames(Vec<Dtype>),
    Status,
    KeyFrames,
    Ticket,
    /// What lies in the slot that a ticket stands for.
    Redeemed(Vec<PartLayout>),
}

/// A request as it was sent, kept to be sent again.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<OutgoingFd>,
    /// The request of a caller whose patience is limited: sent again, it says what is left of the time.
    pub(crate) timed: Option<(GetFrames, Instant)>,
}

impl Sent {
    /// The same request at this moment.
    fn again(&self) -> Sent {
        let mut sent = self.clone();
        if let Some((request, deadline)) = &mut sent.timed {
            request.timeout_millis = Some(millis_until(*deadline));
            // A request that could be encoded can be so with a smaller number, too.
            if let Ok(body) = Request::GetFrames(request.clone()).encode() {
                sent.body = body;
            }
        }
        sent
    }
}

/// Names a call within its connection: the id of its first request.
pub(crate) type CallKey = u64;

/// One request, from before it is sent until its outcome is taken.
struct Call {
    expected: Expected,
    sent: Sent,
    /// How many leases had been given back when it was sent.
    released_before: u64,
    resend_count: u32,
    stage: Stage,
    is_abandoned: bool,
    arrival: Arc<Condvar>,
    /// Threads that wait for this call while another one reads.
    follower_count: u32,
    waker: Option<Waker>,
}

enum Stage {
    InFlight,
    /// There was no room for its result; it is sent again when there may be.
    Starved(Error),
    Done(Outcome),
    /// A thread works on the outcome; it comes back as `Done`.
    Borrowed,
    Taken,
}

/// What a call's end sets off, outside of the lock.
#[derive(Default)]
#[must_use]
pub(crate) struct Aftermath {
    pub(crate) waker: Option<Waker>,
    /// An outcome that nobody wants; its frames go back when it is dropped.
    pub(crate) unwanted: Option<Outcome>,
}

/// Calls of one connection.
#[derive(Default)]
pub(crate) struct Calls {
    calls: HashMap<CallKey, Call>,
    /// Request ids of calls that were sent again.
    resent: HashMap<u64, CallKey>,
    /// True while a thread reads from the socket for all.
    pub(crate) is_led: bool,
    /// True once a reader thread was started for futures.
    pub(crate) has_reader: bool,
    closed: Option<Closed>,
}

/// Why a connection is over.
#[derive(Clone, Debug)]
pub(crate) enum Closed {
    /// The daemon went away, or this side let go.
    Lost(String),
    /// The daemon did what the protocol does not allow.
    Broken(String),
}

impl Closed {
    pub(crate) fn to_error(&self) -> Error {
        match self {
            Closed::Lost(reason) => Error::unavailable(reason.clone()),
            Closed::Broken(reason) => Error::Protocol(reason.clone()),
        }
    }
}

impl Calls {
    pub(crate) fn closed(&self) -> Option<&Closed> {
        self.closed.as_ref()
    }

    /// Enters a call before its request is sent.
    pub(crate) fn insert(&mut self, key: CallKey, expected: Expected, sent: Sent) {
        let call = Call {
            expected,
            sent,
            released_before: 0,
            resend_count: 0,
            stage: Stage::InFlight,
            is_abandoned: false,
            arrival: Arc::new(Condvar::new()),
            follower_count: 0,
            waker: None,
        };
        self.calls.insert(key, call);
    }

    /// Notes how many leases had been given back when the call was sent.
    pub(crate) fn note_sent(&mut self, key: CallKey, released_before: u64) {
        if let Some(call) = self.calls.get_mut(&key) {
            call.released_before = released_before;
        }
    }

    /// Forgets a call that could not be sent.
    pub(crate) fn remove(&mut self, key: CallKey) {
        self.calls.remove(&key);
    }

    /// The call that a reply answers; none where no reply is due.
    pub(crate) fn answered(&self, request_id: u64) -> Option<(CallKey, &Expected)> {
        let key = self.resent.get(&request_id).copied().unwrap_or(request_id);
        let call = self.calls.get(&key)?;
        matches!(call.stage, Stage::InFlight).then_some((key, &call.expected))
    }

    /// Ends a call.
    pub(crate) fn finish(&mut self, key: CallKey, outcome: Outcome) -> Aftermath {
        self.resent.retain(|_, call| *call != key);
        let Some(call) = self.calls.get_mut(&key) else {
            return Aftermath { unwanted: Some(outcome), ..Aftermath::default() };
        };
        if call.is_abandoned {
            self.calls.remove(&key);
            return Aftermath { unwanted: Some(outcome), ..Aftermath::default() };
        }
        call.stage = Stage::Done(outcome);
        if call.follower_count > 0 {
            // Not otherwise: waking nobody costs a system call all the same.
            call.arrival.notify_all();
        }
        Aftermath { waker: call.waker.take(), unwanted: None }
    }

    /// Takes a call's outcome, once. That its connection was lost is told to all who ask: each of them has
    /// to look where the call is made again.
    pub(crate) fn take(&mut self, key: CallKey) -> Option<Outcome> {
        if let Some(reason) = self.loss(key) {
            return Some(Err(Error::unavailable(reason)));
        }
        let Some(call) = self.calls.get_mut(&key) else {
            return Some(Err(taken_already()));
        };
        match std::mem::replace(&mut call.stage, Stage::Taken) {
            Stage::Done(outcome) => Some(outcome),
            Stage::Taken => Some(Err(taken_already())),
            other @ (Stage::InFlight | Stage::Starved(_) | Stage::Borrowed) => {
                call.stage = other;
                None
            }
        }
    }

    /// Why a call ended without an answer, if it did.
    pub(crate) fn loss(&self, key: CallKey) -> Option<String> {
        match &self.calls.get(&key)?.stage {
            Stage::Done(Err(Error::DaemonUnavailable { reason })) => Some(reason.clone()),
            Stage::Done(_) | Stage::InFlight | Stage::Starved(_) | Stage::Borrowed | Stage::Taken => None,
        }
    }

    /// True if [`Calls::take`] would give something.
    pub(crate) fn is_done(&self, key: CallKey) -> bool {
        match self.calls.get(&key).map(|call| &call.stage) {
            Some(Stage::InFlight | Stage::Starved(_) | Stage::Borrowed) => false,
            Some(Stage::Done(_) | Stage::Taken) | None => true,
        }
    }

    /// Nobody wants the call any more. True if its reply is still to come.
    pub(crate) fn abandon(&mut self, key: CallKey) -> (bool, Aftermath) {
        let Some(call) = self.calls.get_mut(&key) else { return (false, Aftermath::default()) };
        call.is_abandoned = true;
        call.waker = None;
        match call.stage {
            Stage::InFlight | Stage::Borrowed => (true, Aftermath::default()),
            Stage::Starved(_) | Stage::Done(_) | Stage::Taken => {
                let unwanted = self.calls.remove(&key).and_then(|call| match call.stage {
                    Stage::Done(outcome) => Some(outcome),
                    Stage::InFlight | Stage::Starved(_) | Stage::Borrowed | Stage::Taken => None,
                });
                (false, Aftermath { waker: None, unwanted })
            }
        }
    }

    /// The request id that a cancellation must name, if an answer is due.
    pub(crate) fn current_request(&self, key: CallKey) -> Option<u64> {
        let call = self.calls.get(&key)?;
        let resent = || self.resent.iter().find(|(_, call)| **call == key).map(|(id, _)| *id);
        matches!(call.stage, Stage::InFlight).then(|| resent().unwrap_or(key))
    }

    /// True while answers are due that nobody will ask for.
    pub(crate) fn has_abandoned(&self) -> bool {
        self.calls.values().any(|call| call.is_abandoned)
    }

    /// Ends all calls, and every later one.
    pub(crate) fn close(&mut self, closed: &Closed) -> Vec<Aftermath> {
        if self.closed.is_some() {
            return Vec::new();
        }
        self.closed = Some(closed.clone());
        let open = |call: &Call| matches!(call.stage, Stage::InFlight | Stage::Starved(_));
        let keys: Vec<_> = self.calls.iter().filter(|(_, call)| open(call)).map(|(key, _)| *key).collect();
        keys.into_iter().map(|key| self.finish(key, Err(closed.to_error()))).collect()
    }
}

fn taken_already() -> Error {
    Error::InvalidRequest("the result of this request was taken already".into())
}

/// Who waits.
impl Calls {
    /// Enters a thread that waits for a call while another one reads; none where the call is over.
    pub(crate) fn follow(&mut self, key: CallKey) -> Option<Arc<Condvar>> {
        let call = self.calls.get_mut(&key)?;
        call.follower_count += 1;
        Some(Arc::clone(&call.arrival))
    }

    pub(crate) fn unfollow(&mut self, key: CallKey) {
        if let Some(call) = self.calls.get_mut(&key) {
            call.follower_count -= 1;
        }
    }

    /// Wakes one thread that may read on for all. False where no thread waits.
    pub(crate) fn wake_successor(&self) -> bool {
        let Some(call) = self.calls.values().find(|call| call.follower_count > 0) else { return false };
        call.arrival.notify_one();
        true
    }

    /// Has a future woken at the end of its call.
    pub(crate) fn set_waker(&mut self, key: CallKey, waker: &Waker) {
        if let Some(call) = self.calls.get_mut(&key) {
            call.waker = Some(waker.clone());
        }
    }

    /// True while a future waits.
    pub(crate) fn has_futures(&self) -> bool {
        self.calls.values().any(|call| call.waker.is_some())
    }
}

/// Calls without room for their results.
impl Calls {
    /// How often one call is sent again. Each time needs leases given back since, so that this is never
    /// reached but by a daemon that refuses whatever is free.
    const RESENDS_MAX: u32 = 1000;

    /// Sets a call aside whose result found no room. Gives the error back where it has to be reported.
    pub(crate) fn starve(&mut self, key: CallKey, error: Error) -> Option<Error> {
        self.resent.retain(|_, call| *call != key);
        match self.calls.get_mut(&key) {
            Some(call) if !call.is_abandoned && call.resend_count < Self::RESENDS_MAX => {
                call.stage = Stage::Starved(error);
                None
            }
            Some(_) | None => Some(error),
        }
    }

    pub(crate) fn has_starved(&self) -> bool {
        self.calls.values().any(|call| matches!(call.stage, Stage::Starved(_)))
    }

    /// True while an answer is due that may bring frames, and with them leases to give back.
    pub(crate) fn has_frames_in_flight(&self) -> bool {
        let is_due = |call: &Call| {
            matches!(call.stage, Stage::InFlight | Stage::Borrowed)
                && matches!(call.expected, Expected::Frames(_) | Expected::Redeemed(_))
        };
        self.calls.values().any(is_due)
    }

    /// A starved call for which leases were given back since it was sent, the longest waiting first: it is
    /// in flight again under the new id.
    pub(crate) fn resend(&mut self, released: u64, request_id: u64) -> Option<Sent> {
        let is_ready =
            |call: &Call| matches!(call.stage, Stage::Starved(_)) && call.released_before < released;
        let key = self.calls.iter().filter(|(_, call)| is_ready(call)).map(|(key, _)| *key).min()?;
        let call = self.calls.get_mut(&key)?;
        call.stage = Stage::InFlight;
        call.resend_count += 1;
        call.released_before = released;
        let sent = call.sent.again();
        self.resent.insert(request_id, key);
        Some(sent)
    }

    /// Ends all starved calls with their errors.
    pub(crate) fn give_up_starved(&mut self) -> Vec<Aftermath> {
        let mut ended = Vec::new();
        for (key, call) in &mut self.calls {
            if let Stage::Starved(_) = call.stage
                && let Stage::Starved(error) = std::mem::replace(&mut call.stage, Stage::InFlight)
            {
                ended.push((*key, error));
            }
        }
        ended.into_iter().map(|(key, error)| self.finish(key, Err(error))).collect()
    }

    /// Takes a result in shared memory that nobody has asked for yet, to copy it; `put_back` returns it.
    pub(crate) fn borrow_leased(&mut self) -> Option<(CallKey, Frames)> {
        let is_leased = |call: &Call| match &call.stage {
            Stage::Done(Ok(Answer::Frames(frames))) => !frames.is_copied(),
            Stage::Done(
                Ok(Answer::SourceOpened(_) | Answer::Status(_) | Answer::KeyFrames(_) | Answer::Ticket(_))
                | Err(_),
            ) => false,
            Stage::InFlight | Stage::Starved(_) | Stage::Borrowed | Stage::Taken => false,
        };
        let (key, call) = self.calls.iter_mut().find(|(_, call)| is_leased(call))?;
        match std::mem::replace(&mut call.stage, Stage::Borrowed) {
            Stage::Done(Ok(Answer::Frames(frames))) => Some((*key, frames)),
            other => {
                call.stage = other;
                None
            }
        }
    }
}
