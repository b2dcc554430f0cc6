//! The engine processes: started on demand, given one job at a time, reaped when they die or idle. Each
//! serves one user.
//!
//! What the jobs are about, and what becomes of their results, is not known here.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeld_protocol::status::{Activity, EngineStatus};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::job::{Job, Task, User, mix};
use super::peer::Peer;
use super::{Event, PeerKey};
use crate::config::Limits;
use crate::link::{ArenaKey, CatalogId, EngineReport, EngineRequest, FileIdentity, JobId};

/// An engine without work ends after this long: its sessions and pictures are of no use to others, and the
/// next one starts in about 20 ms.
const IDLE_KEPT: Duration = Duration::from_secs(60);

/// An engine answers or yields every 20 ms of decoding. One that says nothing for so long hangs, in a codec
/// or on a file system.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Engines in a row that end before they are ready, after which waiting work is given up.
const FAILED_STARTS_MAX: u32 = 3;

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
    child: Child,
    is_ready: bool,
    /// Told to end: it gets no more work.
    is_leaving: bool,
    sources: HashSet<CatalogId>,
    arenas: HashSet<ArenaKey>,
    /// Said when it is idle: a job in progress may still use what is dropped.
    farewells: Vec<EngineRequest>,
    idle_since: Instant,
    started_at: Instant,
    jobs_done: u64,
}

/// All engine processes of the node.
#[derive(Debug)]
pub struct Engines {
    engines: BTreeMap<EngineKey, Engine>,
    engine_count_max: usize,
    cache_mib: u64,
    log: String,
    events: mpsc::Sender<Event>,
    next_key: u64,
    next_job: u64,
    failed_starts: u32,
    /// Users one of whose engines has ended without being told to, until the next one is started.
    bereft: BTreeSet<User>,
    restart_count: u64,
}

impl Engines {
    /// None yet.
    pub fn new(limits: &Limits, log: &str, events: mpsc::Sender<Event>) -> Engines {
        Engines {
            engines: BTreeMap::new(),
            engine_count_max: engine_count_max(limits),
            cache_mib: limits.engine_cache_mib,
            log: log.to_owned(),
            events,
            next_key: 0,
            next_job: 0,
            failed_starts: 0,
            bereft: BTreeSet::new(),
            restart_count: 0,
        }
    }

    /// From now on engines are started by these. Those that run stay as they are; where they are too many, the
    /// idle ones end in their time.
    pub fn change_limits(&mut self, limits: &Limits, log: &str) {
        self.engine_count_max = engine_count_max(limits);
        self.cache_mib = limits.engine_cache_mib;
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

    /// True for a run that was begun by an engine which still lives: no other shall do it.
    pub fn awaits_its_own(&self, job: &Job) -> bool {
        job.pinned.is_some_and(|pinned| self.engines.contains_key(&pinned))
    }

    /// True if another engine may be started for this user: the node's budget has room, or the user has none.
    pub fn may_start(&self, user: User) -> bool {
        let is_starting = self.engines.values().any(|engine| engine.user == user && !engine.is_ready);
        let has_none = self.engines.values().all(|engine| engine.user != user);
        !is_starting && (has_none || self.engines.len() < self.engine_count_max)
    }

    /// Starts an engine. It takes work once it has said that it is ready.
    pub fn start(&mut self, user: User, now: Instant) -> io::Result<EngineKey> {
        let key = EngineKey(self.next_key);
        self.next_key += 1;
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = Command::new("/proc/self/exe")
            .arg("engine")
            .arg("--cache-mib")
            .arg(self.cache_mib.to_string())
            .env("REELD_LOG", &self.log)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()?;
        self.watch(key, &child)?;
        let peer = Peer::start(PeerKey::Engine(key), UnixStream::from_std(ours)?, self.events.clone(), None);
        tracing::info!(engine = key.0, pid = child.id(), uid = user.uid, "engine started");
        if self.bereft.remove(&user) {
            self.restart_count += 1;
        }
        let engine = Engine {
            user,
            running: None,
            report: EngineReport::default(),
            peer,
            child,
            is_ready: false,
            is_leaving: false,
            sources: HashSet::new(),
            arenas: HashSet::new(),
            farewells: Vec::new(),
            idle_since: now,
            started_at: now,
            jobs_done: 0,
        };
        self.engines.insert(key, engine);
        Ok(key)
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
        self.failed_starts = 0;
        if let Some(engine) = self.engines.get_mut(&key) {
            let millis = now.duration_since(engine.started_at).as_millis() as u64;
            tracing::info!(engine = key.0, pid = engine.child.id(), millis, "engine ready");
            engine.is_ready = true;
            engine.idle_since = now;
        }
    }

    /// A fresh name for a job.
    pub fn next_job(&mut self) -> JobId {
        self.next_job += 1;
        JobId(self.next_job)
    }

    /// Collects an engine whose process has ended.
    pub fn reap(&mut self, key: EngineKey) -> Option<Engine> {
        let mut engine = self.engines.remove(&key)?;
        let (pid, uid, jobs) = (engine.child.id(), engine.user.uid, engine.jobs_done);
        // The process has ended, so this returns at once.
        match engine.child.wait() {
            Ok(status) => tracing::info!(engine = key.0, pid, uid, jobs, %status, "engine ended"),
            Err(error) => tracing::error!(engine = key.0, pid, uid, %error, "engine cannot be reaped"),
        }
        if !engine.is_leaving && self.bereft.len() < BEREFT_MAX {
            self.bereft.insert(engine.user);
        }
        if !engine.is_ready {
            self.failed_starts += 1;
        }
        Some(engine)
    }

    /// True when engines cannot be started at all: waiting work is hopeless.
    pub fn is_hopeless(&mut self) -> bool {
        let is_hopeless = self.failed_starts >= FAILED_STARTS_MAX;
        if is_hopeless {
            self.failed_starts = 0;
        }
        is_hopeless
    }

    /// Ends engines that have had nothing to do for long, and kills those that hang.
    pub fn tend(&mut self, now: Instant) {
        for (key, engine) in &mut self.engines {
            match &engine.running {
                None if engine.is_idle() && now.duration_since(engine.idle_since) >= IDLE_KEPT => {
                    tracing::info!(engine = key.0, "engine has nothing to do");
                    engine.is_leaving = true;
                    engine.peer.finish();
                }
                Some(running) if now.duration_since(running.since) >= SILENCE_MAX => {
                    tracing::error!(engine = key.0, "engine hangs");
                    engine.kill();
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

    /// Ends all engines, at once, and collects them. One that the kernel cannot end in time, because it hangs
    /// in a file system, is left to the kernel.
    pub fn end(&mut self) {
        for engine in self.engines.values_mut() {
            engine.kill();
        }
        let deadline = Instant::now() + ENDED_WITHIN;
        for (key, mut engine) in std::mem::take(&mut self.engines) {
            if engine.is_ended_by(deadline) {
                tracing::info!(engine = key.0, pid = engine.child.id(), "engine ended");
            } else {
                tracing::error!(engine = key.0, pid = engine.child.id(), "engine cannot be ended");
                // Dropping it would wait.
                std::mem::forget(engine);
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
        self.jobs_done += 1;
        for farewell in std::mem::take(&mut self.farewells) {
            self.send(&farewell, Vec::new());
        }
        Some(running)
    }

    /// Says something about the job in progress.
    pub fn send(&mut self, request: &EngineRequest, fds: Vec<Arc<OwnedFd>>) {
        if let Err(error) = self.peer.send(request, 0, fds) {
            // Its end will be an event, and all it did is then done elsewhere.
            tracing::warn!(pid = self.child.id(), %error, "engine cannot be reached");
            self.kill();
        }
    }

    /// The socket can be written to again.
    pub fn writable(&mut self) {
        if self.peer.writable().is_err() {
            self.kill();
        }
    }

    /// Ends the process. What it was doing is settled when its end is an event.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
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

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of a process that was killed. False if that takes too long.
    fn is_ended_by(&mut self, deadline: Instant) -> bool {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(Ok(pidfd)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left));
        }
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    fn farewell(&mut self, request: EngineRequest) {
        if self.running.is_some() {
            self.farewells.push(request);
        } else {
            self.send(&request, Vec::new());
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
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
