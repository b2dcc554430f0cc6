//! The state of the daemon for the log, when an administrator asks for it: a line for the whole, then one for
//! each client, request, waiting run, engine and line of helpers, then one that says it is complete.
//!
//! Unlike the status report this names files and clients of all users: who reads the log may know.

use std::time::Instant;

use super::client::Client;
use super::engines::{Engine, EngineKey};
use super::helpers::LineCounts;
use super::job::{Job, Task};
use super::queue::Work as _;
use super::requests::FrameRequest;
use super::{Broker, clock};
use crate::logging::STATE_TARGET;

/// Lines of each kind. All kinds together take about a millisecond and fit into the log's queue.
const LISTED_MAX: usize = 100;

impl Broker {
    /// Writes the state to the log.
    pub(super) fn dump(&self) {
        let now = clock::now();
        self.dump_whole();
        for client in self.clients.values().take(LISTED_MAX) {
            dump_client(client, now);
        }
        for (key, request) in self.requests.iter().take(LISTED_MAX) {
            self.dump_request(key, request, now);
        }
        for job in self.queue.iter().take(LISTED_MAX) {
            self.dump_waiting(job);
        }
        for (key, engine) in self.engines.iter().take(LISTED_MAX) {
            self.dump_engine(key, engine, now);
        }
        for (line, counts) in self.helpers.counts().take(LISTED_MAX) {
            let LineCounts { running, abandoned, waiting } = counts;
            tracing::info!(target: STATE_TARGET, ?line, running, abandoned, waiting, "state: calls on files");
        }
        let counts = [self.clients.len(), self.requests.len(), self.queue.len(), self.engines.iter().count()];
        let left_out: usize = counts.iter().map(|count| count.saturating_sub(LISTED_MAX)).sum();
        tracing::info!(target: STATE_TARGET, left_out, "state: end");
    }

    fn dump_whole(&self) {
        let catalog = self.catalog.counts();
        tracing::info!(
            target: STATE_TARGET,
            uptime_seconds = self.age().as_secs(),
            is_draining = self.is_draining(),
            clients = self.clients.len(),
            requests = self.requests.len(),
            opens = self.opens.len(),
            queued_runs = self.queue.len(),
            queued_pixels = self.queue.iter().map(Job::cost_pixels).sum::<u64>(),
            engines = self.engines.iter().count(),
            files = catalog.files,
            files_idle = catalog.idle,
            indexes = catalog.indexes,
            index_bytes = catalog.index_bytes,
            arenas = self.arenas.len(),
            arenas_of_nobody = self.detached.len(),
            tickets = self.tickets.len(),
            "state: whole"
        );
        let totals = self.totals;
        tracing::info!(
            target: STATE_TARGET,
            clients = totals.clients,
            requests = totals.requests,
            requests_failed = totals.requests_failed,
            frames_delivered = totals.frames_delivered,
            pictures_decoded = totals.pictures_decoded,
            samples_skipped = totals.samples_skipped,
            cache_hits = totals.cache_hits,
            scans = totals.scans,
            runs = totals.runs,
            joined = totals.joined,
            engine_crashes = totals.engine_crashes,
            engine_restarts = self.engines.restart_count(),
            retries = totals.retries,
            stray_releases = totals.stray_releases,
            tickets_issued = totals.tickets_issued,
            tickets_redeemed = totals.tickets_redeemed,
            tickets_expired = totals.tickets_expired,
            hints_accepted = totals.hints_accepted,
            hints_dropped = totals.hints_dropped,
            pictures_prefetched = totals.pictures_prefetched,
            prefetch_hits = totals.prefetch_hits,
            conversion_micros = totals.conversion_micros,
            page_faults = totals.page_faults,
            bytes_copied_out = totals.bytes_copied_out,
            "state: totals since the start"
        );
    }

    fn dump_request(&self, key: u64, request: &FrameRequest, now: Instant) {
        let client = self.clients.get(&request.client);
        let age = client.map_or(0, |client| client.request_age(request.request_id, now).as_millis() as u64);
        let file = request.parts.first().and_then(|part| self.catalog.get(part.source));
        tracing::info!(
            target: STATE_TARGET,
            client = request.client,
            request_id = request.request_id,
            key,
            millis = age,
            parts = request.parts.len(),
            first_file = file.map_or("", |entry| entry.label.as_str()),
            frames = request.frame_count(),
            missing = request.missing_count,
            bytes = request.slot_bytes,
            lease = request.lease.map(|lease| lease.0),
            waits_for_memory = request.lease.is_none(),
            deaths = request.blames.iter().map(|(_, blame)| u32::from(blame.death_count())).sum::<u32>(),
            "state: request"
        );
    }

    fn dump_waiting(&self, job: &Job) {
        let mut clients: Vec<u64> = job.waiters().iter().map(|waiter| waiter.client).collect();
        clients.sort_unstable();
        clients.dedup();
        clients.truncate(8);
        tracing::info!(
            target: STATE_TARGET,
            uid = job.user.uid,
            source = job.source.0,
            file = self.catalog.get(job.source).map_or("", |entry| entry.label.as_str()),
            task = task_name(&job.task),
            pictures = picture_count(&job.task),
            pixels = job.cost_pixels(),
            clients = ?clients,
            pinned_to_engine = job.pinned.map(|engine| engine.0),
            failures = job.failure_count,
            "state: waits for an engine"
        );
    }

    fn dump_engine(&self, key: EngineKey, engine: &Engine, now: Instant) {
        let (activity, since) = engine.activity();
        let running = engine.running.as_ref();
        let file = running.and_then(|running| self.catalog.get(running.job.source));
        tracing::info!(
            target: STATE_TARGET,
            engine = key.0,
            pid = engine.pid(),
            uid = engine.user.uid,
            activity = activity.name(),
            millis = now.duration_since(since).as_millis() as u64,
            job = running.map(|running| running.id.0),
            file = file.map_or("", |entry| entry.label.as_str()),
            pictures = running.map(|running| picture_count(&running.job.task)),
            is_cancelled = running.map(|running| running.is_cancelled),
            sessions = engine.report.session_count,
            cache_bytes = engine.report.cache_bytes,
            "state: engine"
        );
    }
}

fn dump_client(client: &Client, now: Instant) {
    let usage = client.memory.usage();
    tracing::info!(
        target: STATE_TARGET,
        client = client.key,
        pid = client.identity.pid,
        uid = client.identity.uid,
        name = client.name(),
        seconds = now.duration_since(client.connected_at).as_secs(),
        requests = client.request_count,
        waiting_for_memory = client.waiting.len(),
        requests_total = client.requests_total,
        errors = client.errors.values().sum::<u64>(),
        sources = client.sources.len(),
        leases = usage.lease_count,
        leased_bytes = usage.leased_bytes,
        filling = usage.filling_count,
        quarantined = usage.quarantined_count,
        arenas = client.arenas.len(),
        lent = usage.lent_count,
        borrowed = client.borrowed.usage().0,
        arena_bytes = usage.arena_bytes,
        quota_bytes = client.memory.quota_bytes(),
        "state: client"
    );
}

fn task_name(task: &Task) -> &'static str {
    match task {
        Task::Probe { .. } => "probe",
        Task::Scan { .. } => "scan",
        Task::Decode(_) => "decode",
    }
}

fn picture_count(task: &Task) -> usize {
    match task {
        Task::Probe { .. } | Task::Scan { .. } => 0,
        Task::Decode(decode) => decode.pictures.len(),
    }
}
