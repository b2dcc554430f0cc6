//! The engine processes: started on demand, given one job at a time, reaped when they die or idle. Each
//! serves one user.
//!
//! What the jobs are about, and what becomes of their results, is not known here.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeld_protocol::status::EngineStatus;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::blame::Death;
use super::helpers::Line;
use super::job::{Job, User, mix};
use super::peer::Peer;
use super::spawner::Spawner;
use super::{Event, PeerKey};
use crate::link::{ArenaKey, CatalogId, EngineReport, EngineRequest, FileIdentity, JobId};

/// An engine without work ends after this long: its sessions and pictures are of no use to others, and the
/// next one starts in about 20 ms.
const IDLE_KEPT: Duration = Duration::from_secs(60);

/// Runs that an engine has begun and that wait for their next turn. Below the number of its sessions, so
/// that a warm one is never evicted before its run goes on.
const PINNED_MAX: usize = 4;

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
    since: Instant,
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
    log: String,
    silence_max: Duration,
    spawner: Spawner,
    backoff: Backoff,
    events: mpsc::Sender<Event>,
    next_key: u64,
    next_job: u64,
}

impl Engines {
    /// None yet. They log what `log` says; one that says nothing for `silence_max` hangs.
    pub fn new(
        engine_count_max: usize,
        cache_mib: u64,
        log: String,
        silence_max: Duration,
        events: mpsc::Sender<Event>,
    ) -> io::Result<Engines> {
        Ok(Engines {
            engines: BTreeMap::new(),
            engine_count_max,
            cache_mib,
            log,
            silence_max,
            spawner: Spawner::start(events.clone())?,
            backoff: Backoff::default(),
            events,
            next_key: 0,
            next_job: 0,
        })
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

    /// True for a run that was begun by an engine which still lives: no other shall do it.
    pub fn awaits_its_own(&self, job: &Job) -> bool {
        job.pinned.is_some_and(|pinned| self.engines.contains_key(&pinned))
    }

    /// True if some engine could take work now.
    pub fn has_idle(&self) -> bool {
        self.engines.values().any(Engine::is_idle)
    }

    /// All of them, for the audit.
    pub fn iter(&self) -> impl Iterator<Item = (EngineKey, &Engine)> {
        self.engines.iter().map(|(&key, engine)| (key, engine))
    }

    /// True if another engine may be started for this user: the node's budget has room, or the user has none,
    /// and its engines do not die one after the other.
    pub fn may_start(&self, user: User, now: Instant) -> bool {
        let is_starting = self.engines.values().any(|engine| engine.user == user && !engine.is_ready);
        let has_none = self.engines.values().all(|engine| engine.user != user);
        let has_room = has_none || self.engines.len() < self.engine_count_max;
        !is_starting && has_room && self.backoff.may_start(user, now)
    }

    /// When an engine may be started that may not be started now.
    pub fn next_start(&self, now: Instant) -> Option<Instant> {
        self.backoff.next_start(now)
    }

    /// Orders an engine. It takes work once it has said that it is ready.
    pub fn start(&mut self, user: User, now: Instant) {
        let key = EngineKey(self.next_key);
        self.next_key += 1;
        match self.order(key, user, now) {
            Ok(engine) => {
                self.engines.insert(key, engine);
            }
            Err(error) => {
                tracing::error!(%error, "an engine cannot be started");
                self.backoff.died(user, Duration::ZERO, false, now);
            }
        }
    }

    fn order(&self, key: EngineKey, user: User, now: Instant) -> io::Result<Engine> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let ours = UnixStream::from_std(ours)?;
        self.spawner.order(key, self.cache_mib, &self.log, theirs.into())?;
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
    pub fn ready(&mut self, engine: EngineKey, now: Instant) {
        if let Some(engine) = self.engines.get_mut(&engine) {
            self.backoff.became_ready(engine.user);
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
    pub fn reap(&mut self, engine: EngineKey, now: Instant) -> Option<(Engine, Death)> {
        let mut engine = self.engines.remove(&engine)?;
        let ended = match &mut engine.process {
            // The process has ended, so this returns at once.
            Process::Running(child) => child.wait(),
            Process::Ordered { .. } | Process::Failed => Err(io::Error::other("it was never started")),
        };
        let pid = engine.pid();
        let death = match (ended, engine.offence.take()) {
            (Ok(status), None) => {
                tracing::info!(pid, %status, "engine ended");
                Death::of(status)
            }
            (Ok(_), Some(offence)) => Death::Crash(offence),
            (Err(error), _) => {
                tracing::error!(pid, %error, "engine cannot be reaped");
                Death::Crash(error.to_string())
            }
        };
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

    /// Ends all of them without waiting for it: one may hang on a file system.
    pub fn kill_all(&mut self) {
        self.engines.values_mut().for_each(Engine::kill);
    }

    /// Ends engines that have had nothing to do for long, and kills those that hang.
    pub fn tend(&mut self, now: Instant) {
        self.backoff.tend(now);
        for (key, engine) in &mut self.engines {
            let is_silent = |since: Instant| now.saturating_duration_since(since) >= self.silence_max;
            match &engine.running {
                None if !engine.is_ready && is_silent(engine.started_at) => {
                    tracing::error!(engine = key.0, "engine does not get ready");
                    engine.condemn("it did not get ready");
                }
                None if engine.is_idle() && now.duration_since(engine.idle_since) >= IDLE_KEPT => {
                    tracing::info!(engine = key.0, "engine has nothing to do");
                    engine.is_leaving = true;
                    engine.peer.finish();
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
    pub fn drop_arena(&mut self, arena: ArenaKey) {
        for engine in self.engines.values_mut() {
            if engine.arenas.remove(&arena) {
                engine.farewell(EngineRequest::DropArena(arena));
            }
        }
    }

    /// For the status report.
    pub fn status(&self) -> impl Iterator<Item = EngineStatus> {
        self.engines.values().map(|engine| EngineStatus {
            pid: engine.pid(),
            uid: engine.user.uid,
            is_busy: engine.running.is_some(),
            session_count: engine.report.session_count,
            cache_bytes: engine.report.cache_bytes,
        })
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
    pub fn finish(&mut self, id: JobId, now: Instant) -> Option<Running> {
        let running = self.running.take_if(|running| running.id == id)?;
        self.idle_since = now;
        for farewell in std::mem::take(&mut self.farewells) {
            self.send(&farewell, Vec::new());
        }
        Some(running)
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

    fn farewell(&mut self, request: EngineRequest) {
        if self.running.is_some() {
            self.farewells.push(request);
        } else {
            self.send(&request, Vec::new());
        }
    }
}

/// Processors that this process may use: affinity and the control group's quota are taken into account.
pub fn processor_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
