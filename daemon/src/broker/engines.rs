//! The engine processes: started on demand, given one job at a time, reaped when they die or idle. Each
//! serves one user.
//!
//! What the jobs are about, and what becomes of their results, is not known here.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeld_protocol::status::{Activity, EngineStatus};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::blame::Death;
use super::helpers::Line;
use super::job::{Job, Task, User, mix};
use super::peer::Peer;
use super::spawner::{Order, Spawner};
use super::{Event, PeerKey};
use crate::config::Limits;
use crate::link::{ArenaKey, CatalogId, EngineReport, EngineRequest, FileIdentity, JobId};

/// An engine without work ends after this long: its sessions and pictures are of no use to others, and the
/// next one starts in about 20 ms.
const IDLE_KEPT: Duration = Duration::from_secs(60);

/// Where there are more engines than the budget says, because each user at work has one, idle ones end after
/// this: not at once, since a user's next request often follows within a training step.
const SURPLUS_KEPT: Duration = Duration::from_secs(5);

/// Runs that an engine has begun and that wait for their next turn. Below the number of its sessions, so
/// that a warm one is never evicted before its run goes on.
const PINNED_MAX: usize = 4;

/// How long the daemon waits for its engines when it ends: a killed process is gone within milliseconds.
const ENDED_WITHIN: Duration = Duration::from_secs(1);

/// Users that are remembered for having lost an engine.
const BEREFT_MAX: usize = 1024;

/// Names an engine process. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineKey(pub u64);

/// What an engine is doing.
#[derive(Debug)]
pub struct Running {
    /// The job's name on the link.
    pub id: JobId,
    /// What it is.
    pub job: Job,
    /// True once the engine was asked to stop.
    pub is_cancelled: bool,
    /// When it was handed out.
    pub since: Instant,
}

/// One engine process.
#[derive(Debug)]
pub struct Engine {
    /// Whom it serves.
    pub user: User,
    /// What it is doing.
    pub running: Option<Running>,
    /// What it last said of itself.
    pub report: EngineReport,
    peer: Peer,
    process: Process,
    is_ready: bool,
    /// What it did that made us end it.
    offence: Option<String>,
    /// Told to end: it gets no more work.
    is_leaving: bool,
    sources: HashSet<CatalogId>,
    arenas: HashSet<ArenaKey>,
    /// Said when it is idle: a job in progress may still use what is dropped.
    farewells: Vec<EngineRequest>,
    started_at: Instant,
    idle_since: Instant,
    jobs_done: u64,
}

#[derive(Debug)]
enum Process {
    /// Asked for; ended as soon as it is there where it `is_unwanted`.
    Ordered { is_unwanted: bool },
    /// Running, or ended and not reaped.
    Running(Child),
    /// It could not be started.
    Failed,
}

/// All engine processes of the node.
#[derive(Debug)]
pub struct Engines {
    engines: BTreeMap<EngineKey, Engine>,
    engine_count_max: usize,
    cache_mib: u64,
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

    /// From now on engines are started by these. Those that run stay as they are; where they are too many, the
    /// idle ones end in their time.
    pub fn change_limits(&mut self, limits: &Limits, log: &str) {
        self.engine_count_max = engine_count_max(limits);
        self.cache_mib = limits.engine_cache_mib;
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

    /// True if some engine could take work now.
    pub fn has_idle(&self) -> bool {
        self.engines.values().any(Engine::is_idle)
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
        let ours = UnixStream::from_std(ours)?;
        let order = Order { cache_mib: self.cache_mib, memory_mib: self.memory_mib, log: self.log.clone() };
        self.spawner.order(key, order, theirs.into())?;
        let line = Line::User(user.uid);
        Ok(Engine {
            user,
            running: None,
            report: EngineReport::default(),
            peer: Peer::start(PeerKey::Engine(key), line, ours, self.events.clone(), None),
            process: Process::Ordered { is_unwanted: false },
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
    pub fn spawned(&mut self, key: EngineKey, spawned: io::Result<Child>) {
        let watched = spawned.and_then(|mut child| match self.watch(key, &child) {
            Ok(()) => Ok(child),
            Err(error) => {
                // Nothing would tell us of its end.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        });
        let Some(engine) = self.engines.get_mut(&key) else { return };
        let is_unwanted = matches!(engine.process, Process::Ordered { is_unwanted: true });
        match watched {
            Ok(child) => {
                tracing::info!(engine = key.0, pid = child.id(), uid = engine.user.uid, "engine started");
                engine.process = Process::Running(child);
                if is_unwanted {
                    engine.kill();
                }
            }
            Err(error) => {
                tracing::error!(engine = key.0, %error, "an engine cannot be started");
                engine.process = Process::Failed;
                engine.is_leaving = true;
                let events = self.events.clone();
                tokio::spawn(async move {
                    let _ = events.send(Event::EngineExited(key)).await;
                });
            }
        }
    }

    /// Makes the process's end an event.
    fn watch(&self, key: EngineKey, child: &Child) -> io::Result<()> {
        let pid = Pid::from_raw(child.id() as i32).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        // SAFETY: the descriptor is owned by the `AsyncFd` and open as long as that is registered.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
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
        let ended = match &mut engine.process {
            // The process has ended, so this returns at once.
            Process::Running(child) => child.wait(),
            Process::Ordered { .. } | Process::Failed => Err(io::Error::other("it was never started")),
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

impl Engine {
    /// Ready for work.
    pub fn is_idle(&self) -> bool {
        self.is_ready && !self.is_leaving && self.running.is_none()
    }

    /// Makes a file known before a job names it.
    pub fn introduce_source(&mut self, source: CatalogId, identity: FileIdentity, fd: &Arc<OwnedFd>) {
        if self.sources.insert(source) {
            self.send(&EngineRequest::AddSource { source, identity }, vec![Arc::clone(fd)]);
        }
    }

    /// The engine has no use of a file that it was told of: it will be told again.
    pub fn forget_source(&mut self, source: CatalogId) {
        if self.sources.remove(&source) {
            self.farewell(EngineRequest::DropSource(source));
        }
    }

    /// Makes an arena known before a job names it.
    pub fn introduce_arena(&mut self, arena: ArenaKey, bytes: u64, fd: &Arc<OwnedFd>) {
        if self.arenas.insert(arena) {
            self.send(&EngineRequest::AddArena { arena, bytes }, vec![Arc::clone(fd)]);
        }
    }

    /// Hands out a job.
    pub fn begin(&mut self, id: JobId, job: Job, request: &EngineRequest, now: Instant) {
        self.send(request, Vec::new());
        self.running = Some(Running { id, job, is_cancelled: false, since: now });
    }

    /// The job is over: takes it, if it is the one that was begun.
    /// With it, the arenas that were dropped meanwhile.
    pub fn finish(&mut self, id: JobId, now: Instant) -> Option<(Running, Vec<ArenaKey>)> {
        let running = self.running.take_if(|running| running.id == id)?;
        self.idle_since = now;
        let let_go = self.held_arenas();
        self.jobs_done += 1;
        for farewell in std::mem::take(&mut self.farewells) {
            self.send(&farewell, Vec::new());
        }
        Some((running, let_go))
    }

    /// Arenas that were dropped, but that the job in progress may still write to.
    pub fn held_arenas(&self) -> Vec<ArenaKey> {
        let arena = |farewell: &EngineRequest| match farewell {
            EngineRequest::DropArena(arena) => Some(*arena),
            EngineRequest::DropSource(_)
            | EngineRequest::AddSource { .. }
            | EngineRequest::AddArena { .. }
            | EngineRequest::Probe { .. }
            | EngineRequest::Scan { .. }
            | EngineRequest::Decode { .. }
            | EngineRequest::Extend { .. }
            | EngineRequest::Cancel(_) => None,
        };
        self.farewells.iter().filter_map(arena).collect()
    }

    /// Says something about the job in progress.
    pub fn send(&mut self, request: &EngineRequest, fds: Vec<Arc<OwnedFd>>) {
        if let Err(error) = self.peer.send(request, 0, fds) {
            // Its end will be an event, and all it did is then done elsewhere.
            tracing::warn!(pid = self.pid(), %error, "engine cannot be reached");
            self.kill();
        }
    }

    /// The socket can be written to again.
    pub fn writable(&mut self) {
        if self.peer.writable().is_err() {
            self.kill();
        }
    }

    /// The arenas that it was told of, for the audit.
    pub fn arenas(&self) -> impl Iterator<Item = ArenaKey> {
        self.arenas.iter().copied()
    }

    /// Its process id; 0 while there is none.
    pub fn pid(&self) -> u32 {
        match &self.process {
            Process::Running(child) => child.id(),
            Process::Ordered { .. } | Process::Failed => 0,
        }
    }

    /// Ends the process. What it was doing is settled when its end is an event.
    pub fn kill(&mut self) {
        match &mut self.process {
            Process::Running(child) => {
                let _ = child.kill();
            }
            Process::Ordered { is_unwanted } => *is_unwanted = true,
            Process::Failed => {}
        }
    }

    /// Ends the process for something that it did: its death is a crash.
    pub fn condemn(&mut self, offence: &str) {
        self.offence.get_or_insert_with(|| offence.to_owned());
        self.kill();
    }

    /// Tells it to end when it has done what it was told.
    fn leave(&mut self) {
        self.is_leaving = true;
        self.peer.finish();
    }

    /// What it is doing, and since when.
    pub fn activity(&self) -> (Activity, Instant) {
        match &self.running {
            _ if !self.is_ready => (Activity::Starting, self.started_at),
            Some(running) => {
                let activity = match running.job.task {
                    Task::Probe { .. } => Activity::Probing,
                    Task::Scan { .. } => Activity::Scanning,
                    Task::Decode(_) => Activity::Decoding,
                };
                (activity, running.since)
            }
            None if self.is_leaving => (Activity::Leaving, self.idle_since),
            None => (Activity::Idle, self.idle_since),
        }
    }

    /// For the status report. `label` is what the file at work is called, if the report may say so.
    pub fn status(&self, label: Option<String>, now: Instant) -> EngineStatus {
        let (activity, since) = self.activity();
        EngineStatus {
            pid: self.pid(),
            uid: self.user.uid,
            is_busy: self.running.is_some(),
            session_count: self.report.session_count,
            cache_bytes: self.report.cache_bytes,
            activity,
            activity_millis: now.duration_since(since).as_millis() as u64,
            label,
            jobs_done: self.jobs_done,
            uptime_seconds: now.duration_since(self.started_at).as_secs(),
        }
    }

    /// Waits for the end of a process that was killed. False if that takes too long.
    fn is_ended_by(&mut self, deadline: Instant) -> bool {
        let Process::Running(child) = &mut self.process else { return true };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let Some(Ok(pidfd)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left));
        }
        matches!(child.try_wait(), Ok(Some(_)))
    }

    fn farewell(&mut self, request: EngineRequest) {
        if self.is_leaving {
            // It forgets everything by itself, and nothing can be sent to it any more.
            return;
        }
        if self.running.is_some() {
            self.farewells.push(request);
        } else {
            self.send(&request, Vec::new());
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
