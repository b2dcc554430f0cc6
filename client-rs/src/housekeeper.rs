//! The housekeeper: one thread of this process that reports returned leases when no message takes them
//! along, and collects answers that nobody waits for any more.
//!
//! It is started at the first result in shared memory. No request ever waits for it.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, Weak};
use std::thread::Thread;
use std::time::Duration;

use rustix::thread::gettid;

use crate::fork::PerProcess;
use crate::link::Link;
use crate::threads;

/// How long returned leases wait for a message that takes them along. Far longer than the time between
/// two requests of a busy program, and short enough that other processes do not miss the memory.
const PATIENCE: Duration = Duration::from_millis(50);

/// How often it is looked whether forked children have gone, while nothing else is to be done.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Housekeeper {
    thread: OnceLock<Option<Thread>>,
    /// The thread's number in the system; 0 before it runs.
    number: AtomicI32,
    is_due: AtomicBool,
    links: Mutex<Vec<Weak<Link>>>,
}

static HOUSEKEEPER: PerProcess<Housekeeper> = PerProcess::new();

/// What is left to do for a connection after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Remaining {
    /// Nothing.
    Nothing,
    /// Leases that forked children may still read.
    Deferred,
    /// Messages that the socket did not take, or answers that nobody waits for.
    Soon,
}

/// Looks after a connection from now on. Where no thread can be started, returned leases wait for the
/// next message.
pub(crate) fn look_after(link: Weak<Link>) {
    let housekeeper = HOUSEKEEPER.get();
    housekeeper.links.lock().unwrap_or_else(PoisonError::into_inner).push(link);
    housekeeper.thread.get_or_init(|| {
        let handle = threads::spawn("reeld-keeper", || HOUSEKEEPER.get().run()).ok()?;
        Some(handle.thread().clone())
    });
    // Whoever nudged before the thread could be found did not wake it.
    if housekeeper.is_due.load(Ordering::Acquire)
        && let Some(Some(thread)) = housekeeper.thread.get()
    {
        thread.unpark();
    }
}

/// Says that there is something to do. Never blocks.
pub(crate) fn nudge() {
    let housekeeper = HOUSEKEEPER.get();
    if !housekeeper.is_due.swap(true, Ordering::AcqRel)
        // Its own nudge is for after the pause: woken by itself, it would never rest.
        && housekeeper.number.load(Ordering::Relaxed) != gettid().as_raw_nonzero().get()
        && let Some(Some(thread)) = housekeeper.thread.get()
    {
        thread.unpark();
    }
}

impl Housekeeper {
    fn run(&self) {
        self.number.store(gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        let mut remaining = Remaining::Nothing;
        loop {
            match remaining {
                // What was returned before this thread began, or by itself, counts too.
                _ if self.is_due.load(Ordering::Acquire) => {}
                Remaining::Nothing => std::thread::park(),
                Remaining::Deferred => std::thread::park_timeout(LOOK_INTERVAL),
                Remaining::Soon => {}
            }
            if self.is_due.load(Ordering::Acquire) || remaining == Remaining::Soon {
                // Most often the next request takes everything along meanwhile.
                std::thread::park_timeout(PATIENCE);
            }
            self.is_due.store(false, Ordering::Release);
            remaining = self.round();
        }
    }

    fn round(&self) -> Remaining {
        let links: Vec<_> = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.retain(|link| link.strong_count() > 0);
            links.iter().filter_map(Weak::upgrade).collect()
        };
        links.iter().map(Link::keep_house).max().unwrap_or(Remaining::Nothing)
    }
}
