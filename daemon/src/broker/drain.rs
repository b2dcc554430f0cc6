//! How the daemon ends: it stops accepting, finishes what is under way, and goes. What clients hold stays
//! readable without it, so leases keep it from nothing.
//!
//! When to end is decided elsewhere: by a signal, or by the clock of a private daemon.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Broker, Flow, reply};

/// How long answers that clients do not read keep the daemon from ending.
const FLUSHED_WITHIN: Duration = Duration::from_secs(1);

/// The daemon is ending.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// What is not finished by then is answered with an error.
    give_up_at: Instant,
    /// Set once nothing is under way: what is not read by then stays unread.
    end_at: Option<Instant>,
}

impl Broker {
    /// Begins to end: the only place where that begins. The socket is gone when this returns.
    pub(super) fn begin_drain(&mut self, reason: &str) {
        if self.drain.is_some() {
            return;
        }
        let seconds = self.settings.drain_seconds;
        tracing::info!(
            reason,
            requests = self.requests.len() + self.opens.len(),
            clients = self.clients.len(),
            seconds,
            "stopping: finishing what is under way"
        );
        if let Some(accepting) = &mut self.accepting {
            accepting.stop();
        }
        self.service.stopping();
        self.drain = Some(Drain { give_up_at: Instant::now() + Duration::from_secs(seconds), end_at: None });
    }

    /// True from the beginning of the end: new work is refused.
    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// When the clock has something to say about the end.
    pub(super) fn drain_deadline(&self) -> Option<Instant> {
        self.drain.map(|drain| drain.end_at.unwrap_or(drain.give_up_at))
    }

    /// Stops the loop once everything is answered and the answers are sent, or time is up.
    pub(super) fn settle_drain(&mut self) -> Flow {
        let Some(drain) = self.drain else { return Flow::GoOn };
        let now = Instant::now();
        if now >= drain.give_up_at {
            self.give_up_all();
        }
        if self.requests.len() + self.opens.len() > 0 {
            return Flow::GoOn;
        }
        let end_at = drain.end_at.unwrap_or(now + FLUSHED_WITHIN);
        self.drain = Some(Drain { end_at: Some(end_at), ..drain });
        let is_flushed = self.clients.values().all(|client| client.is_flushed() || client.is_broken());
        if is_flushed || now >= end_at { Flow::Stop } else { Flow::GoOn }
    }

    /// Answers all that is still under way with an error.
    fn give_up_all(&mut self) {
        let left = self.requests.len() + self.opens.len();
        if left > 0 {
            tracing::warn!(requests = left, "time is up: what is still under way is given up");
        }
        let mut clients = BTreeSet::new();
        for request in self.requests.keys() {
            clients.extend(self.refuse_request(request, reply::shutting_down()));
        }
        clients.into_iter().for_each(|client| self.forget_unwanted(client));
        let opens: Vec<u64> = self.opens.keys().copied().collect();
        for open in opens {
            self.fail_open(open, reply::shutting_down());
        }
    }
}
