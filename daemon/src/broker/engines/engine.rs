//! [`Engine`]: one engine process as the broker sees it: what it was told, what it is doing, and what it said last.
//!
//! When it is started and ended, and which job it gets, is decided by `engines`.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use reeld_protocol::status::{Activity, EngineStatus};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::job::{Job, Task, User};
use super::super::peer::Peer;
use super::super::spawner::Process;
use crate::link::{ArenaKey, CatalogId, EngineReport, EngineRequest, FileIdentity, JobId};

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
    pub(super) peer: Peer,
    pub(super) stage: Stage,
    pub(super) is_ready: bool,
    /// What it did that made us end it.
    pub(super) offence: Option<String>,
    /// Told to end: it gets no more work.
    pub(super) is_leaving: bool,
    pub(super) sources: HashSet<CatalogId>,
    pub(super) arenas: HashSet<ArenaKey>,
    /// Said when it is idle: a job in progress may still use what is dropped.
    pub(super) farewells: Vec<EngineRequest>,
    pub(super) started_at: Instant,
    pub(super) idle_since: Instant,
    pub(super) jobs_done: u64,
}

/// How far its process has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// Asked for; ended as soon as it is there where it `is_unwanted`.
    Ordered { is_unwanted: bool },
    /// Running, or ended and not reaped.
    Running(Box<dyn Process>),
    /// It could not be started.
    Failed,
}

impl Engine {
    /// Ready for work.
    pub fn is_idle(&self) -> bool {
        self.is_ready && !self.is_leaving && self.running.is_none()
    }

    /// At a run that nobody waits for.
    pub fn is_at_hints(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.job.is_ahead())
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
        match &self.stage {
            Stage::Running(process) => process.id(),
            Stage::Ordered { .. } | Stage::Failed => 0,
        }
    }

    /// Ends the process. What it was doing is settled when its end is an event.
    pub fn kill(&mut self) {
        match &mut self.stage {
            Stage::Running(process) => process.kill(),
            Stage::Ordered { is_unwanted } => *is_unwanted = true,
            Stage::Failed => {}
        }
    }

    /// Ends the process for something that it did: its death is a crash.
    pub fn condemn(&mut self, offence: &str) {
        self.offence.get_or_insert_with(|| offence.to_owned());
        self.kill();
    }

    /// Tells it to end when it has done what it was told.
    pub(super) fn leave(&mut self) {
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
    pub(super) fn is_ended_by(&mut self, deadline: Instant) -> bool {
        let Stage::Running(process) = &mut self.stage else { return true };
        if let Ok(pidfd) = process.pidfd() {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left));
        }
        process.has_ended()
    }

    pub(super) fn farewell(&mut self, request: EngineRequest) {
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
