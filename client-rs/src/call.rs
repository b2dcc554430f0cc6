//! [`Call`]: this side's hold on one request of any kind.
//!
//! What becomes of the request is `errand.rs`'s matter, and what the answer means that of its kind:
//! [`crate::Pending`] for frames.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::ask::Ask;
use crate::calls::Outcome;
use crate::client::Client;
use crate::errand::{Answered, Errand};
use crate::error::Error;
use crate::fork::Own;

/// A request that was made. Dropping it cancels it and gives back what it brings.
pub(crate) struct Call {
    held: Own<Held>,
}

struct Held {
    errand: Arc<Errand>,
}

impl Call {
    /// Makes a request. Never waits for the daemon.
    pub(crate) fn start(client: Client, ask: Ask, deadline: Option<Instant>) -> Result<Call, Error> {
        Errand::start(client, ask, deadline).map(|errand| Call { held: Own::new(Held { errand }) })
    }

    /// One that was sent by hand.
    #[cfg(test)]
    pub(crate) fn of(errand: Arc<Errand>) -> Call {
        Call { held: Own::new(Held { errand }) }
    }

    pub(crate) fn wait(&self) -> Outcome {
        self.wait_answered().map(|answered| answered.answer)
    }

    /// The answer, with the connection that it came by.
    pub(crate) fn wait_answered(&self) -> Result<Answered, Error> {
        let Some(held) = self.held.get() else { return Err(left_to_parent()) };
        loop {
            if let Some(outcome) = held.errand.wait(Duration::MAX) {
                return outcome;
            }
        }
    }

    pub(crate) fn wait_timeout(&self, patience: Duration) -> Option<Outcome> {
        self.wait_answered_timeout(patience).map(|outcome| outcome.map(|answered| answered.answer))
    }

    pub(crate) fn wait_answered_timeout(&self, patience: Duration) -> Option<Result<Answered, Error>> {
        match self.held.get() {
            Some(held) => held.errand.wait(patience),
            None => Some(Err(left_to_parent())),
        }
    }

    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Outcome> {
        match self.held.get() {
            Some(held) => held.errand.poll(context).map(|outcome| outcome.map(|answered| answered.answer)),
            None => Poll::Ready(Err(left_to_parent())),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.held.get().is_none_or(|held| held.errand.is_done())
    }

    pub(crate) fn cancel(&self) {
        if let Some(held) = self.held.get() {
            held.errand.cancel();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.errand.abandon();
    }
}

fn left_to_parent() -> Error {
    Error::Cancelled("the request stayed with the process that was forked; make it again".into())
}
