//! What happens by the clock: idle memory, files and engines are given back, peers that never say hello are
//! let go, a private daemon ends after its last client. And the status report.

use std::time::{Duration, Instant};

use reeld_protocol::status::{LISTED_MAX, Status};

use super::helpers::Purpose;
use super::{Broker, Flow, reply};

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
        let now = Instant::now();
        self.engines.tend(now);
        self.drop_silent_clients(now);
        self.drop_idle_arenas(now);
        self.give_up_hanging_calls(now);
        self.settle_turn();
        if self.service.is_there() {
            let status = self.status_line();
            self.service.tend(now, &status);
        }
        if self.settings.is_private && self.clients.is_empty() {
            let patience = if self.had_clients { LAST_CLIENT_LINGER } else { FIRST_CLIENT_WITHIN };
            if now.duration_since(self.without_clients_since) >= patience {
                return Flow::Stop;
            }
        }
        Flow::GoOn
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

    fn drop_idle_arenas(&mut self, now: Instant) {
        let mut dropped = Vec::new();
        for client in self.clients.values_mut() {
            if now.duration_since(client.active_at) >= ARENAS_KEPT {
                let idle = client.memory.revoke_idle();
                dropped.extend(client.revoke_arenas(&idle));
            }
        }
        self.drop_arenas(&dropped);
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
            self.nothing_came_of(purpose, reply::hanging_file_system(&label));
        }
    }

    /// What the daemon does, in one line.
    fn status_line(&self) -> String {
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let leased_bytes: u64 = self.clients.values().map(|client| client.memory.usage().leased_bytes).sum();
        let engines = self.engines.status();
        let (engine_count, busy_count) = engines.fold((0, 0), |(engine_count, busy_count), engine| {
            (engine_count + 1, busy_count + usize::from(engine.is_busy))
        });
        format!(
            "{}, {} ({busy_count} busy), {} MiB leased",
            count(self.clients.len(), "client"),
            count(engine_count, "engine"),
            leased_bytes.div_ceil(1 << 20)
        )
    }

    pub(super) fn status(&self) -> Status {
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ffmpeg_versions: self.ffmpeg_versions.clone(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            client_count: self.clients.len() as u64,
            source_count: self.catalog.len() as u64,
            queued_run_count: self.queue.len() as u64,
            request_count: self.requests.len() as u64,
            totals: self.totals,
            clients: self.clients.values().take(LISTED_MAX).map(super::client::Client::status).collect(),
            engines: self.engines.status().take(LISTED_MAX).collect(),
            stuck_helper_count: self.helpers.abandoned_count() as u64,
            slow_turn_count: self.turns.slow_count,
            longest_turn_micros: self.turns.longest.as_micros() as u64,
            ..Status::default()
        };
        for client in self.clients.values() {
            let usage = client.memory.usage();
            status.lease_count += usage.lease_count;
            status.leased_bytes += usage.leased_bytes;
            status.filling_count += usage.filling_count;
            status.quarantined_count += usage.quarantined_count;
            status.arena_bytes += usage.arena_bytes;
        }
        status
    }
}
