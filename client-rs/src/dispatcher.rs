//! [`Dispatcher`]: the threads that send what cannot be sent at once, because the daemon has to be found
//! again or a video opened again first.
//!
//! Whoever waits for a request never does such work itself: it could neither look after signals meanwhile
//! nor keep its deadline. What is sent, and over which connection, is `errand.rs`'s and `client.rs`'s matter.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::client::Client;
use crate::errand::Errand;
use crate::error::Error;
use crate::threads;

/// Threads of one client. One finds the daemon for all; more open different videos at the same time, and a
/// file that hangs holds up only one of them.
const THREADS_MAX: usize = 8;

/// Requests that wait for these threads. Above it new ones wait with their callers.
const QUEUED_MAX: usize = 1024;

/// What waits to be sent.
#[derive(Default)]
pub(crate) struct Dispatcher {
    queue: Mutex<Queue>,
    room: Condvar,
}

#[derive(Default)]
struct Queue {
    errands: VecDeque<Arc<Errand>>,
    thread_count: usize,
}

impl Dispatcher {
    /// Sends an errand as soon as a thread is free. `client` is whose dispatcher this is.
    pub(crate) fn dispatch(&self, client: &Client, errand: &Arc<Errand>) {
        {
            let mut queue = self.lock();
            queue.errands.push_back(Arc::clone(errand));
            if queue.thread_count == THREADS_MAX {
                return;
            }
            queue.thread_count += 1;
        }
        let theirs = client.clone();
        if let Err(error) = threads::spawn("reeld-dispatch", move || theirs.run_dispatcher()) {
            let mut queue = self.lock();
            queue.thread_count -= 1;
            if queue.thread_count == 0 {
                let stranded = std::mem::take(&mut queue.errands);
                drop(queue);
                for errand in stranded {
                    let message = format!("no thread could be started to reach the daemon: {error}");
                    errand.fail(Error::LimitReached(message));
                }
            }
        }
    }

    /// Sends until nothing waits.
    pub(crate) fn run(&self) {
        while let Some(errand) = self.next() {
            errand.send();
        }
    }

    fn next(&self) -> Option<Arc<Errand>> {
        let mut queue = self.lock();
        let next = queue.errands.pop_front();
        if next.is_none() {
            queue.thread_count -= 1;
        }
        drop(queue);
        self.room.notify_one();
        next
    }

    /// True while more waits than is good.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().errands.len() > QUEUED_MAX
    }

    /// Waits, at most that long, for something to be sent.
    pub(crate) fn await_room(&self, patience: Duration) {
        let queue = self.lock();
        if queue.errands.len() > QUEUED_MAX {
            drop(self.room.wait_timeout(queue, patience));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
