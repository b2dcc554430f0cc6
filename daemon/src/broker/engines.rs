//! The engine processes: started on demand, given one job at a time, reaped when they die or idle. Each
//! serves one user.
//!
//! What the jobs are about, and what becomes of their results, is not known here.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeld_protocol::status::EngineStatus;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::job::{Job, User, mix};
use super::peer::Peer;
use super::{Event, PeerKey, service};
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
    child: Child,
    is_ready: bool,
    /// Told to end: it gets no more work.
    is_leaving: bool,
    sources: HashSet<CatalogId>,
    arenas: HashSet<ArenaKey>,
    /// Said when it is idle: a job in progress may still use what is dropped.
    farewells: Vec<EngineRequest>,
    idle_since: Instant,
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
}

impl Engines {
    /// None yet.
    pub fn new(engine_count_max: usize, cache_mib: u64, log: String, events: mpsc::Sender<Event>) -> Engines {
        Engines {
            engines: BTreeMap::new(),
            engine_count_max,
            cache_mib,
            log,
            events,
            next_key: 0,
            next_job: 0,
            failed_starts: 0,
        }
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
        let mut command = Command::new("/proc/self/exe");
        for variable in service::VARIABLES {
            command.env_remove(variable);
        }
        let child = command
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
    pub fn ready(&mut self, engine: EngineKey, now: Instant) {
        self.failed_starts = 0;
        if let Some(engine) = self.engines.get_mut(&engine) {
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
    pub fn reap(&mut self, engine: EngineKey) -> Option<Engine> {
        let mut engine = self.engines.remove(&engine)?;
        // The process has ended, so this returns at once.
        match engine.child.wait() {
            Ok(status) => tracing::info!(pid = engine.child.id(), %status, "engine ended"),
            Err(error) => tracing::error!(pid = engine.child.id(), %error, "engine cannot be reaped"),
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

    /// For the status report.
    pub fn status(&self) -> impl Iterator<Item = EngineStatus> {
        self.engines.values().map(|engine| EngineStatus {
            pid: engine.child.id(),
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

/// Processors that this process may use: affinity and the control group's quota are taken into account.
pub fn processor_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
