//! [`Call`]: this side's hold on one request of any kind.
//!
//! What the answer means is the matter of its kind: [`crate::Pending`] for frames.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::calls::{CallKey, Outcome};
use crate::connection::Connection;
use crate::error::Error;
use crate::fork::Own;

/// A request that was sent. Dropping it cancels it and gives back what it brings.
pub(crate) struct Call {
    held: Own<Held>,
}

struct Held {
    connection: Arc<Connection>,
    key: CallKey,
}

impl Call {
    pub(crate) fn new(connection: Arc<Connection>, key: CallKey) -> Call {
        Call { held: Own::new(Held { connection, key }) }
    }

    pub(crate) fn wait(&self) -> Outcome {
        loop {
            if let Some(outcome) = self.wait_timeout(Duration::MAX) {
                return outcome;
            }
        }
    }

    pub(crate) fn wait_timeout(&self, patience: Duration) -> Option<Outcome> {
        match self.held.get() {
            Some(held) => held.connection.wait(held.key, Some(patience)),
            None => Some(Err(left_to_parent())),
        }
    }

    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Outcome> {
        match self.held.get() {
            Some(held) => held.connection.poll(held.key, context),
            None => Poll::Ready(Err(left_to_parent())),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.held.get().is_none_or(|held| held.connection.is_done(held.key))
    }

    pub(crate) fn cancel(&self) {
        if let Some(held) = self.held.get() {
            held.connection.cancel(held.key);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connection.abandon(self.key);
    }
}

fn left_to_parent() -> Error {
    Error::Cancelled("the request stayed with the process that was forked; make it again".into())
}
