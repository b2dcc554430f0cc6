//! [`Errand`]: one request from its first word to its outcome, over as many connections as that takes.
//!
//! Where the daemon goes away, the request is made again on the next connection; only reading is asked for,
//! so that nothing can happen twice. An answer belongs to one connection and one number on it: what comes
//! late from an old connection cannot be taken for the new answer.
//!
//! How a connection is found again is not known here: that is `client.rs`. Who sends what could not be sent
//! at once is `dispatcher.rs`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::alarm::Alarm;
use crate::ask::Ask;
use crate::calls::{Answer, CallKey, Outcome};
use crate::client::Client;
use crate::connection::Connection;
use crate::error::Error;
use crate::link::{SLICE, SubmitError};

/// How often one request is made again because its connection was lost. Restarts of a service are rare; a
/// request during which the daemon died this often is more likely the reason for it.
const REPEATS_MAX: u32 = 16;

/// How long the answer to a request that was sent may be late. The daemon counts the time by itself and says
/// more than this side could; this is for a daemon that says nothing.
const ANSWER_GRACE: Duration = Duration::from_millis(50);

/// An answer, and the connection that it came by.
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    pub(crate) connection: Arc<Connection>,
}

/// A request and how far it is.
pub(crate) struct Errand {
    client: Client,
    ask: Ask,
    deadline: Option<Instant>,
    state: Mutex<State>,
    /// The stage changed.
    progress: Condvar,
}

struct State {
    stage: Stage,
    repeat_count: u32,
    is_cancelled: bool,
    /// Threads that wait for another stage.
    waiter_count: u32,
    waker: Option<Waker>,
    alarm: Option<Alarm>,
}

enum Stage {
    /// A thread of the dispatcher is to send it.
    Queued,
    Sent(Sent),
    Failed(Error),
    /// The outcome was taken, or nobody wants it.
    Over,
}

/// Names the call on its connection.
#[derive(Clone)]
struct Sent {
    connection: Arc<Connection>,
    key: CallKey,
}

impl Sent {
    fn is_same(&self, other: &Sent) -> bool {
        self.key == other.key && self.connection.serial() == other.connection.serial()
    }
}

/// What a look at an errand found.
enum Look {
    Outcome(Result<Answered, Error>),
    Queued,
    Sent(Sent),
}

impl Errand {
    fn new(client: Client, ask: Ask, deadline: Option<Instant>, stage: Stage) -> Arc<Errand> {
        let state =
            State { stage, repeat_count: 0, is_cancelled: false, waiter_count: 0, waker: None, alarm: None };
        Arc::new(Errand { client, ask, deadline, state: Mutex::new(state), progress: Condvar::new() })
    }

    /// Sends a request, at once where that takes no time and else by the dispatcher.
    pub(crate) fn start(client: Client, ask: Ask, deadline: Option<Instant>) -> Result<Arc<Errand>, Error> {
        let errand = Errand::new(client, ask, deadline, Stage::Queued);
        match errand.send_at_once() {
            Some(sent) => errand.lock().stage = Stage::Sent(sent?),
            None => errand.client.dispatch(&errand),
        }
        Ok(errand)
    }

    /// One that was sent by hand.
    #[cfg(test)]
    pub(crate) fn sent(
        client: Client,
        connection: Arc<Connection>,
        key: CallKey,
        deadline: Option<Instant>,
    ) -> Arc<Errand> {
        Errand::new(client, Ask::Status, deadline, Stage::Sent(Sent { connection, key }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sending.
impl Errand {
    fn send_at_once(&self) -> Option<Result<Sent, Error>> {
        let connection = self.client.open_connection()?;
        let (request, fds) = match self.ask.say_at_once(&connection, self.deadline)? {
            Ok(said) => said,
            Err(error) => return Some(Err(error)),
        };
        match connection.submit(&request, fds, self.ask.expected(), self.deadline) {
            Ok(key) => Some(Ok(Sent { connection, key })),
            Err(SubmitError::Failed(error)) => Some(Err(error)),
            // Nobody saw it: finding that out is no repetition.
            Err(SubmitError::Closed) => {
                self.client.note_loss(&connection, "the daemon closed the connection");
                None
            }
        }
    }

    /// Finds a connection, opens there what has to be open, and sends. May take long.
    pub(crate) fn send(self: &Arc<Self>) {
        while self.is_queued() {
            let result = self.client.reconnect(self).and_then(|connection| {
                let sent = self.send_on(&connection);
                // Asked over, and lost: look for the next one, as long as there is hope.
                if let Err(Error::DaemonUnavailable { reason }) = &sent {
                    self.client.note_loss(&connection, reason);
                    if self.count_repeat() {
                        return Ok(None);
                    }
                }
                sent.map(Some)
            });
            match result {
                // Not looked at again: if that is lost too, another thread may be sending it by now.
                Ok(Some(sent)) => return self.go_on(Stage::Sent(sent)),
                Ok(None) => {}
                // Where the time is over, that is what is said.
                Err(error) if self.is_queued() => return self.go_on(Stage::Failed(error)),
                Err(_) => return,
            }
        }
    }

    fn send_on(&self, connection: &Arc<Connection>) -> Result<Sent, Error> {
        let (request, fds) = self.ask.say_after_opening(connection, self.deadline, &|| self.is_queued())?;
        match connection.submit(&request, fds, self.ask.expected(), self.deadline) {
            Ok(key) => Ok(Sent { connection: Arc::clone(connection), key }),
            Err(SubmitError::Failed(error)) => Err(error),
            Err(SubmitError::Closed) => Err(Error::unavailable("the daemon closed the connection")),
        }
    }

    /// True while it waits to be sent and somebody wants it.
    pub(crate) fn is_queued(&self) -> bool {
        let state = self.lock();
        matches!(state.stage, Stage::Queued) && !self.is_overdue(Duration::ZERO)
    }

    /// Waits so long, less where it is not to be sent any more.
    pub(crate) fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut state = self.lock();
        while matches!(state.stage, Stage::Queued) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.await_change(state, left);
        }
    }

    /// Ends the stage of waiting to be sent.
    pub(crate) fn fail(&self, error: Error) {
        self.go_on(Stage::Failed(error));
    }

    fn go_on(&self, stage: Stage) {
        let (waker, unwanted) = {
            let mut state = self.lock();
            self.announce(&state);
            match state.stage {
                Stage::Queued => {
                    state.stage = stage;
                    (state.waker.take(), None)
                }
                Stage::Sent(_) | Stage::Failed(_) | Stage::Over => (None, Some(stage)),
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        if let Some(Stage::Sent(sent)) = unwanted {
            sent.connection.abandon(sent.key);
        }
    }

    fn count_repeat(&self) -> bool {
        let mut state = self.lock();
        state.repeat_count += 1;
        state.repeat_count <= REPEATS_MAX
    }
}

/// Waiting.
impl Errand {
    /// The outcome, which is given once; none where it took longer than `patience` or a signal came.
    pub(crate) fn wait(self: &Arc<Self>, patience: Duration) -> Option<Result<Answered, Error>> {
        let end = Instant::now().checked_add(patience);
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            match self.look() {
                Look::Outcome(outcome) => return Some(outcome),
                Look::Queued => {
                    if left.is_some_and(|left| left.is_zero()) {
                        return None;
                    }
                    self.await_progress(left.unwrap_or(SLICE).min(SLICE));
                }
                Look::Sent(sent) => {
                    let slice = self
                        .time_left(ANSWER_GRACE)
                        .map_or(left, |due| Some(left.map_or(due, |left| left.min(due))));
                    let outcome = sent.connection.wait(sent.key, slice.or(Some(Duration::MAX)));
                    match outcome {
                        Some(outcome) => {
                            if let Some(outcome) = self.conclude(&sent, outcome) {
                                return Some(outcome);
                            }
                        }
                        None if self.is_overdue(ANSWER_GRACE) => {}
                        None => return None,
                    }
                }
            }
        }
    }

    /// Has a future woken when it should look again.
    pub(crate) fn poll(self: &Arc<Self>, context: &Context<'_>) -> Poll<Result<Answered, Error>> {
        {
            let mut state = self.lock();
            state.waker = Some(context.waker().clone());
            if state.alarm.is_none()
                && let Some(due) = self.deadline.and_then(|deadline| deadline.checked_add(ANSWER_GRACE))
            {
                state.alarm = Some(Alarm::set(due, Arc::downgrade(self)));
            }
        }
        loop {
            match self.look() {
                Look::Outcome(outcome) => return Poll::Ready(outcome),
                Look::Queued => return Poll::Pending,
                Look::Sent(sent) => match sent.connection.poll(sent.key, context) {
                    Poll::Ready(outcome) => {
                        if let Some(outcome) = self.conclude(&sent, outcome) {
                            return Poll::Ready(outcome);
                        }
                    }
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    /// True if waiting will not take time.
    pub(crate) fn is_done(self: &Arc<Self>) -> bool {
        let sent = {
            let state = self.lock();
            match &state.stage {
                Stage::Failed(_) | Stage::Over => return true,
                Stage::Queued => return self.is_overdue(Duration::ZERO),
                Stage::Sent(sent) => sent.clone(),
            }
        };
        if !sent.connection.is_done(sent.key) {
            return self.is_overdue(ANSWER_GRACE);
        }
        match sent.connection.loss(sent.key) {
            Some(reason) => {
                self.take_loss(&sent, &reason);
                !matches!(self.lock().stage, Stage::Queued)
            }
            None => true,
        }
    }

    /// Wakes the future that waits, if one does.
    pub(crate) fn wake(&self) {
        let waker = self.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn look(&self) -> Look {
        let mut state = self.lock();
        let grace = match &state.stage {
            Stage::Queued => Duration::ZERO,
            Stage::Sent(_) => ANSWER_GRACE,
            Stage::Failed(_) => {
                return match std::mem::replace(&mut state.stage, Stage::Over) {
                    Stage::Failed(error) => Look::Outcome(Err(error)),
                    Stage::Queued | Stage::Sent(_) | Stage::Over => Look::Outcome(Err(taken_already())),
                };
            }
            Stage::Over => return Look::Outcome(Err(taken_already())),
        };
        let sent = match &state.stage {
            Stage::Sent(sent) => Some(sent.clone()),
            Stage::Queued | Stage::Failed(_) | Stage::Over => None,
        };
        // What has come by now counts, however late it is asked for.
        if self.is_overdue(grace) && sent.as_ref().is_none_or(|sent| !sent.connection.has_ended(sent.key)) {
            state.stage = Stage::Over;
            self.announce(&state);
            drop(state);
            if let Some(sent) = sent {
                sent.connection.abandon(sent.key);
            }
            return Look::Outcome(Err(overdue()));
        }
        sent.map_or(Look::Queued, Look::Sent)
    }

    fn await_progress(&self, patience: Duration) {
        let state = self.lock();
        if matches!(state.stage, Stage::Queued) {
            let patience = self.time_left(Duration::ZERO).map_or(patience, |left| left.min(patience));
            drop(self.await_change(state, patience));
        }
    }

    fn await_change<'a>(&'a self, mut state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        state.waiter_count += 1;
        let (mut state, _) = self.progress.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner);
        state.waiter_count -= 1;
        state
    }

    /// Tells those who wait for another stage. Not where nobody does: that would cost a system call all the same.
    fn announce(&self, state: &State) {
        if state.waiter_count > 0 {
            self.progress.notify_all();
        }
    }

    /// The outcome of a call as that of the errand; none where there is more to wait for.
    fn conclude(self: &Arc<Self>, sent: &Sent, outcome: Outcome) -> Option<Result<Answered, Error>> {
        match outcome {
            Ok(answer) => {
                let stage = std::mem::replace(&mut self.lock().stage, Stage::Over);
                drop(stage);
                sent.connection.abandon(sent.key);
                Some(Ok(Answered { answer, connection: Arc::clone(&sent.connection) }))
            }
            Err(Error::DaemonUnavailable { reason }) => {
                self.take_loss(sent, &reason);
                None
            }
            Err(error) => {
                {
                    let mut state = self.lock();
                    // Another thread may have seen the loss first, and this one only what was left of it.
                    if !matches!(&state.stage, Stage::Sent(current) if current.is_same(sent)) {
                        return None;
                    }
                    state.stage = Stage::Over;
                }
                sent.connection.abandon(sent.key);
                Some(Err(error))
            }
        }
    }

    /// The connection was lost before the answer came: it is asked for again.
    fn take_loss(self: &Arc<Self>, sent: &Sent, reason: &str) {
        self.client.note_loss(&sent.connection, reason);
        let is_to_repeat = {
            let mut state = self.lock();
            if !matches!(&state.stage, Stage::Sent(current) if current.is_same(sent)) {
                return;
            }
            state.repeat_count += 1;
            self.announce(&state);
            let is_to_repeat = !state.is_cancelled && state.repeat_count <= REPEATS_MAX;
            state.stage = if is_to_repeat {
                Stage::Queued
            } else if state.is_cancelled {
                Stage::Failed(cancelled())
            } else {
                Stage::Failed(Error::unavailable(format!("{reason}, {REPEATS_MAX} times in a row")))
            };
            is_to_repeat
        };
        sent.connection.abandon(sent.key);
        if is_to_repeat {
            self.client.dispatch(self);
        }
    }
}

/// Its end.
impl Errand {
    /// Asks the daemon to give up; what was not sent yet is given up here.
    pub(crate) fn cancel(&self) {
        let sent = {
            let mut state = self.lock();
            state.is_cancelled = true;
            match &state.stage {
                Stage::Sent(sent) => Some(sent.clone()),
                Stage::Queued | Stage::Failed(_) | Stage::Over => None,
            }
        };
        match sent {
            Some(sent) => sent.connection.cancel(sent.key),
            None => self.go_on(Stage::Failed(cancelled())),
        }
    }

    /// Nobody wants it any more.
    pub(crate) fn abandon(&self) {
        let stage = {
            let mut state = self.lock();
            state.waker = None;
            state.alarm = None;
            self.announce(&state);
            std::mem::replace(&mut state.stage, Stage::Over)
        };
        if let Stage::Sent(sent) = stage {
            sent.connection.abandon(sent.key);
        }
    }

    fn is_overdue(&self, grace: Duration) -> bool {
        self.time_left(grace).is_some_and(|left| left.is_zero())
    }

    fn time_left(&self, grace: Duration) -> Option<Duration> {
        let due = self.deadline?.checked_add(grace)?;
        Some(due.saturating_duration_since(Instant::now()))
    }
}

fn taken_already() -> Error {
    Error::InvalidRequest("the result of this request was taken already".into())
}

fn overdue() -> Error {
    Error::Deadline("the deadline of the request passed before the daemon answered".into())
}

fn cancelled() -> Error {
    Error::Cancelled("the request was cancelled while there was no daemon".into())
}
