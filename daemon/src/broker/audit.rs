//! What must hold across all tables of the broker between two turns of its loop. Tests ask after every event;
//! nothing is changed here.
//!
//! What must hold within one table is the matter of its own tests.

use std::collections::{BTreeMap, BTreeSet};

use reeld_protocol::ids::LeaseId;

use super::Broker;
use super::job::Task;
use crate::link::{ArenaKey, CatalogId, WantedId};

impl Broker {
    /// Checks that no table knows of something that another has forgotten, and that what is counted twice is
    /// counted alike. Takes time in proportion to what there is.
    pub fn audit(&self) -> Result<(), String> {
        self.audit_clients()?;
        self.audit_mappings()?;
        self.audit_requests()?;
        self.audit_pictures()?;
        self.audit_files()?;
        self.audit_arenas()?;
        self.audit_claims()?;
        self.audit_hints()?;
        if self.clients.is_empty() { self.audit_emptiness() } else { Ok(()) }
    }

    fn check(is_right: bool, fault: impl FnOnce() -> String) -> Result<(), String> {
        if is_right { Ok(()) } else { Err(fault()) }
    }

    /// Everything that is somebody's is somebody's who is there.
    fn audit_clients(&self) -> Result<(), String> {
        let is_known = |client: u64| self.clients.contains_key(&client);
        for client in self.queue.clients().chain(self.relieved.iter().copied()) {
            Self::check(is_known(client), || {
                format!("client {client} is gone, but has a place in the queue")
            })?;
        }
        for client in self.hints.clients() {
            Self::check(is_known(client), || format!("client {client} is gone, but its hints are not"))?;
        }
        for (open, pending) in &self.opens {
            Self::check(is_known(pending.client()), || format!("open {open} of a client that is gone"))?;
        }
        for (key, client) in &self.clients {
            let mut waiting = BTreeSet::new();
            for &request in &client.waiting {
                let is_own = self.requests.get(request).is_some_and(|request| request.client == *key);
                Self::check(is_own, || {
                    format!("client {key} waits for request {request}, which is not its own")
                })?;
                Self::check(waiting.insert(request), || format!("request {request} waits twice"))?;
            }
            let opens = self.opens.values().filter(|pending| pending.client() == *key).count() as u64;
            let unanswered = opens + self.requests.of_client(*key).len() as u64;
            Self::check(client.request_count == unanswered, || {
                format!("client {key} counts {} requests, there are {unanswered}", client.request_count)
            })?;
        }
        Ok(())
    }

    /// Each mapping is on the account of its client's user.
    fn audit_mappings(&self) -> Result<(), String> {
        let mut mapped: BTreeMap<_, u64> = BTreeMap::new();
        for (key, client) in &self.clients {
            *mapped.entry(client.user).or_default() += self.mapped_frame_count(*key, client);
        }
        for (user, account) in self.quotas.iter() {
            let (counted, actual) = (account.mapped_frame_count, mapped.remove(&user).unwrap_or(0));
            Self::check(counted == actual, || {
                format!("user {user:?} counts {counted} mapped frames, there are {actual}")
            })?;
        }
        Self::check(mapped.values().all(|count| *count == 0), || {
            "mapped frames without an account".to_owned()
        })
    }

    fn audit_requests(&self) -> Result<(), String> {
        let mut missing: BTreeMap<u64, u64> = BTreeMap::new();
        for (wanted, record) in self.requests.pictures() {
            if self.requests.is_wanted(wanted) {
                *missing.entry(record.request).or_default() += 1;
            }
        }
        for (key, request) in self.requests.iter() {
            let client = self.clients.get(&request.client);
            let client = client.ok_or_else(|| format!("request {key} of a client that is gone"))?;
            let Some(lease) = request.lease else { continue };
            Self::check(client.memory.slot(lease).is_some(), || format!("request {key} without its slot"))?;
            Self::check(!client.waiting.contains(&key), || {
                format!("request {key} waits for the slot it has")
            })?;
            let counted = missing.get(&key).copied().unwrap_or(0);
            Self::check(request.missing_count == counted, || {
                format!("request {key} misses {} pictures, {counted} are on their way", request.missing_count)
            })?;
        }
        Ok(())
    }

    /// Every picture on its way is in exactly one job, and every slot counts what is written into it.
    fn audit_pictures(&self) -> Result<(), String> {
        let mut placed: BTreeSet<WantedId> = BTreeSet::new();
        let mut writing = BTreeMap::new();
        let running = self.engines.iter().filter_map(|(_, engine)| engine.running.as_ref());
        for (job, is_running) in
            self.queue.iter().map(|job| (job, false)).chain(running.map(|running| (&running.job, true)))
        {
            let Task::Decode(decode) = &job.task else { continue };
            for (picture, _) in &decode.pictures {
                let id = picture.id;
                Self::check(placed.insert(id), || format!("picture {} is in two jobs", id.0))?;
                let record = self.requests.wanted(id);
                let record = record.ok_or_else(|| format!("picture {} is in a job and settled", id.0))?;
                Self::check(is_running || self.requests.is_wanted(id), || {
                    format!("picture {} is queued, but nobody wants it", id.0)
                })?;
                if is_running {
                    *writing.entry((record.client, record.lease)).or_insert(0) += 1;
                }
            }
        }
        for (id, _) in self.requests.pictures() {
            Self::check(placed.contains(&id), || format!("picture {} is in no job", id.0))?;
        }
        for (key, client) in &self.clients {
            for (lease, counted) in client.memory.writing_counts() {
                let actual = writing.get(&(*key, lease)).copied().unwrap_or(0);
                Self::check(counted == actual, || {
                    format!("lease {} counts {counted} pictures being written, there are {actual}", lease.0)
                })?;
            }
        }
        Ok(())
    }

    /// Nothing is decoded ahead while something else waits.
    fn audit_hints(&self) -> Result<(), String> {
        for (key, engine) in self.engines.iter().filter(|(_, engine)| engine.is_at_hints()) {
            let is_ending = engine.running.as_ref().is_some_and(|running| running.is_cancelled);
            Self::check(is_ending || self.queue.len() == 0, || {
                format!("engine {} decodes ahead while {} runs wait", key.0, self.queue.len())
            })?;
        }
        self.hints.check()
    }

    /// Each handle on a file has its owner.
    fn audit_files(&self) -> Result<(), String> {
        let mut handles: BTreeMap<CatalogId, u64> = BTreeMap::new();
        let opened =
            self.clients.values().flat_map(|client| client.sources.values().map(|opened| opened.catalog));
        let opening = self.opens.values().filter_map(super::opening::PendingOpen::source);
        for source in opened.chain(opening).chain(self.leavings.iter().copied()) {
            *handles.entry(source).or_default() += 1;
        }
        for (source, entry) in self.catalog.iter() {
            let counted = entry.handle_count();
            let actual = handles.remove(&source).unwrap_or(0);
            Self::check(counted == actual, || {
                format!("file {} counts {counted} handles, there are {actual}", source.0)
            })?;
        }
        Self::check(handles.is_empty(), || "a handle on a file that is forgotten".to_owned())
    }

    /// The arenas of clients are those that engines may be told of.
    fn audit_arenas(&self) -> Result<(), String> {
        let of_clients: BTreeSet<ArenaKey> =
            self.clients.values().flat_map(|client| client.arenas.values().map(|arena| arena.key)).collect();
        let known: BTreeSet<ArenaKey> = self.arenas.keys().copied().collect();
        Self::check(of_clients == known, || {
            format!("arenas {known:?} are known, clients have {of_clients:?}")
        })?;
        for (key, engine) in self.engines.iter() {
            let stale = engine.arenas().find(|arena| !known.contains(arena));
            Self::check(stale.is_none(), || format!("engine {} keeps arena {stale:?}", key.0))?;
        }
        Ok(())
    }

    /// Each claim on a slot is somebody's, and each slot knows of all of them.
    fn audit_claims(&self) -> Result<(), String> {
        let mut on_slots: BTreeMap<(u64, LeaseId), u64> = BTreeMap::new();
        let mut on_detached: BTreeMap<ArenaKey, u64> = BTreeMap::new();
        let borrowed = self.clients.values().flat_map(|client| client.borrowed.claims());
        for claim in self.tickets.iter().map(|issued| issued.claim).chain(borrowed) {
            if self.clients.contains_key(&claim.owner) {
                *on_slots.entry((claim.owner, claim.lease)).or_default() += 1;
            } else {
                *on_detached.entry(claim.arena).or_default() += 1;
            }
        }
        for (key, client) in &self.clients {
            for (lease, counted) in client.memory.claim_counts() {
                let actual = on_slots.remove(&(*key, lease)).unwrap_or(0);
                Self::check(counted == actual, || {
                    format!("lease {} counts {counted} claims of others, there are {actual}", lease.0)
                })?;
            }
        }
        Self::check(on_slots.is_empty(), || format!("claims on slots that are free: {on_slots:?}"))?;
        for (key, arena) in &self.detached {
            let actual = on_detached.remove(key).unwrap_or(0);
            Self::check(arena.claim_count == actual, || {
                format!("arena {} counts {} claims, there are {actual}", key.0, arena.claim_count)
            })?;
        }
        Self::check(on_detached.is_empty(), || format!("claims on arenas that are gone: {on_detached:?}"))?;
        self.audit_borrowers()
    }

    /// Arenas of others are known where they are and are where they are known, and issuers are there or have
    /// tickets left.
    fn audit_borrowers(&self) -> Result<(), String> {
        let of_clients: BTreeSet<(ArenaKey, u64)> = self
            .clients
            .iter()
            .flat_map(|(&key, client)| client.borrowed.arenas().map(move |(arena, _)| (arena, key)))
            .collect();
        let known: BTreeSet<(ArenaKey, u64)> = self
            .borrowers
            .iter()
            .flat_map(|(&arena, clients)| clients.iter().map(move |&client| (arena, client)))
            .collect();
        Self::check(of_clients == known, || {
            format!("arenas {known:?} are said to be borrowed, {of_clients:?} are")
        })?;
        for client in self.clients.values() {
            for (arena, lease_count) in client.borrowed.arenas() {
                let is_there = self.arenas.contains_key(&arena) || lease_count > 0;
                Self::check(is_there, || format!("arena {} is borrowed from nobody for nothing", arena.0))?;
            }
        }
        for (issuer, ticket_count) in self.tickets.issuers() {
            let is_due = self.clients.contains_key(&issuer) || ticket_count > 0;
            Self::check(is_due, || format!("issuer {issuer} is gone and has no tickets"))?;
        }
        Ok(())
    }

    /// Without clients nothing is left but warm files and engines that finish what they are at.
    fn audit_emptiness(&self) -> Result<(), String> {
        let left = [
            ("opens", self.opens.len()),
            ("requests", self.requests.len()),
            ("queued jobs", self.queue.len()),
            ("clients with hints", self.hints.clients().count()),
            ("arenas", self.arenas.len()),
            ("relieved clients", self.relieved.len()),
        ];
        left.iter().try_for_each(|(what, count)| {
            Self::check(*count == 0, || format!("no client is there, but {count} {what} are"))
        })
    }
}
