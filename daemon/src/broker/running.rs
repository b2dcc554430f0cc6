//! Handing jobs to engines, and what comes back: results, turns that are over, crashes.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::OwnedFd;

use reeld_protocol::Frame;
use reeld_protocol::message::Message;

use super::blame::Death;
use super::engines::{EngineKey, Running};
use super::frames::arenas_of;
use super::job::{Decode, Job, Task, User};
use super::queue::Work as _;
use super::spawner::Process;
use super::{Broker, clock, descriptors, reply};
use crate::link::{CatalogId, EngineError, EngineReply, EngineReport, EngineRequest, JobId, WantedId};

/// How often a run may come back without anything done before it is given up.
const FAILURES_MAX: u8 = 1;

impl Broker {
    /// Gives idle engines what is next, and to those that are left what may be needed later.
    pub(super) fn dispatch(&mut self) {
        self.dispatch_work();
        self.dispatch_hints();
    }

    /// Gives idle engines what is next, and starts engines for work that finds none.
    fn dispatch_work(&mut self) {
        if self.queue.len() == 0 {
            return;
        }
        // Without an engine that is free there is no need to look at all that waits.
        while self.engines.has_idle() {
            let pinned_counts = self.pinned_counts();
            let engines = &self.engines;
            let Some(job) = self.queue.pop(|job| engines.choose(job, &pinned_counts).is_some()) else {
                break;
            };
            let Some(engine) = self.engines.choose(&job, &pinned_counts) else { break };
            self.hand_over(engine, job);
        }
        let (engines, now) = (&self.engines, clock::now());
        let is_unserved = |job: &Job| !engines.awaits_its_own(job) && !engines.has_spare(job.user);
        let unserved = self.queue.first_of_each(is_unserved);
        let mut users: Vec<User> = unserved.map(|job| job.user).collect();
        users.sort_unstable();
        users.dedup();
        let pinned_counts = self.pinned_counts();
        for &user in &users {
            self.engines.make_way(user, &users, &pinned_counts);
            if self.engines.may_start(user, now)
                && let Err(error) = self.engines.start(user, now)
            {
                self.start_failed(user, &error);
            }
        }
    }

    /// An engine cannot be started. Work of a user who has another waits for that one; other work fails.
    fn start_failed(&mut self, user: User, error: &std::io::Error) {
        tracing::error!(uid = user.uid, %error, "an engine cannot be started");
        if descriptors::are_exhausted(error) {
            self.shed_files();
        }
        if !self.engines.serves(user) {
            let reason = format!("no decoding process can be started: {error}");
            self.fail_all_of(user, &EngineError::LimitReached(reason));
        }
    }

    /// An engine that was ordered is there, or could not be started. Most reasons pass, so that it is tried again;
    /// without descriptors nothing is going to change.
    pub(super) fn engine_spawned(&mut self, key: EngineKey, spawned: std::io::Result<Box<dyn Process>>) {
        let exhausted = spawned
            .as_ref()
            .err()
            .filter(|error| descriptors::are_exhausted(error))
            .and_then(std::io::Error::raw_os_error);
        let user = self.engines.get_mut(key).map(|engine| engine.user);
        self.engines.spawned(key, spawned);
        if let (Some(code), Some(user)) = (exhausted, user) {
            self.start_failed(user, &std::io::Error::from_raw_os_error(code));
        }
    }

    /// Runs that were begun and wait for their next turn, by engine.
    fn pinned_counts(&self) -> BTreeMap<EngineKey, usize> {
        let mut counts = BTreeMap::new();
        for pinned in self.queue.iter().filter_map(|job| job.pinned) {
            *counts.entry(pinned).or_default() += 1;
        }
        counts
    }

    fn hand_over(&mut self, key: EngineKey, job: Job) {
        let id = self.engines.next_job();
        self.log_run(key, id, &job);
        let Some(entry) = self.catalog.get(job.source) else {
            // Its client closed the source with requests in flight.
            return self.fail_pictures(&job, &EngineError::Media("the source was closed".into()));
        };
        let thread_count = match &job.task {
            Task::Decode(decode) => {
                let waiting_pixels = self.queue.iter().map(Job::cost_pixels).fold(0, u64::saturating_add);
                self.engines.thread_count(decode.thread_count, job.cost_pixels(), waiting_pixels)
            }
            Task::Probe { .. } | Task::Scan { .. } => 1,
        };
        let Some(engine) = self.engines.get_mut(key) else { return };
        engine.introduce_source(job.source, entry.identity, &entry.fd);
        let request = match &job.task {
            Task::Probe { .. } => EngineRequest::Probe { job: id, source: job.source },
            Task::Scan { stream, .. } => EngineRequest::Scan { job: id, source: job.source, stream: *stream },
            Task::Decode(decode) => {
                for arena in arenas_of(&decode.pictures) {
                    if let Some(granted) = self.arenas.get(&arena) {
                        engine.introduce_arena(arena, granted.bytes, &granted.fd);
                    }
                }
                let mut run = job.run(decode, thread_count);
                self.take_hints_along(key, job.user, &mut run);
                EngineRequest::Decode { job: id, run }
            }
        };
        let Some(engine) = self.engines.get_mut(key) else { return };
        if let Task::Decode(decode) = &job.task {
            self.totals.runs += 1;
            for (picture, _) in &decode.pictures {
                begin_writing(&mut self.clients, &self.requests, picture.id);
            }
        }
        engine.begin(id, job, &request, clock::now());
    }

    /// Which requests an engine works for, for those who follow them through the log.
    fn log_run(&self, engine: EngineKey, job: JobId, work: &Job) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let (engine, job, source) = (engine.0, job.0, work.source.0);
        let Task::Decode(decode) = &work.task else {
            return tracing::debug!(engine, job, source, "engine reads a file's header or index");
        };
        let wanted = decode.pictures.iter().filter_map(|(picture, _)| self.requests.wanted(picture.id));
        let keys: BTreeSet<u64> = wanted.map(|record| record.request).collect();
        for key in keys {
            if let Some(request) = self.requests.get(key) {
                let (client, request_id) = (request.client, request.request_id);
                tracing::debug!(client, request_id, key, engine, job, source, "request runs");
            }
        }
    }

    /// Lets pictures join the run of the same stretch that an engine is at. Those that it has passed by come
    /// back as unfinished and are queued then.
    pub(super) fn extend_running(&mut self, job: &Job, more: &Decode) -> bool {
        let key = job.join_key();
        if key.is_none() {
            return false;
        }
        for (_, engine) in self.engines.iter_mut() {
            let Some(running) = &mut engine.running else { continue };
            if running.is_cancelled || running.job.join_key() != key {
                continue;
            }
            let id = running.id;
            let Task::Decode(decode) = &mut running.job.task else { continue };
            if !decode.extend(more) {
                continue;
            }
            for arena in arenas_of(&more.pictures) {
                if let Some(granted) = self.arenas.get(&arena) {
                    engine.introduce_arena(arena, granted.bytes, &granted.fd);
                }
            }
            for (picture, _) in &more.pictures {
                begin_writing(&mut self.clients, &self.requests, picture.id);
            }
            let wanted = more.pictures.iter().map(|(picture, _)| *picture).collect();
            engine.send(&EngineRequest::Extend { job: id, wanted, looks: more.looks() }, Vec::new());
            return true;
        }
        false
    }

    /// Handles a message, and returns the descriptors that it has no use for.
    pub(super) fn engine_frame(&mut self, key: EngineKey, mut frame: Frame) -> Vec<OwnedFd> {
        let are_fds_lost = frame.are_fds_lost();
        let mut fds = std::mem::take(&mut frame.fds);
        let Ok(Some(reply)) = EngineReply::decode(frame.header.kind, &frame.body) else {
            tracing::error!(engine = key.0, kind = frame.header.kind, "an engine talks nonsense");
            if let Some(engine) = self.engines.get_mut(key) {
                engine.condemn("it did not keep to the protocol");
            }
            return fds;
        };
        let now = clock::now();
        match reply {
            EngineReply::Ready { ffmpeg_versions } => {
                self.ffmpeg_versions = ffmpeg_versions;
                self.engines.ready(key, now);
            }
            EngineReply::Probed { job, media, content } => {
                if let Some(running) = self.finish_job(key, job) {
                    self.probed(running.job.source, media, content);
                }
            }
            EngineReply::Scanned { job } => {
                if let Some(running) = self.finish_job(key, job)
                    && let Task::Scan { stream, .. } = running.job.task
                {
                    self.scanned(running.job.source, stream, &mut fds, are_fds_lost);
                }
            }
            EngineReply::ScanYielded { job } => {
                if let Some(mut running) = self.finish_job(key, job) {
                    running.job.pinned = Some(key);
                    self.push_catalog_job_again(running.job);
                }
            }
            EngineReply::JobFailed { job, error } => {
                if let Some(running) = self.finish_job(key, job) {
                    self.note_lost_source(key, running.job.source, &error);
                    self.job_failed(&running.job, &error);
                }
            }
            EngineReply::RunEnded { job, finished, failed, report } => {
                if let Some(running) = self.finish_job(key, job) {
                    self.run_ended(key, running, &finished, &failed, report);
                }
            }
        }
        fds
    }

    fn finish_job(&mut self, key: EngineKey, job: JobId) -> Option<Running> {
        let (running, let_go) = self.engines.get_mut(key)?.finish(job, clock::now())?;
        self.engine_let_go(&let_go);
        if !matches!(running.job.task, Task::Decode(_)) {
            self.charge(running.job.waiters(), running.job.cost_pixels());
        }
        Some(running)
    }

    /// An engine that could not take a file over gets it anew the next time.
    fn note_lost_source(&mut self, key: EngineKey, source: CatalogId, error: &EngineError) {
        if matches!(error, EngineError::LimitReached(_))
            && let Some(engine) = self.engines.get_mut(key)
        {
            engine.forget_source(source);
        }
    }

    fn job_failed(&mut self, job: &Job, error: &EngineError) {
        match &job.task {
            Task::Probe { .. } | Task::Scan { .. } => self.catalog_job_failed(job.source, error),
            Task::Decode(decode) => {
                let label = self.label(job);
                for (picture, _) in &decode.pictures {
                    self.picture_failed(picture.id, error, &label);
                }
            }
        }
    }

    fn run_ended(
        &mut self,
        key: EngineKey,
        running: Running,
        finished: &[WantedId],
        failed: &[(WantedId, EngineError)],
        report: EngineReport,
    ) {
        self.hints_ended(&running, finished, failed, report);
        self.totals.pictures_decoded += report.pictures_decoded;
        self.totals.samples_skipped += report.samples_skipped;
        self.totals.cache_hits += report.cache_hits;
        self.totals.conversion_micros += report.conversion_micros;
        self.totals.page_faults += report.page_faults;
        if let Some(engine) = self.engines.get_mut(key) {
            engine.report = report;
        }
        let waiters = running.job.waiters();
        let label = self.label(&running.job);
        let Job { user, source, mut failure_count, blame, task, .. } = running.job;
        let Task::Decode(mut decode) = task else { return };
        self.charge(waiters, decode.frame_pixels.saturating_mul(report.pictures_decoded));
        if failed.iter().any(|(_, error)| *error == EngineError::SourceChanged) {
            self.catalog.unshare(source);
        }
        // Only what the engine was asked for counts, and each picture once.
        let mut open: HashSet<WantedId> = decode.pictures.iter().map(|(picture, _)| picture.id).collect();
        for wanted in finished.iter().filter(|wanted| open.remove(wanted)) {
            self.picture_finished(*wanted);
        }
        if self.settings.limits.engine_cache_mib > 0 {
            let delivered = decode.pictures.iter().filter(|(picture, _)| !open.contains(&picture.id));
            let targets = delivered.map(|(picture, _)| picture.target);
            self.kept.delivered(key, (source, decode.stream), targets, report.pictures_decoded > 0);
        }
        for (wanted, error) in failed {
            self.note_lost_source(key, source, error);
            if open.remove(wanted) {
                self.picture_failed(*wanted, error, &label);
            }
        }
        decode.pictures.retain(|(picture, _)| open.contains(&picture.id));
        let is_stalled = finished.is_empty() && report.pictures_decoded == 0 && report.cache_hits == 0;
        failure_count = if is_stalled && !running.is_cancelled { failure_count + 1 } else { 0 };
        let (pinned, task) = (Some(key), Task::Decode(decode));
        self.requeue(key, Job { user, source, pinned, failure_count, blame, task });
    }

    /// Queues what a run has left, for those who still want it.
    fn requeue(&mut self, key: EngineKey, mut job: Job) {
        let Task::Decode(decode) = &mut job.task else { return };
        let mut left = Vec::with_capacity(decode.pictures.len());
        for &(picture, waiter) in &decode.pictures {
            if self.requests.is_wanted(picture.id) {
                end_writing(&mut self.clients, &self.requests, picture.id);
                left.push((picture, waiter));
            } else {
                self.settle(picture.id);
            }
        }
        decode.pictures = left;
        if decode.pictures.is_empty() {
            return;
        }
        if job.failure_count > FAILURES_MAX {
            tracing::error!(engine = key.0, "a run ends again and again without anything done");
            let error = EngineError::Internal("the engine makes no headway".into());
            return self.fail_pictures(&job, &error);
        }
        self.push_decode(job);
    }

    fn fail_pictures(&mut self, job: &Job, error: &EngineError) {
        let label = self.label(job);
        let Task::Decode(decode) = &job.task else { return };
        for (picture, _) in &decode.pictures {
            let Some(record) = self.requests.settle(picture.id) else { continue };
            self.fail_request(record.request, reply::from_engine(error, &label));
        }
    }

    /// An engine's process has ended: by our wish, by a crash, or killed by somebody. It is reaped first, and
    /// the slots that it may have been writing into are settled after that.
    pub(super) fn engine_exited(&mut self, key: EngineKey) {
        let Some((mut engine, death)) = self.engines.reap(key, clock::now()) else { return };
        self.engine_let_go(&engine.held_arenas());
        self.hints.forget_engine(key);
        self.kept.forget_engine(key);
        if let Some(running) = engine.running.take() {
            self.died_at_work(key, running.job, &death);
        }
        if self.engines.is_hopeless(engine.user) {
            self.give_up(engine.user);
        }
    }

    fn died_at_work(&mut self, key: EngineKey, mut job: Job, death: &Death) {
        self.totals.engine_crashes += 1;
        let label = self.label(&job);
        tracing::warn!(engine = key.0, label, ?death, "engine died at work");
        job.pinned = None;
        match &job.task {
            Task::Decode(decode) => {
                let wanted: Vec<WantedId> = decode.pictures.iter().map(|(picture, _)| picture.id).collect();
                self.pictures_crashed(&wanted, job.source, &label, death);
            }
            Task::Probe { .. } | Task::Scan { .. } if job.blame.add(death) => {
                self.catalog_job_crashed(job.source, job.blame, death);
            }
            Task::Probe { .. } | Task::Scan { .. } => self.push_catalog_job_again(job),
        }
    }

    /// Engines cannot be started: everything that waits for one fails.
    fn give_up(&mut self, user: User) {
        let reason = "decoding processes end as soon as they start; the daemon's log says why";
        tracing::error!(uid = user.uid, "{reason}");
        self.fail_all_of(user, &EngineError::Internal(reason.into()));
    }

    fn fail_all_of(&mut self, user: User, error: &EngineError) {
        while let Some(job) = self.queue.pop(|job| job.user == user) {
            match &job.task {
                Task::Probe { .. } | Task::Scan { .. } => self.catalog_job_failed(job.source, error),
                Task::Decode(_) => self.fail_pictures(&job, error),
            }
        }
    }

    fn label(&self, job: &Job) -> String {
        self.catalog.get(job.source).map_or_else(String::new, |entry| entry.label.clone())
    }
}

fn begin_writing(
    clients: &mut BTreeMap<u64, super::client::Client>,
    requests: &super::requests::Requests,
    wanted: WantedId,
) {
    if let Some(record) = requests.wanted(wanted)
        && let Some(client) = clients.get_mut(&record.client)
    {
        client.memory.begin_writing(record.lease);
    }
}

fn end_writing(
    clients: &mut BTreeMap<u64, super::client::Client>,
    requests: &super::requests::Requests,
    wanted: WantedId,
) {
    if let Some(record) = requests.wanted(wanted)
        && let Some(client) = clients.get_mut(&record.client)
    {
        client.memory.end_writing(record.lease);
    }
}
