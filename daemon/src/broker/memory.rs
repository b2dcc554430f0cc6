//! Memory for results: slots out of a client's arenas, new arenas within what its user and all users may have,
//! and requests that wait until others have given some back.
//!
//! What one client's arenas look like inside is known to `leases`; who may have how much, to `quotas`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeld_protocol::error::WireError;
use reeld_protocol::ids::LeaseId;

use super::client::{Client, GrantedArena};
use super::helpers::{Done, Line, Purpose};
use super::job::User;
use super::leases::{Reservation, Slot};
use super::quotas::{Barrier, QuotaLimits};
use super::{Broker, clock, descriptors, reply};
use crate::config::Settings;
use crate::link::ArenaKey;

/// A request waits this long for memory that others have. As long as their requests are under way, they are
/// likely to give some back, which takes milliseconds; but they need not, and nobody shall wait for ever.
const STARVING_MAX: Duration = Duration::from_secs(10);

/// An arena that its client has given up while engines were at work that may write to it, or whose client is gone
/// while others have claims on what lies in it.
#[derive(Debug)]
pub struct DetachedArena {
    /// The memory.
    pub fd: Arc<OwnedFd>,
    /// Its length.
    pub bytes: u64,
    /// Tickets and leases of others.
    pub claim_count: u64,
    user: User,
    engine_count: usize,
}

/// What became of a wish for a slot.
#[derive(Debug)]
pub enum Reserved {
    /// It is there.
    Slot(Slot),
    /// The client's own requests in flight have to end first.
    Wait,
    /// Memory of others has to come back first.
    WaitForOthers(Barrier),
    /// It cannot be had.
    Refused(WireError),
}

/// Clients whose next request waits for memory that others have, in the order of coming.
#[derive(Debug, Default)]
pub struct Starving {
    by_turn: BTreeMap<u64, Hungry>,
    turns: BTreeMap<u64, u64>,
    next_turn: u64,
}

#[derive(Clone, Copy, Debug)]
struct Hungry {
    client: u64,
    user: User,
    request: u64,
    barrier: Barrier,
    since: Instant,
}

impl Starving {
    /// Takes note that a request waits. One that has waited before keeps its turn.
    fn note(&mut self, client: u64, user: User, request: u64, barrier: Barrier, now: Instant) {
        if let Some(turn) = self.turns.get(&client)
            && let Some(hungry) = self.by_turn.get_mut(turn)
            && hungry.request == request
        {
            hungry.barrier = barrier;
            return;
        }
        self.forget(client);
        self.next_turn += 1;
        self.turns.insert(client, self.next_turn);
        self.by_turn.insert(self.next_turn, Hungry { client, user, request, barrier, since: now });
    }

    /// The client waits no more. True if it did.
    fn forget(&mut self, client: u64) -> bool {
        let turn = self.turns.remove(&client);
        turn.and_then(|turn| self.by_turn.remove(&turn)).is_some()
    }

    /// True if another client of the same user has waited longer.
    fn is_behind_another(&self, client: u64, user: User) -> bool {
        let own_turn = self.turns.get(&client).copied().unwrap_or(u64::MAX);
        self.by_turn
            .range(..own_turn)
            .any(|(_, hungry)| hungry.user == user && hungry.barrier != Barrier::Lent)
    }

    /// When the next of them has waited long enough.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.by_turn.values().next().map(|hungry| hungry.since + STARVING_MAX)
    }

    fn overdue(&self, now: Instant) -> Option<Hungry> {
        self.by_turn.values().next().filter(|hungry| now >= hungry.since + STARVING_MAX).copied()
    }
}

/// The limits as the accounts see them. `node_bytes` is all the memory that there is.
pub fn quota_limits(settings: &Settings, node_bytes: u64) -> QuotaLimits {
    let limits = &settings.limits;
    let memory_bytes = limits.memory_mib.map_or(node_bytes / 2, |mib| mib << 20);
    QuotaLimits {
        memory_bytes,
        user_memory_bytes: limits.user_memory_mib.map_or(memory_bytes, |mib| mib << 20),
        user_sources_max: limits.user_sources_max,
        client_count_max: limits.client_count_max,
        user_client_count_max: limits.user_client_count_max,
        is_single_user: settings.is_private,
    }
}

impl Broker {
    /// Reserves a slot, making and giving back arenas as the client's, its user's and everybody's memory says.
    pub(super) fn reserve(&mut self, key: u64, bytes: u64) -> Reserved {
        self.next_lease += 1;
        let lease = LeaseId(self.next_lease);
        loop {
            let Some(client) = self.clients.get_mut(&key) else { return Reserved::Wait };
            let user = client.user;
            match client.memory.reserve(lease, bytes) {
                Reservation::Slot(slot) => return Reserved::Slot(slot),
                Reservation::Wait => return Reserved::Wait,
                Reservation::Lent { .. } => return Reserved::WaitForOthers(Barrier::Lent),
                refused @ (Reservation::NoSlots { .. } | Reservation::TooLarge) => {
                    let quota_bytes = client.memory.quota_bytes();
                    return Reserved::Refused(reply::from_reservation(&refused, bytes, quota_bytes));
                }
                Reservation::NeedsArena { bytes: preferred, bytes_min, is_dedicated, revoked } => {
                    // The client has given these up, whether or not there is memory for a new one.
                    let dropped = client.revoke_arenas(&revoked);
                    self.drop_arenas(&dropped);
                    let granted = match self.room(key, user, preferred, bytes_min) {
                        Ok(granted) => granted,
                        Err(barrier) => return self.judge(key, user, bytes_min, barrier),
                    };
                    if let Err(error) = self.grant_arena(key, user, granted, is_dedicated) {
                        return Reserved::Refused(error);
                    }
                }
            }
        }
    }

    /// How large an arena may be that this client gets now. Arenas in which nothing lies are taken back for it:
    /// the user's, and where everybody's memory is short, everybody's; those of long silent clients first.
    fn room(
        &mut self,
        client: u64,
        user: User,
        preferred_bytes: u64,
        bytes_min: u64,
    ) -> Result<u64, Barrier> {
        if bytes_min <= self.quotas.largest().0 && self.starving.is_behind_another(client, user) {
            return Err(Barrier::UserMemory);
        }
        let mut barrier = match self.quotas.grantable(user, preferred_bytes, bytes_min) {
            Ok(granted) => return Ok(granted),
            Err(barrier) => barrier,
        };
        let asking = user;
        let mut owners: Vec<(bool, Instant, u64)> =
            self.clients.values().map(|owner| (owner.user != user, owner.active_at, owner.key)).collect();
        owners.sort_unstable();
        for (is_other_user, _, owner) in owners {
            if is_other_user && barrier != Barrier::Memory {
                break;
            }
            let Some(owner) = self.clients.get_mut(&owner) else { continue };
            let idle = owner.memory.revoke_idle();
            if idle.is_empty() {
                continue;
            }
            let dropped = owner.revoke_arenas(&idle);
            self.drop_arenas(&dropped);
            barrier = match self.quotas.grantable(user, preferred_bytes, bytes_min) {
                Ok(granted) => return Ok(granted),
                Err(barrier) => barrier,
            };
        }
        let user = (barrier == Barrier::UserMemory).then_some(user);
        while self.expire_orphan(user) {
            barrier = match self.quotas.grantable(asking, preferred_bytes, bytes_min) {
                Ok(granted) => return Ok(granted),
                Err(barrier) => barrier,
            };
        }
        Err(barrier)
    }

    /// A request that found no room waits if something under way may make some, and else fails.
    fn judge(&self, client: u64, user: User, bytes: u64, barrier: Barrier) -> Reserved {
        let (largest_bytes, of_largest) = self.quotas.largest();
        if bytes > largest_bytes {
            return Reserved::Refused(reply::too_large(bytes, largest_bytes, of_largest));
        }
        let is_concerned = |other: User| barrier == Barrier::Memory || other == user;
        let is_moving = self.clients.values().any(|other| is_concerned(other.user) && other.memory.is_moving())
                || self.detached.values().any(|arena| is_concerned(arena.user) && arena.engine_count > 0)
                // Whoever redeems them may copy.
                || self.tickets.users().any(&is_concerned)
                // Whoever is ahead has not been refused yet.
                || self.starving.is_behind_another(client, user);
        if is_moving {
            Reserved::WaitForOthers(barrier)
        } else {
            Reserved::Refused(self.no_room(user, bytes, barrier))
        }
    }

    /// The sentence for a result that finds no room.
    fn no_room(&self, user: User, bytes: u64, barrier: Barrier) -> WireError {
        reply::no_room(bytes, barrier, self.quotas.account(user), self.quotas.total(), self.quotas.limits())
    }

    fn grant_arena(
        &mut self,
        client: u64,
        user: User,
        bytes: u64,
        is_dedicated: bool,
    ) -> Result<(), WireError> {
        let Some(client) = self.clients.get_mut(&client) else { return Ok(()) };
        self.next_arena += 1;
        let key = ArenaKey(self.next_arena);
        let granted = match client.grant_arena(key, bytes, is_dedicated) {
            Ok(granted) => granted,
            Err(error) if descriptors::are_exhausted(&error) => {
                self.shed_files();
                return Err(reply::no_descriptors(&error));
            }
            Err(error) => {
                return Err(reply::internal(format!("no shared memory for {bytes} bytes: {error}")));
            }
        };
        self.quotas.grant(user, bytes);
        self.helpers.run(Line::House, Purpose::Chore, {
            let granted = granted.clone();
            move || prefault(&granted.fd, granted.bytes)
        });
        self.arenas.insert(key, granted);
        Ok(())
    }

    /// Forgets arenas that their clients have given up. What engines may still write to stays in the accounts
    /// until they have answered.
    pub(super) fn drop_arenas(&mut self, arenas: &[ArenaKey]) {
        for key in arenas {
            self.drop_arena(*key, 0);
        }
    }

    /// Forgets an arena that its client has given up. What others have claims on stays in the accounts until
    /// these have ended.
    pub(super) fn drop_arena(&mut self, key: ArenaKey, claim_count: u64) {
        let Some(GrantedArena { user, bytes, fd, .. }) = self.arenas.remove(&key) else { return };
        let engine_count = self.engines.drop_arena(key);
        if engine_count == 0 && claim_count == 0 {
            self.quotas.free(user, bytes);
        } else {
            self.quotas.detach(user, bytes);
            self.detached.insert(key, DetachedArena { fd, bytes, claim_count, user, engine_count });
        }
        self.withdraw(key);
        self.has_memory_moved = true;
    }

    /// Forgets a detached arena if nobody has to do with it any more.
    pub(super) fn forget_detached(&mut self, key: ArenaKey) {
        let is_over = |arena: &DetachedArena| arena.engine_count == 0 && arena.claim_count == 0;
        if let Some(arena) = self.detached.get(&key).filter(|arena| is_over(arena)) {
            self.quotas.free_detached(arena.user, arena.bytes);
            self.detached.remove(&key);
            self.has_memory_moved = true;
        }
    }

    /// An engine has let go of arenas: it was idle when it was told, or it is dead.
    pub(super) fn engine_let_go(&mut self, arenas: &[ArenaKey]) {
        for key in arenas {
            let Some(arena) = self.detached.get_mut(key) else { continue };
            arena.engine_count = arena.engine_count.saturating_sub(1);
            self.forget_detached(*key);
        }
    }

    /// Takes note that a client's next request waits for memory of others.
    pub(super) fn starve(&mut self, client: u64, request: u64, barrier: Barrier) {
        if let Some(user) = self.clients.get(&client).map(|client| client.user) {
            self.starving.note(client, user, request, barrier, clock::now());
        }
    }

    /// A client waits no more for memory of others: whoever was behind it is next.
    pub(super) fn stop_starving(&mut self, client: u64) {
        self.has_memory_moved |= self.starving.forget(client);
    }

    /// Lets requests in that wait for memory of others, if any moved: of each user the one that has waited
    /// longest first, and no other before it.
    pub(super) fn admit_starving(&mut self) {
        while std::mem::take(&mut self.has_memory_moved) && !self.starving.by_turn.is_empty() {
            let in_turn: Vec<(u64, Hungry)> =
                self.starving.by_turn.iter().map(|(&turn, &hungry)| (turn, hungry)).collect();
            let mut still_hungry: BTreeSet<User> = BTreeSet::new();
            for (turn, hungry) in in_turn {
                if still_hungry.contains(&hungry.user) {
                    continue;
                }
                self.admit_waiting(hungry.client);
                if self.starving.by_turn.contains_key(&turn) && hungry.barrier != Barrier::Lent {
                    still_hungry.insert(hungry.user);
                }
            }
        }
    }

    /// Answers requests that have waited long enough for memory of others.
    pub(super) fn refuse_starved(&mut self, now: Instant) {
        while let Some(hungry) = self.starving.overdue(now) {
            let bytes = self.requests.get_mut(hungry.request).map_or(0, |request| request.slot_bytes);
            let error = self.no_room(hungry.user, bytes, hungry.barrier);
            self.stop_starving(hungry.client);
            self.fail_request(hungry.request, error);
        }
    }

    /// Gives back what clients keep without need: those that have asked for nothing for long.
    pub(super) fn drop_idle_arenas(&mut self, is_long_silent: impl Fn(&Client) -> bool) {
        let mut dropped = Vec::new();
        for client in self.clients.values_mut().filter(|client| is_long_silent(client)) {
            let idle = client.memory.revoke_idle();
            dropped.extend(client.revoke_arenas(&idle));
        }
        self.drop_arenas(&dropped);
    }
}

/// Provides an arena's pages before they are needed; a failure only means that they come later.
fn prefault(fd: &OwnedFd, bytes: u64) -> Done {
    if let Ok(arena) = reeld_protocol::Arena::map(fd, bytes) {
        arena.populate();
    }
    Done::Nothing
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::net::UnixStream;
    use tokio::sync::mpsc;

    use super::super::Event;
    use super::*;
    use crate::config::{Command, CommandLine};

    fn user(uid: u32) -> User {
        User { uid, connection: None }
    }

    #[test]
    fn request_keeps_its_turn_and_the_next_of_its_client_goes_to_the_end() {
        let (mut starving, now) = (Starving::default(), Instant::now());
        starving.note(1, user(7), 100, Barrier::Memory, now);
        starving.note(2, user(7), 200, Barrier::Memory, now);
        starving.note(1, user(7), 100, Barrier::Memory, now);
        assert!(!starving.is_behind_another(1, user(7)) && starving.is_behind_another(2, user(7)));
        starving.note(1, user(7), 101, Barrier::Memory, now);
        assert!(starving.is_behind_another(1, user(7)) && !starving.is_behind_another(2, user(7)));
        assert!(!starving.is_behind_another(3, user(8)));
    }

    const MIB: u64 = 1 << 20;

    fn settings(limits: &[&str]) -> Settings {
        let words =
            ["reeld", "serve", "--config", "/dev/null", "--client-memory-mib", "16"].iter().chain(limits);
        match <CommandLine as clap::Parser>::parse_from(words).command {
            Command::Serve(options) => crate::config::load(&options).unwrap(),
            Command::Engine(_) => unreachable!("it says serve"),
        }
    }

    /// A broker with some clients of this process's user. Their other ends are given too, to be kept open.
    async fn broker(limits: &[&str], client_count: u64) -> (Broker, Vec<UnixStream>) {
        let (events, _) = mpsc::channel(16);
        let mut broker =
            Broker::new(settings(limits), Box::new(|| Err(String::new())), Vec::new(), events).unwrap();
        let mut others = Vec::new();
        for _ in 0..client_count {
            let (ours, theirs) = UnixStream::pair().unwrap();
            broker.handle(Event::Connected(ours));
            others.push(theirs);
        }
        assert_eq!(broker.clients.len() as u64, client_count);
        (broker, others)
    }

    fn slot(reserved: Reserved) -> Slot {
        match reserved {
            Reserved::Slot(slot) => slot,
            other => panic!("{other:?}"),
        }
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn client_waits_while_anothers_request_is_under_way_and_is_refused_when_nothing_is() {
        run(async {
            let (mut broker, _others) = broker(&["--user-memory-mib", "8"], 2).await;
            let lease = slot(broker.reserve(1, 6 * MIB)).lease;
            assert!(matches!(broker.reserve(2, 4 * MIB), Reserved::WaitForOthers(Barrier::UserMemory)));
            broker.clients.get_mut(&1).unwrap().memory.fulfil(lease);
            match broker.reserve(2, 4 * MIB) {
                Reserved::Refused(error) => assert!(error.message.contains("user_memory_mib"), "{error}"),
                other => panic!("{other:?}"),
            }
            broker.release(1, &[lease]);
            slot(broker.reserve(2, 4 * MIB));
            assert!(broker.quotas.total().arena_bytes <= 8 * MIB);
        });
    }

    #[test]
    fn raised_limits_let_in_who_waits_and_lowered_ones_take_nothing_away() {
        run(async {
            let (mut broker, _others) =
                broker(&["--user-memory-mib", "8", "--user-client-count-max", "2"], 2).await;
            slot(broker.reserve(1, 6 * MIB));
            assert!(matches!(broker.reserve(2, 4 * MIB), Reserved::WaitForOthers(_)));
            let raised = ["--user-memory-mib", "32", "--user-client-count-max", "3"];
            broker.apply_limits(settings(&raised).limits);
            slot(broker.reserve(2, 4 * MIB));
            let lowered = ["--user-memory-mib", "1", "--user-client-count-max", "1"];
            broker.apply_limits(settings(&lowered).limits);
            assert!(broker.quotas.total().arena_bytes >= 10 * MIB);
            assert_eq!(broker.clients.len(), 2);
            assert!(matches!(broker.reserve(2, 8 * MIB), Reserved::Refused(_)));
        });
    }

    #[test]
    fn arenas_of_a_client_that_is_gone_are_free_where_no_engine_is_at_work() {
        run(async {
            let (mut broker, _others) = broker(&[], 2).await;
            slot(broker.reserve(1, 6 * MIB));
            assert!(broker.quotas.total().arena_bytes > 0);
            broker.forget_client(1);
            assert_eq!((broker.quotas.total().arena_bytes, broker.quotas.total().client_count), (0, 1));
            assert!(broker.detached.is_empty());
        });
    }

    #[test]
    fn detached_arena_is_paid_for_until_the_last_engine_let_go() {
        run(async {
            let (mut broker, _others) = broker(&[], 1).await;
            let user = broker.clients[&1].user;
            broker.quotas.grant(user, 4 * MIB);
            broker.quotas.detach(user, 4 * MIB);
            let fd = Arc::new(reeld_protocol::arena::create_arena(4 * MIB).unwrap());
            let arena = DetachedArena { fd, bytes: 4 * MIB, claim_count: 0, user, engine_count: 2 };
            broker.detached.insert(ArenaKey(9), arena);
            broker.engine_let_go(&[ArenaKey(9), ArenaKey(10)]);
            assert_eq!(broker.quotas.total().detached_bytes, 4 * MIB);
            broker.engine_let_go(&[ArenaKey(9)]);
            assert_eq!(broker.quotas.total().detached_bytes, 0);
            assert!(broker.has_memory_moved && broker.detached.is_empty());
        });
    }

    #[test]
    fn nobody_starves_for_ever() {
        let (mut starving, now) = (Starving::default(), Instant::now());
        starving.note(1, user(7), 100, Barrier::UserMemory, now);
        assert_eq!(starving.next_deadline(), Some(now + STARVING_MAX));
        assert!(starving.overdue(now).is_none());
        assert_eq!(starving.overdue(now + STARVING_MAX).map(|hungry| hungry.request), Some(100));
        starving.forget(1);
        assert!(starving.next_deadline().is_none());
    }
}
