//! What happens by the clock: idle memory, files and engines are given back, peers that never say hello are
//! let go, a private daemon ends after its last client. And the status report.

use std::time::{Duration, Instant};

use reeld_protocol::status::{
    EngineStatus, ErrorCount, LABEL_BYTES_MAX, LISTED_MAX, Status, Totals, UserStatus, shortened,
};

use super::engines::Engine;
use super::helpers::Purpose;
use super::job::User;
use super::{Broker, Flow, clock, reply};
use crate::logging;

/// How often things are looked after.
pub const TICK: Duration = Duration::from_millis(500);

/// A client has this long to say hello.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// A client that asks for nothing keeps its empty arenas this long.
const ARENAS_KEPT: Duration = Duration::from_secs(30);

/// A private daemon waits this long for its first client: the process that started it connects at once.
const FIRST_CLIENT_WITHIN: Duration = Duration::from_secs(30);

/// A private daemon outlives its last client by this long, so that the next worker finds it warm.
const LAST_CLIENT_LINGER: Duration = Duration::from_secs(2);

impl Broker {
    pub(super) fn tend(&mut self) -> Flow {
        let now = clock::now();
        self.engines.tend(now);
        self.drop_silent_clients(now);
        self.drop_idle_arenas(|client| now.duration_since(client.active_at) >= ARENAS_KEPT);
        self.give_up_hanging_calls(now);
        self.tell_dropped_lines();
        self.forget_sessions();
        self.hints.expire(self.now_millis());
        self.settle_turn();
        if self.service.is_there() {
            let status = self.status_line();
            self.service.tend(now, &status);
        }
        if self.settings.is_private && self.clients.is_empty() {
            let patience = if self.had_clients { LAST_CLIENT_LINGER } else { FIRST_CLIENT_WITHIN };
            if now.duration_since(self.without_clients_since) >= patience {
                self.begin_drain("the last client is gone");
            }
        }
        self.settle_drain()
    }

    fn tell_dropped_lines(&mut self) {
        let dropped = logging::dropped_count();
        if dropped > self.log_lines_dropped {
            tracing::warn!(dropped, "the log was not read in time: lines since the start were dropped");
            // This line may be lost too; it is not tried again for its own sake.
            self.log_lines_dropped = logging::dropped_count();
        }
    }

    fn drop_silent_clients(&mut self, now: Instant) {
        let is_silent = |client: &super::client::Client| {
            client.name.is_none() && now.duration_since(client.connected_at) >= HELLO_WITHIN
        };
        let silent: Vec<u64> =
            self.clients.iter().filter(|(_, client)| is_silent(client)).map(|(&key, _)| key).collect();
        for client in silent {
            self.break_off(client, "no Hello in time");
        }
    }

    /// Tells those who wait for a file system that does not answer.
    fn give_up_hanging_calls(&mut self, now: Instant) {
        for purpose in self.helpers.abandon(now) {
            let label = match purpose {
                Purpose::Open(open) => self.label_of(open),
                Purpose::Locate(_) | Purpose::Load { .. } | Purpose::Chore => {
                    "the memory file with the request".to_owned()
                }
            };
            self.nothing_came_of(purpose, || reply::hanging_file_system(&label));
        }
    }

    /// What the daemon does, in one line.
    fn status_line(&self) -> String {
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let leased_bytes: u64 = self.clients.values().map(|client| client.memory.usage().leased_bytes).sum();
        let busy_count = self.engines.iter().filter(|(_, engine)| engine.running.is_some()).count();
        let line = format!(
            "{}, {} ({busy_count} busy), {} MiB leased",
            count(self.clients.len(), "client"),
            count(self.engines.iter().count(), "engine"),
            leased_bytes.div_ceil(1 << 20)
        );
        if self.is_draining() { format!("stopping: {line}") } else { line }
    }

    /// The report for a client: totals of everyone, names and labels of its own user alone.
    pub(super) fn status(&self, asker: u64) -> Status {
        let (now, user) = (clock::now(), self.clients.get(&asker).map(|client| client.user));
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ffmpeg_versions: self.ffmpeg_versions.clone(),
            pid: std::process::id(),
            uptime_seconds: self.age().as_secs(),
            client_count: self.clients.len() as u64,
            source_count: self.catalog.len() as u64,
            queued_run_count: self.queue.len() as u64,
            request_count: self.requests.len() as u64,
            stuck_helper_count: self.helpers.abandoned_count() as u64,
            slow_turn_count: self.turns.slow_count,
            longest_turn_micros: self.turns.longest.as_micros() as u64,
            users: self.users().take(LISTED_MAX).collect(),
            memory_bytes_max: self.quotas.limits().memory_bytes,
            detached_bytes: self.quotas.total().detached_bytes,
            totals: Totals { engine_restarts: self.engines.restart_count(), ..self.totals },
            clients: self.clients.values().take(LISTED_MAX).map(|client| client.status(user, now)).collect(),
            engines: self.engine_statuses(user, now),
            is_draining: self.is_draining(),
            queued_pixels: self.queue.iter().map(super::job::Job::cost_pixels).sum(),
            cache_bytes: self.engines.iter().map(|(_, engine)| engine.report.cache_bytes).sum(),
            errors: self.errors(),
            log_lines_dropped: logging::dropped_count(),
            tickets_outstanding: self.tickets.len() as u64,
            hints_waiting: self.hints.waiting_count(),
            ..Status::default()
        };
        for client in self.clients.values() {
            let usage = client.memory.usage();
            let (borrowed_count, borrowed_bytes) = client.borrowed.usage();
            status.lease_count += usage.lease_count + borrowed_count;
            status.leased_bytes += usage.leased_bytes + borrowed_bytes;
            status.filling_count += usage.filling_count;
            status.quarantined_count += usage.quarantined_count;
            status.arena_bytes += usage.arena_bytes;
        }
        status
    }

    fn users(&self) -> impl Iterator<Item = UserStatus> {
        self.quotas.iter().map(|(user, account)| UserStatus {
            uid: user.uid,
            client_count: account.client_count as u64,
            request_count: self.gates.get(&user).map_or(0, |gate| gate.passed_count() as u64),
            source_count: account.source_count as u64,
            arena_bytes: account.arena_bytes,
            detached_bytes: account.detached_bytes,
            memory_bytes_max: self.quotas.limits().user_memory_bytes,
        })
    }

    /// Error replies since the start, by the names of their codes.
    fn errors(&self) -> Vec<ErrorCount> {
        let mut errors = self.past_errors.clone();
        for (code, count) in self.clients.values().flat_map(|client| &client.errors) {
            *errors.entry(code).or_default() += count;
        }
        errors.into_iter().map(|(code, count)| ErrorCount { code: code.to_owned(), count }).collect()
    }

    fn engine_statuses(&self, asker: Option<User>, now: Instant) -> Vec<EngineStatus> {
        let label = |engine: &Engine| {
            let running = engine.running.as_ref().filter(|_| asker == Some(engine.user))?;
            let entry = self.catalog.get(running.job.source)?;
            Some(shortened(&entry.label, LABEL_BYTES_MAX))
        };
        let listed = self.engines.iter().take(LISTED_MAX);
        listed.map(|(_, engine)| engine.status(label(engine), now)).collect()
    }
}
