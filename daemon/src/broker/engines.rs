//! The engine processes: started on demand, given one job at a time, reaped when they die or idle. Each
//! serves one user.
//!
//! What the jobs are about, and what becomes of their results, is not known here.

mod engine;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::blame::Death;
use super::helpers::Line;
use super::job::{Job, User, mix};
use super::peer::{Peer, Socket};
use super::spawner::{Order, Process, Spawner};
use super::{Event, PeerKey};
use crate::config::Limits;
use crate::link::{ArenaKey, CatalogId, EngineReport, EngineRequest, JobId};
use engine::Stage;
pub use engine::{Engine, Running};

/// An engine without work ends after this long: its sessions and pictures are of no use to others, and the
/// next one starts in about 20 ms.
const IDLE_KEPT: Duration = Duration::from_secs(60);

/// Where there are more engines than the budget says, because each user at work has one, idle ones end after
/// this: not at once, since a user's next request often follows within a training step.
const SURPLUS_KEPT: Duration = Duration::from_secs(5);

/// Runs that an engine has begun and that wait for their next turn. Below the number of its sessions, so
/// that a warm one is never evicted before its run goes on.
const PINNED_MAX: usize = 4;

/// Codec threads of one run, unless a client wants another number: more bring little and each holds pictures.
const THREADS_MAX: u16 = 8;

/// What of a processor may be lost rather than have one codec thread more, which decodes a picture ahead.
const SHARE_TOLERANCE: f64 = 0.25;

/// How long the daemon waits for its engines when it ends: a killed process is gone within milliseconds.
const ENDED_WITHIN: Duration = Duration::from_secs(1);

/// Users that are remembered for having lost an engine.
const BEREFT_MAX: usize = 1024;

/// Names an engine process. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineKey(pub u64);

/// All engine processes of the node.
#[derive(Debug)]
pub struct Engines {
    engines: BTreeMap<EngineKey, Engine>,
    engine_count_max: usize,
    cache_mib: u64,
    decoders_mib: u64,
    memory_mib: u64,
    log: String,
    silence_max: Duration,
    spawner: Spawner,
    backoff: Backoff,
    events: mpsc::Sender<Event>,
    next_key: u64,
    next_job: u64,
    /// Users one of whose engines has ended without being told to, until the next one is started.
    bereft: BTreeSet<User>,
    restart_count: u64,
}

impl Engines {
    /// None yet. They log what `log` says; one that says nothing for `silence_max` hangs.
    pub fn new(
        limits: &Limits,
        log: &str,
        silence_max: Duration,
        events: mpsc::Sender<Event>,
    ) -> io::Result<Engines> {
        Ok(Engines {
            engines: BTreeMap::new(),
            engine_count_max: engine_count_max(limits),
            cache_mib: limits.engine_cache_mib,
            decoders_mib: limits.engine_decoders_mib,
            memory_mib: limits.engine_memory_mib,
            log: log.to_owned(),
            silence_max,
            spawner: Spawner::start(events.clone())?,
            backoff: Backoff::default(),
            events,
            next_key: 0,
            next_job: 0,
            bereft: BTreeSet::new(),
            restart_count: 0,
        })
    }

    /// Engines come from elsewhere from now on.
    #[cfg(any(test, fuzzing))]
    pub fn start_with(&mut self, spawner: Spawner) {
        self.spawner = spawner;
    }

    /// From now on engines are started by these. Those that run stay as they are; where they are too many, the
    /// idle ones end in their time.
    pub fn change_limits(&mut self, limits: &Limits, log: &str) {
        self.engine_count_max = engine_count_max(limits);
        self.cache_mib = limits.engine_cache_mib;
        self.decoders_mib = limits.engine_decoders_mib;
        self.memory_mib = limits.engine_memory_mib;
        log.clone_into(&mut self.log);
    }

    /// Engines that were started in place of one that had ended without being told to.
    pub fn restart_count(&self) -> u64 {
        self.restart_count
    }

    /// All engines.
    pub fn iter(&self) -> impl Iterator<Item = (EngineKey, &Engine)> {
        self.engines.iter().map(|(&key, engine)| (key, engine))
    }

    /// One engine.
    pub fn get_mut(&mut self, engine: EngineKey) -> Option<&mut Engine> {
        self.engines.get_mut(&engine)
    }

    /// All engines.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (EngineKey, &mut Engine)> {
        self.engines.iter_mut().map(|(&key, engine)| (key, engine))
    }

    /// The idle engine that shall do this job: the one that began it, else the one where its frames are
    /// likely cached, else any. `pinned_counts` says how many begun runs wait for each engine.
    pub fn choose(&self, job: &Job, pinned_counts: &BTreeMap<EngineKey, usize>) -> Option<EngineKey> {
        if let Some(pinned) = job.pinned
            && self.engines.contains_key(&pinned)
        {
            return Some(pinned).filter(|pinned| self.engines[pinned].is_idle());
        }
        let is_free = |key: &EngineKey| pinned_counts.get(key).is_none_or(|&count| count < PINNED_MAX);
        let candidates = self
            .engines
            .iter()
            .filter(|(key, engine)| engine.user == job.user && engine.is_idle() && is_free(key));
        let affinity = job.affinity();
        let mine = self.engines.iter().filter(|(_, engine)| engine.user == job.user);
        let home = mine.map(|(&key, _)| key).max_by_key(|key| mix(affinity ^ mix(key.0)));
        let mut candidates: Vec<EngineKey> = candidates.map(|(&key, _)| key).collect();
        candidates.sort_by_key(|&key| Some(key) != home);
        candidates.first().copied()
    }

    /// True if this user has an engine.
    pub fn serves(&self, user: User) -> bool {
        self.engines.values().any(|engine| engine.user == user && !engine.is_leaving)
    }

    /// True for a run that was begun by an engine which still lives: no other shall do it.
    pub fn awaits_its_own(&self, job: &Job) -> bool {
        job.pinned.is_some_and(|pinned| self.engines.contains_key(&pinned))
    }

    /// Codec threads for a run that is handed out now: the part of the processors that it has in all work, running and
    /// waiting. So the longest of a request's runs is not left to one processor when the others are done.
    pub fn thread_count(&self, wanted: u16, cost_pixels: u64, waiting_pixels: u64) -> u16 {
        let awaited = self.engines.values().filter(|engine| !engine.is_at_hints());
        let running = awaited.filter_map(|engine| engine.running.as_ref());
        let costs = running.map(|running| running.job.cost_pixels()).chain([cost_pixels, waiting_pixels]);
        let all_pixels = costs.fold(0, u64::saturating_add).max(1);
        let share = self.engine_count_max as f64 * cost_pixels as f64 / all_pixels as f64;
        let most = if wanted > 1 { wanted } else { THREADS_MAX };
        ((share - SHARE_TOLERANCE).ceil() as u16).clamp(1, most)
    }

    /// True if some engine could take work now.
    pub fn has_idle(&self) -> bool {
        self.engines.values().any(Engine::is_idle)
    }

    /// True while not all engines that the node's budget allows for are at work.
    pub fn has_free_processor(&self) -> bool {
        self.busy_count() < self.engine_count_max
    }

    fn busy_count(&self) -> usize {
        self.engines.values().filter(|engine| engine.running.is_some()).count()
    }

    /// True if one of this user's engines does what nobody waits for, and so is free at once.
    pub fn has_spare(&self, user: User) -> bool {
        self.engines.values().any(|engine| engine.user == user && engine.is_at_hints())
    }

    /// True if another engine may be started for this user: the node's budget has room, or the user has none,
    /// and its engines do not die one after the other.
    pub fn may_start(&self, user: User, now: Instant) -> bool {
        let is_starting = self.engines.values().any(|engine| engine.user == user && !engine.is_ready);
        let has_room = !self.serves(user) || self.engines.len() < self.engine_count_max;
        !is_starting && has_room && self.backoff.may_start(user, now)
    }

    /// When an engine may be started that may not be started now.
    pub fn next_start(&self, now: Instant) -> Option<Instant> {
        self.backoff.next_start(now)
    }

    /// Ends an idle engine of a user without work, where somebody else waits for the budget: the one that has
    /// been idle longest. `busy_users` have work that waits.
    pub fn make_way(&mut self, user: User, busy_users: &[User], pinned: &BTreeMap<EngineKey, usize>) {
        let is_starting = self.engines.values().any(|engine| engine.user == user && !engine.is_ready);
        let is_making_way = self.engines.values().any(|engine| engine.is_leaving);
        if is_starting || is_making_way || self.engines.len() < self.engine_count_max {
            return;
        }
        let is_spare = |key: &EngineKey, engine: &Engine| {
            engine.is_idle()
                && engine.user != user
                && !busy_users.contains(&engine.user)
                && !pinned.contains_key(key)
        };
        let spare = self.engines.iter_mut().filter(|(key, engine)| is_spare(key, engine));
        if let Some((key, engine)) = spare.min_by_key(|(_, engine)| engine.idle_since) {
            tracing::info!(
                engine = key.0,
                uid = engine.user.uid,
                for_uid = user.uid,
                "idle engine makes way"
            );
            engine.leave();
        }
    }

    /// Orders an engine. It takes work once it has said that it is ready.
    pub fn start(&mut self, user: User, now: Instant) -> io::Result<()> {
        let key = EngineKey(self.next_key);
        self.next_key += 1;
        let ordered = self.order(key, user, now);
        if ordered.is_err() {
            self.backoff.died(user, Duration::ZERO, false, now);
        }
        self.engines.insert(key, ordered?);
        if self.bereft.remove(&user) {
            self.restart_count += 1;
        }
        Ok(())
    }

    fn order(&self, key: EngineKey, user: User, now: Instant) -> io::Result<Engine> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let ours = Socket::new(ours).map_err(|(_, error)| error)?;
        let order = Order {
            cache_mib: self.cache_mib,
            decoders_mib: self.decoders_mib,
            memory_mib: self.memory_mib,
            log: self.log.clone(),
        };
        self.spawner.order(key, order, theirs.into())?;
        let line = Line::User(user.uid);
        Ok(Engine {
            user,
            running: None,
            report: EngineReport::default(),
            peer: Peer::start(PeerKey::Engine(key), line, ours, self.events.clone(), None),
            stage: Stage::Ordered { is_unwanted: false },
            is_ready: false,
            offence: None,
            is_leaving: false,
            sources: HashSet::new(),
            arenas: HashSet::new(),
            farewells: Vec::new(),
            started_at: now,
            idle_since: now,
            jobs_done: 0,
        })
    }

    /// An engine that was ordered is there, or could not be started.
    pub fn spawned(&mut self, key: EngineKey, spawned: io::Result<Box<dyn Process>>) {
        let watched = spawned.and_then(|mut process| match self.watch(key, process.as_ref()) {
            Ok(()) => Ok(process),
            Err(error) => {
                // Nothing would tell us of its end.
                process.kill();
                let _ = process.wait();
                Err(error)
            }
        });
        let Some(engine) = self.engines.get_mut(&key) else { return };
        let is_unwanted = matches!(engine.stage, Stage::Ordered { is_unwanted: true });
        match watched {
            Ok(process) => {
                tracing::info!(engine = key.0, pid = process.id(), uid = engine.user.uid, "engine started");
                engine.stage = Stage::Running(process);
                if is_unwanted {
                    engine.kill();
                }
            }
            Err(error) => {
                tracing::error!(engine = key.0, %error, "an engine cannot be started");
                engine.stage = Stage::Failed;
                engine.is_leaving = true;
                let events = self.events.clone();
                tokio::spawn(async move {
                    let _ = events.send(Event::EngineExited(key)).await;
                });
            }
        }
    }

    /// Makes the process's end an event.
    fn watch(&self, key: EngineKey, process: &dyn Process) -> io::Result<()> {
        // SAFETY: the descriptor is owned by the `AsyncFd` and open as long as that is registered.
        let pidfd = unsafe { AsyncFd::register_with_interest(process.pidfd()?, Interest::READABLE) }?;
        let events = self.events.clone();
        tokio::spawn(async move {
            // The guard is not cleared: a process ends once.
            let _ = pidfd.readable().await;
            let _ = events.send(Event::EngineExited(key)).await;
        });
        Ok(())
    }

    /// The engine said that it is ready.
    pub fn ready(&mut self, key: EngineKey, now: Instant) {
        if let Some(engine) = self.engines.get_mut(&key) {
            self.backoff.became_ready(engine.user);
            let millis = now.duration_since(engine.started_at).as_millis() as u64;
            tracing::info!(engine = key.0, pid = engine.pid(), millis, "engine ready");
            engine.is_ready = true;
            engine.idle_since = now;
        }
    }

    /// A fresh name for a job.
    pub fn next_job(&mut self) -> JobId {
        self.next_job += 1;
        JobId(self.next_job)
    }

    /// Collects an engine whose process has ended, and says how it did. Only after this may the slots be
    /// used again that it was writing into.
    pub fn reap(&mut self, key: EngineKey, now: Instant) -> Option<(Engine, Death)> {
        let mut engine = self.engines.remove(&key)?;
        let ended = match &mut engine.stage {
            // The process has ended, so this returns at once.
            Stage::Running(process) => process.wait(),
            Stage::Ordered { .. } | Stage::Failed => Err(io::Error::other("it was never started")),
        };
        let (pid, uid, jobs) = (engine.pid(), engine.user.uid, engine.jobs_done);
        let death = match (ended, engine.offence.take()) {
            (Ok(status), None) => {
                tracing::info!(engine = key.0, pid, uid, jobs, %status, "engine ended");
                Death::of(status)
            }
            (Ok(_), Some(offence)) => Death::Crash(offence),
            (Err(error), _) => {
                tracing::error!(engine = key.0, pid, uid, %error, "engine cannot be reaped");
                Death::Crash(error.to_string())
            }
        };
        if !engine.is_leaving && self.bereft.len() < BEREFT_MAX {
            self.bereft.insert(engine.user);
        }
        if !engine.is_leaving || engine.running.is_some() {
            let lived = now.saturating_duration_since(engine.started_at);
            self.backoff.died(engine.user, lived, engine.is_ready, now);
        }
        Some((engine, death))
    }

    /// True when engines cannot be started for this user at all: waiting work is hopeless.
    pub fn is_hopeless(&self, user: User) -> bool {
        let has_one = self.engines.values().any(|engine| engine.user == user && engine.is_ready);
        !has_one && self.backoff.is_hopeless(user)
    }

    /// Ends engines that have had nothing to do for long, and kills those that hang.
    pub fn tend(&mut self, now: Instant) {
        self.backoff.tend(now);
        let mut surplus = self.engines.len().saturating_sub(self.engine_count_max);
        for (key, engine) in &mut self.engines {
            let is_silent = |since: Instant| now.saturating_duration_since(since) >= self.silence_max;
            let is_surplus = surplus > 0 && engine.is_idle();
            let kept = if is_surplus { SURPLUS_KEPT } else { IDLE_KEPT };
            match &engine.running {
                None if !engine.is_ready && is_silent(engine.started_at) => {
                    tracing::error!(engine = key.0, "engine does not get ready");
                    engine.condemn("it did not get ready");
                }
                None if engine.is_idle() && now.duration_since(engine.idle_since) >= kept => {
                    tracing::info!(engine = key.0, "engine has nothing to do");
                    surplus = surplus.saturating_sub(1);
                    engine.leave();
                }
                Some(running) if is_silent(running.since) => {
                    tracing::error!(engine = key.0, "engine hangs");
                    engine.condemn("it did not answer");
                }
                None | Some(_) => {}
            }
        }
    }

    /// No later job names this source.
    pub fn drop_source(&mut self, source: CatalogId) {
        for engine in self.engines.values_mut() {
            if engine.sources.remove(&source) {
                engine.farewell(EngineRequest::DropSource(source));
            }
        }
    }

    /// No later job names this arena.
    /// Returns how many engines are at work and may write to it until they have answered.
    pub fn drop_arena(&mut self, arena: ArenaKey) -> usize {
        let mut busy_count = 0;
        for engine in self.engines.values_mut() {
            if engine.arenas.remove(&arena) {
                busy_count += usize::from(engine.running.is_some());
                engine.farewell(EngineRequest::DropArena(arena));
            }
        }
        busy_count
    }

    /// Ends all engines, at once, and collects them. One that the kernel cannot end in time, because it hangs
    /// in a file system, is left to the kernel.
    pub fn end(&mut self) {
        self.engines.values_mut().for_each(Engine::kill);
        let deadline = Instant::now() + ENDED_WITHIN;
        for (key, mut engine) in std::mem::take(&mut self.engines) {
            if engine.is_ended_by(deadline) {
                tracing::info!(engine = key.0, pid = engine.pid(), "engine ended");
            } else {
                tracing::error!(engine = key.0, pid = engine.pid(), "engine cannot be ended");
            }
        }
    }
}

fn engine_count_max(limits: &Limits) -> usize {
    limits.engine_count_max.unwrap_or_else(processor_count)
}

/// Processors that this process may use: affinity and the control group's quota are taken into account.
fn processor_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
