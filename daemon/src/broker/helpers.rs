//! [`Helpers`]: threads for calls that may hang on a foreign file system, or that take longer than the loop's
//! thread has time for.
//!
//! Each user has a line of its own, and so has the daemon: what hangs holds up its own line and nobody else's.
//! A call that does not come back in time is *abandoned*: it keeps its thread until the kernel lets go of it,
//! is counted, and makes room for another one of its line, up to a bound. A line that has reached that bound
//! is *silent*: its file system does not answer, and new calls are refused at once. Descriptors are closed
//! here too, since closing is such a call; a line that is silent keeps them until something comes back.
//!
//! What the calls are, and what becomes of their results, is the caller's matter.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use reeld_protocol::error::WireError;
use reeld_protocol::ids::StreamIndex;
use tokio::sync::mpsc;

use super::Event;
use super::queue::Waiter;
use super::requests::PlannedPart;
use super::source_file::SourceFile;
use crate::link::CatalogId;
use crate::link::index::{Index, IndexError};

/// Threads, all lines together. Each costs some pages of memory while it hangs. At [`ABANDONED_MAX`] and
/// [`ACTIVE_MAX`] for each, about fifty users whose file systems hang leave threads for everybody else.
pub const THREADS_MAX: usize = 512;

/// Calls of one line at a time that are not abandoned.
const ACTIVE_MAX: usize = 4;

/// Calls of one line that hang, after which the line is silent.
const ABANDONED_MAX: usize = 8;

/// Descriptors of one line that wait to be closed. Only a file system that hangs lets them become so many, and
/// whoever adds to them is sent away. Other calls of a line are bounded by its clients' requests in flight.
const CHORES_MAX: usize = 1024;

/// Whose file systems a call depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// Nobody's: our own memory.
    House,
    /// Those of this uid. Users whom the kernel cannot tell apart here share one line.
    User(u32),
}

/// Who waits for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An `OpenSource`.
    Open(u64),
    /// A `GetFrames`.
    Locate(u64),
    /// A scan that is not necessary if the disk has its result.
    Load { source: CatalogId, stream: StreamIndex, waiter: Waiter },
    /// Nobody.
    Chore,
}

/// What a call brought.
#[derive(Debug)]
pub enum Done {
    /// Nothing to speak of.
    Nothing,
    /// The descriptor of an open was looked at.
    SourceChecked(Result<SourceFile, WireError>),
    /// The frames of a request were found.
    Located(Result<Vec<PlannedPart>, WireError>),
    /// An index was read: an engine's, or a stored one.
    IndexRead { source: CatalogId, stream: StreamIndex, index: Result<Index, IndexError> },
}

/// Calls of one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineCounts {
    /// On threads now, hanging ones included.
    pub running: usize,
    /// Given up, and not come back.
    pub abandoned: usize,
    /// Waiting for a thread.
    pub waiting: usize,
}

type Work = Box<dyn FnOnce() -> Done + Send>;

#[derive(Debug)]
struct Call {
    purpose: Purpose,
    since: Instant,
    is_abandoned: bool,
}

#[derive(Default)]
struct LineState {
    running: BTreeMap<u64, Call>,
    waiting: VecDeque<(Purpose, Work)>,
}

/// All lines.
pub struct Helpers {
    lines: BTreeMap<Line, LineState>,
    running_count: usize,
    next_call: u64,
    patience: Duration,
    events: mpsc::Sender<Event>,
}

impl LineState {
    fn abandoned_count(&self) -> usize {
        self.running.values().filter(|call| call.is_abandoned).count()
    }

    fn is_silent(&self) -> bool {
        self.abandoned_count() >= ABANDONED_MAX
    }

    fn may_start(&self) -> bool {
        let abandoned_count = self.abandoned_count();
        abandoned_count < ABANDONED_MAX && self.running.len() - abandoned_count < ACTIVE_MAX
    }
}

impl Helpers {
    /// No thread yet; they come as they are needed. A call is abandoned after `patience`.
    pub fn new(patience: Duration, events: mpsc::Sender<Event>) -> Helpers {
        Helpers { lines: BTreeMap::new(), running_count: 0, next_call: 0, patience, events }
    }

    /// Has something done. Its result comes as an event.
    pub fn run(&mut self, line: Line, purpose: Purpose, work: impl FnOnce() -> Done + Send + 'static) {
        self.lines.entry(line).or_default().waiting.push_back((purpose, Box::new(work)));
        self.start(line);
    }

    /// Drops something whose end may take its time, such as a descriptor of a foreign file.
    pub fn discard(&mut self, line: Line, thing: impl Send + 'static) {
        self.run(line, Purpose::Chore, move || {
            drop(thing);
            Done::Nothing
        });
    }

    /// True while new calls of this line are of no use.
    pub fn is_silent(&self, line: Line) -> bool {
        self.lines.get(&line).is_some_and(LineState::is_silent)
    }

    /// True while too much of this line waits to be closed.
    pub fn is_overfull(&self, line: Line) -> bool {
        let is_chore = |waiting: &&(Purpose, Work)| waiting.0 == Purpose::Chore;
        self.lines.get(&line).is_some_and(|state| state.waiting.iter().filter(is_chore).count() >= CHORES_MAX)
    }

    /// A call has come back. Returns who waited for it, unless they were told already that it hangs.
    pub fn returned(&mut self, line: Line, call: u64) -> Purpose {
        let Some(state) = self.lines.get_mut(&line) else { return Purpose::Chore };
        let Some(call) = state.running.remove(&call) else { return Purpose::Chore };
        self.running_count -= 1;
        if call.is_abandoned {
            tracing::info!(?line, "a call on a file came back that had been given up");
        }
        // Usually its own line goes on. Only at the bound of all threads do others wait for this.
        let lines: Vec<Line> = std::iter::once(line).chain(self.lines.keys().copied()).collect();
        lines.into_iter().for_each(|line| self.start(line));
        self.lines.retain(|_, state| !state.running.is_empty() || !state.waiting.is_empty());
        if call.is_abandoned { Purpose::Chore } else { call.purpose }
    }

    /// Gives up calls that hang, and names those who wait for one, or in a line that is silent by now.
    pub fn abandon(&mut self, now: Instant) -> Vec<Purpose> {
        let mut told = Vec::new();
        let lines: Vec<Line> = self.lines.keys().copied().collect();
        for line in lines {
            let Some(state) = self.lines.get_mut(&line) else { continue };
            let hangs = |call: &&mut Call| {
                !call.is_abandoned && now.saturating_duration_since(call.since) >= self.patience
            };
            for call in state.running.values_mut().filter(hangs) {
                tracing::warn!(?line, "a call on a file does not come back: its file system does not answer");
                call.is_abandoned = true;
                told.push(call.purpose);
            }
            if state.is_silent() {
                let waiting = state.waiting.iter_mut();
                told.extend(waiting.map(|(purpose, _)| std::mem::replace(purpose, Purpose::Chore)));
            }
            self.start(line);
        }
        told.retain(|purpose| *purpose != Purpose::Chore);
        told
    }

    /// How each line is doing that has something to do.
    pub fn counts(&self) -> impl Iterator<Item = (Line, LineCounts)> {
        self.lines.iter().map(|(&line, state)| {
            let (running, abandoned) = (state.running.len(), state.abandoned_count());
            (line, LineCounts { running, abandoned, waiting: state.waiting.len() })
        })
    }

    /// Calls that were given up and have not come back.
    pub fn abandoned_count(&self) -> usize {
        self.lines.values().map(LineState::abandoned_count).sum()
    }

    /// Lines with something to do.
    #[cfg(test)]
    pub fn line_count(&self) -> usize {
        self.lines.len()
    }

    fn start(&mut self, line: Line) {
        let Some(state) = self.lines.get_mut(&line) else { return };
        while self.running_count < THREADS_MAX && state.may_start() {
            let Some((purpose, work)) = state.waiting.pop_front() else { return };
            self.next_call += 1;
            self.running_count += 1;
            let call = self.next_call;
            state.running.insert(call, Call { purpose, since: Instant::now(), is_abandoned: false });
            let events = self.events.clone();
            tokio::task::spawn_blocking(move || {
                // Whoever waits is told of a panic by having got nothing.
                let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or(Done::Nothing);
                // Fails only when the daemon ends.
                let _ = events.blocking_send(Event::Helped { line, call, done });
            });
        }
    }
}

impl std::fmt::Debug for Helpers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Helpers").field("running_count", &self.running_count).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as channel;

    use super::*;

    const USER: Line = Line::User(1000);
    const PATIENCE: Duration = Duration::from_secs(5);

    /// Runs a test on a loop's thread, with real threads that hang until they are told otherwise.
    fn with_helpers(test: impl AsyncFnOnce(Helpers, mpsc::Receiver<Event>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (events, incoming) = mpsc::channel(1024);
        runtime.block_on(test(Helpers::new(PATIENCE, events), incoming));
        runtime.shutdown_background();
    }

    /// A call that hangs until the sender is dropped.
    fn hang(helpers: &mut Helpers, line: Line, purpose: Purpose) -> channel::Sender<()> {
        let (release, released) = channel::channel::<()>();
        helpers.run(line, purpose, move || {
            let _ = released.recv();
            Done::Nothing
        });
        release
    }

    async fn next(helpers: &mut Helpers, incoming: &mut mpsc::Receiver<Event>) -> (Line, Purpose) {
        match incoming.recv().await {
            Some(Event::Helped { line, call, .. }) => (line, helpers.returned(line, call)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn user_whose_calls_hang_holds_nobody_up() {
        with_helpers(async |mut helpers, mut incoming| {
            let _hanging: Vec<_> = (0..100).map(|_| hang(&mut helpers, USER, Purpose::Chore)).collect();
            helpers.run(Line::User(1), Purpose::Open(7), || Done::Nothing);
            let returned = next(&mut helpers, &mut incoming).await;
            assert_eq!(returned, (Line::User(1), Purpose::Open(7)));
        });
    }

    #[test]
    fn line_is_silent_once_as_many_calls_hang_as_it_may_have() {
        with_helpers(async |mut helpers, mut incoming| {
            let mut hanging: Vec<_> =
                (0..20).map(|open| hang(&mut helpers, USER, Purpose::Open(open))).collect();
            let late = Instant::now() + PATIENCE;
            assert_eq!(helpers.abandon(late).len(), ACTIVE_MAX);
            assert!(!helpers.is_silent(USER));
            let told = helpers.abandon(late + PATIENCE);
            assert!(helpers.is_silent(USER));
            assert_eq!(told.len(), 20 - ACTIVE_MAX, "those that wait in a silent line are told too");
            assert_eq!(helpers.abandoned_count(), ABANDONED_MAX);
            hanging.clear();
            for _ in 0..20 {
                assert_eq!(next(&mut helpers, &mut incoming).await.1, Purpose::Chore, "told already");
            }
            assert_eq!((helpers.abandoned_count(), helpers.line_count()), (0, 0));
        });
    }

    #[test]
    fn call_that_panics_comes_back_with_nothing() {
        with_helpers(async |mut helpers, mut incoming| {
            helpers.run(USER, Purpose::Open(3), || panic!("on purpose"));
            assert_eq!(next(&mut helpers, &mut incoming).await, (USER, Purpose::Open(3)));
        });
    }

    #[test]
    fn line_with_too_much_to_close_is_overfull() {
        with_helpers(async |mut helpers, _incoming| {
            let _hanging: Vec<_> =
                (0..ACTIVE_MAX).map(|_| hang(&mut helpers, USER, Purpose::Chore)).collect();
            for _ in 0..CHORES_MAX {
                assert!(!helpers.is_overfull(USER));
                helpers.discard(USER, ());
            }
            assert!(helpers.is_overfull(USER) && !helpers.is_overfull(Line::House));
        });
    }
}
