//! What becomes of what clients leave behind, and of what helpers bring back: nothing that may be a file of a
//! foreign file system is closed on the loop's thread.
//!
//! How the end of a client is noticed is the matter of `peer` and `death`.

use std::collections::BTreeMap;
use std::sync::Arc;

use reeld_protocol::error::WireError;

use super::helpers::{Done, Line, Purpose};
use super::peer::Remains;
use super::{Broker, PeerKey, catalog, clock, reply};
use crate::link::CatalogId;

/// Handles on files that are given back in one turn of the loop, and files that are forgotten in one: well
/// below a millisecond.
const LEAVINGS_PER_TURN: usize = 512;

impl Broker {
    /// A helper has come back.
    pub(super) fn helped(&mut self, line: Line, call: u64, done: Done) {
        let purpose = self.helpers.returned(line, call);
        match done {
            Done::SourceChecked(checked) => self.source_checked(line, purpose, checked),
            Done::Located(located) => self.located(purpose, located),
            Done::IndexRead { source, stream, index } => {
                let is_new = !matches!(purpose, Purpose::Load { .. });
                self.index_read(source, stream, index, is_new);
            }
            Done::Nothing => self.nothing_came_of(purpose, || reply::internal("a helper failed")),
        }
    }

    /// Whoever waited for a helper is told that it is in vain. For a chore that is done, and for an index that is
    /// not on disk, it is what was expected, and no error is made of it.
    pub(super) fn nothing_came_of(&mut self, purpose: Purpose, error: impl FnOnce() -> WireError) {
        match purpose {
            Purpose::Open(open) => self.fail_open(open, error()),
            Purpose::Locate(request) => self.fail_request(request, error()),
            Purpose::Load { source, stream, waiter } => self.scan(source, stream, waiter),
            Purpose::Chore => {}
        }
    }

    /// Sends a peer away that has too many descriptors closed where a file system does not answer.
    pub(super) fn check_chores(&mut self, key: PeerKey, line: Line) {
        if let PeerKey::Client(client) = key
            && self.clients.contains_key(&client)
            && self.helpers.is_overfull(line)
        {
            self.break_off(client, "too many files of this user wait for a file system that does not answer");
        }
    }

    /// Drops a copy of a living connection's socket; that of one that has ended may be the last.
    pub(super) fn let_go(&mut self, remains: Remains) {
        let is_alive = match remains.key {
            PeerKey::Client(client) => self.clients.contains_key(&client),
            PeerKey::Engine(engine) => self.engines.get_mut(engine).is_some(),
        };
        if !is_alive {
            self.helpers.discard(remains.line, remains);
        }
    }

    /// Gives back everything that a client held. The only way in which a client ends.
    pub(super) fn forget_client(&mut self, key: u64) {
        let Some(mut client) = self.clients.remove(&key) else { return };
        client.log_end(clock::now());
        for (code, count) in &client.errors {
            *self.past_errors.entry(code).or_default() += count;
        }
        self.stop_starving(key);
        self.quotas.disconnect(client.user);
        self.quotas.close_sources(client.user, client.sources.len() + client.opening_count);
        self.quotas.unmap_frames(client.user, self.mapped_frame_count(key, &client));
        if self.quotas.account(client.user).client_count == 0 {
            self.gates.remove(&client.user);
        }
        self.forget_opens(key);
        for request in self.requests.of_client(key) {
            self.requests.remove(request);
        }
        self.forget_hints(key);
        self.forget_unwanted(key);
        self.find_heirs(key);
        self.queue.forget_client(key);
        self.relieved.remove(&key);
        self.leavings.extend(client.sources.values().map(|opened| opened.catalog));
        let sources = std::mem::take(&mut client.sources);
        self.drop_timelines(sources.into_values().map(|opened| opened.timeline));
        // The memory itself stays as long as somebody has it mapped, such as a child that the client forked. It
        // is never given to anybody else but those who have tickets for it.
        let claims = client.memory.claims();
        for (arena, granted) in &client.arenas {
            self.drop_arena(granted.key, claims.get(arena).copied().unwrap_or(0));
        }
        self.end_claims_of(key, &client.borrowed);
        self.has_memory_moved = true;
        self.without_clients_since = clock::now();
    }

    /// Gives back handles on files, and forgets files that are too many. A data set's worth at once would hold
    /// everybody up.
    pub(super) fn give_back_leavings(&mut self) {
        let now = clock::now();
        let rest = self.leavings.len().saturating_sub(LEAVINGS_PER_TURN);
        for source in self.leavings.split_off(rest) {
            self.catalog.release(source, now);
        }
        let evicted = self.catalog.evict(now, LEAVINGS_PER_TURN);
        self.close_files(evicted, ());
    }

    /// Closes files that the catalog has forgotten, each in its user's line. `witness` is dropped with the last.
    pub(super) fn close_files(
        &mut self,
        evicted: Vec<(CatalogId, catalog::Entry)>,
        witness: impl Send + Sync + 'static,
    ) {
        let witness = Arc::new(witness);
        let mut lines: BTreeMap<Line, Vec<catalog::Entry>> = BTreeMap::new();
        for (source, entry) in evicted {
            self.engines.drop_source(source);
            self.kept.forget_source(source);
            lines.entry(Line::User(entry.user.uid)).or_default().push(entry);
        }
        for (line, entries) in lines {
            self.helpers.discard(line, (entries, Arc::clone(&witness)));
        }
    }
}
