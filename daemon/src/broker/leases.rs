//! One client's memory: which part of which arena is whose, and until when. Pure: the memfds themselves are
//! made by the caller, and nothing of this is written into shared memory.
//!
//! A slot's life: *filling* while engines write into it, *leased* once its request is answered, free after
//! the client gave it back. A request that ends early leaves its slot *quarantined* until the last engine
//! that may still write has answered or is known to be dead. Others may have claims on a leased slot, by
//! tickets: one that its owner gave back is *lent* until the last claim has ended. Whoever died with a claim
//! may have left children who can still write there: such a slot is *spoiled*, and goes with its arena.

use std::collections::BTreeMap;

use reeld_protocol::ids::{ArenaId, LeaseId};

/// Slots begin and end at pages, so that no two of them share one.
const SLOT_ALIGNMENT: u64 = 4096;

/// The first arena of a client. Most workers of a small model never need a second one.
const ARENA_BYTES_MIN: u64 = 4 << 20;

/// Arenas double up to this. Giving memory back means dropping a whole arena, so few huge ones would keep
/// more than they use.
const ARENA_BYTES_MAX: u64 = 256 << 20;

/// Arenas of one client: clients map no more. Only a client that got its memory in crumbs comes near it.
const ARENAS_MAX: usize = 4000;

/// A stretch of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Whose it is.
    pub lease: LeaseId,
    /// The arena.
    pub arena: ArenaId,
    /// Where it begins there.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Filling,
    Leased,
    Quarantined,
    /// Given back by its owner, but others have claims on it.
    Lent,
    /// Nobody's, and never to be anybody's again.
    Spoiled,
}

#[derive(Debug)]
struct Holding {
    slot: Slot,
    state: State,
    /// Pictures that engines were asked to write into it and have not answered for.
    writing_count: u64,
    /// Tickets, and leases that were had for tickets.
    claim_count: u64,
    /// One of those who had a claim died with it.
    is_spoiled: bool,
}

#[derive(Debug)]
struct ArenaRecord {
    bytes: u64,
    is_dedicated: bool,
    /// Offset and length of each free stretch; neighbours are joined.
    free: BTreeMap<u64, u64>,
    slot_count: u64,
    /// How many of these are spoiled.
    spoiled_count: u64,
}

/// What a reservation comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// The slot, filling.
    Slot(Slot),
    /// Give back the `revoked` arenas, make one of this length, call [`ClientMemory::add_arena`], try again.
    NeedsArena {
        /// Its length.
        bytes: u64,
        /// The least that would do where there is no room for that.
        bytes_min: u64,
        /// For this slot alone.
        is_dedicated: bool,
        /// Empty arenas that have to make room for it in the quota.
        revoked: Vec<ArenaId>,
    },
    /// Requests of this client are still being filled; their memory may come back.
    Wait,
    /// The client holds what it may, and others hold some of that by tickets.
    Lent {
        /// Bytes that only they hold.
        lent_bytes: u64,
        /// Bytes that the client itself holds.
        leased_bytes: u64,
    },
    /// Only leases that the client itself holds stand in the way.
    NoSlots {
        /// Bytes that it holds.
        leased_bytes: u64,
    },
    /// Larger than the whole quota.
    TooLarge,
}

/// What giving back a lease came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The slot is free, or waits for others who have claims on it.
    Freed,
    /// No such lease is held: given back twice, or never granted.
    Stray,
}

/// Bytes and slots of one client by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Leases held.
    pub lease_count: u64,
    /// Their bytes.
    pub leased_bytes: u64,
    /// Slots being filled.
    pub filling_count: u64,
    /// Slots that wait for an engine.
    pub quarantined_count: u64,
    /// Slots that were given back, but others have claims on.
    pub lent_count: u64,
    /// Their bytes.
    pub lent_bytes: u64,
    /// Bytes of all arenas.
    pub arena_bytes: u64,
}

/// One client's arenas and slots.
#[derive(Debug)]
pub struct ClientMemory {
    quota_bytes: u64,
    arenas: BTreeMap<ArenaId, ArenaRecord>,
    holdings: BTreeMap<LeaseId, Holding>,
    /// Holdings that are being filled or quarantined.
    moving_count: u64,
    /// Bytes of holdings that others have claims on.
    claimed_bytes: u64,
}

impl ClientMemory {
    /// A client that has nothing yet.
    pub fn new(quota_bytes: u64) -> ClientMemory {
        ClientMemory {
            quota_bytes,
            arenas: BTreeMap::new(),
            holdings: BTreeMap::new(),
            moving_count: 0,
            claimed_bytes: 0,
        }
    }

    /// Bytes that the client's arenas may have together.
    pub fn quota_bytes(&self) -> u64 {
        self.quota_bytes
    }

    /// Changes the quota. What lies above it stays until the client gives it back.
    pub fn change_quota(&mut self, quota_bytes: u64) {
        self.quota_bytes = quota_bytes;
    }

    /// True while slots are being filled, or wait for an engine: what they hold may come back soon.
    pub fn is_moving(&self) -> bool {
        self.moving_count > 0
    }

    /// Reserves a slot for a result. `lease` is a name that was never used before.
    pub fn reserve(&mut self, lease: LeaseId, bytes: u64) -> Reservation {
        let bytes = round_up(bytes.max(1));
        if bytes > self.quota_bytes {
            return Reservation::TooLarge;
        }
        let is_dedicated = bytes > self.arena_bytes_max() / 2;
        if let Some(slot) = self.place(lease, bytes, is_dedicated) {
            return Reservation::Slot(slot);
        }
        if let Some(reservation) = self.grow(bytes, is_dedicated) {
            return reservation;
        }
        if self.is_moving() {
            return Reservation::Wait;
        }
        let Usage { leased_bytes, lent_bytes, .. } = self.usage();
        if self.claimed_bytes > 0 {
            Reservation::Lent { lent_bytes, leased_bytes }
        } else {
            Reservation::NoSlots { leased_bytes }
        }
    }

    /// Takes note of a new, empty arena.
    pub fn add_arena(&mut self, arena: ArenaId, bytes: u64, is_dedicated: bool) {
        let free = BTreeMap::from([(0, bytes)]);
        self.arenas.insert(arena, ArenaRecord { bytes, is_dedicated, free, slot_count: 0, spoiled_count: 0 });
    }

    /// An engine is asked to write a picture into the slot.
    pub fn begin_writing(&mut self, lease: LeaseId) {
        if let Some(holding) = self.holdings.get_mut(&lease) {
            debug_assert_eq!(holding.state, State::Filling);
            holding.writing_count += 1;
        }
    }

    /// The engine has answered for the picture, or is dead. True if this made memory free.
    pub fn end_writing(&mut self, lease: LeaseId) -> bool {
        let Some(holding) = self.holdings.get_mut(&lease) else { return false };
        debug_assert!(holding.writing_count > 0);
        holding.writing_count = holding.writing_count.saturating_sub(1);
        let is_over = holding.state == State::Quarantined && holding.writing_count == 0;
        if is_over {
            self.free(lease);
        }
        is_over
    }

    /// The request is answered: from now on the slot is the client's.
    pub fn fulfil(&mut self, lease: LeaseId) {
        if let Some(holding) = self.holdings.get_mut(&lease) {
            debug_assert_eq!((holding.state, holding.writing_count), (State::Filling, 0));
            holding.state = State::Leased;
            self.moving_count -= 1;
        }
    }

    /// Where a lease's slot lies.
    pub fn slot(&self, lease: LeaseId) -> Option<Slot> {
        self.holdings.get(&lease).map(|holding| holding.slot)
    }

    /// Where the slot lies of a lease that the client holds.
    pub fn leased(&self, lease: LeaseId) -> Option<Slot> {
        let holding = self.holdings.get(&lease).filter(|holding| holding.state == State::Leased);
        holding.map(|holding| holding.slot)
    }

    /// The request ended without an answer that names the slot.
    pub fn abandon(&mut self, lease: LeaseId) {
        let Some(holding) = self.holdings.get_mut(&lease) else { return };
        debug_assert_eq!(holding.state, State::Filling);
        if holding.writing_count == 0 {
            self.free(lease);
        } else {
            holding.state = State::Quarantined;
        }
    }

    /// The client gives a lease back.
    pub fn release(&mut self, lease: LeaseId) -> Release {
        match self.holdings.get(&lease).map(|holding| holding.state) {
            Some(State::Leased) => {
                if let Some(holding) = self.holdings.get_mut(&lease) {
                    holding.state = State::Lent;
                }
                self.settle(lease);
                Release::Freed
            }
            Some(State::Filling | State::Quarantined | State::Lent | State::Spoiled) | None => Release::Stray,
        }
    }

    /// Somebody else has a claim on a slot from now on. False if there is no such slot, or nobody has it.
    pub fn claim(&mut self, lease: LeaseId) -> bool {
        let Some(holding) = self.holdings.get_mut(&lease) else { return false };
        match holding.state {
            State::Leased | State::Lent => {
                if holding.claim_count == 0 {
                    self.claimed_bytes += holding.slot.bytes;
                }
                holding.claim_count += 1;
                true
            }
            State::Filling | State::Quarantined | State::Spoiled => false,
        }
    }

    /// A claim has ended. `is_spoiled`: whoever had it may have left others who can write to the slot.
    pub fn end_claim(&mut self, lease: LeaseId, is_spoiled: bool) {
        let Some(holding) = self.holdings.get_mut(&lease) else { return };
        debug_assert!(holding.claim_count > 0);
        holding.claim_count = holding.claim_count.saturating_sub(1);
        holding.is_spoiled |= is_spoiled;
        if holding.claim_count == 0 {
            self.claimed_bytes = self.claimed_bytes.saturating_sub(holding.slot.bytes);
        }
        self.settle(lease);
    }

    /// True if others may have a claim on a slot. They may hold half of the quota: the other half stays for
    /// the client's own results, so that it need not wait for what others do with theirs.
    pub fn may_lend(&self, lease: LeaseId) -> bool {
        let Some(holding) = self.holdings.get(&lease) else { return false };
        holding.claim_count > 0 || self.claimed_bytes + holding.slot.bytes <= self.quota_bytes / 2
    }

    /// How many claims there are on slots of each arena where there are some.
    pub fn claims(&self) -> BTreeMap<ArenaId, u64> {
        let mut claims = BTreeMap::new();
        for holding in self.holdings.values().filter(|holding| holding.claim_count > 0) {
            *claims.entry(holding.slot.arena).or_default() += holding.claim_count;
        }
        claims
    }

    /// How many claims there are on each slot, for the audit.
    pub fn claim_counts(&self) -> impl Iterator<Item = (LeaseId, u64)> {
        self.holdings.iter().map(|(&lease, holding)| (lease, holding.claim_count))
    }

    /// Forgets arenas without slots and names them, so that the caller gives them back.
    pub fn revoke_idle(&mut self) -> Vec<ArenaId> {
        let idle: Vec<ArenaId> = self.idle().collect();
        self.forget_arenas(&idle);
        idle
    }

    /// Forgets arenas that are of no more use, and names them: those with nothing but spoiled slots, and dedicated ones
    /// whose slot was given back. The latest of these stays, since whoever had a large result often wants another.
    pub fn revoke_spent(&mut self) -> Vec<ArenaId> {
        let is_empty = |arena: &ArenaId| self.arenas[arena].slot_count == 0;
        let kept = self.idle().filter(|arena| self.arenas[arena].is_dedicated && is_empty(arena)).max();
        let is_spent = |arena: &ArenaId| {
            let record = &self.arenas[arena];
            (record.is_dedicated && Some(*arena) != kept) || record.spoiled_count > 0
        };
        let spent: Vec<ArenaId> = self.idle().filter(is_spent).collect();
        self.forget_arenas(&spent);
        spent
    }

    fn forget_arenas(&mut self, arenas: &[ArenaId]) {
        for arena in arenas {
            let record = self.arenas.remove(arena);
            if record.is_some_and(|record| record.spoiled_count > 0) {
                self.holdings.retain(|_, holding| holding.slot.arena != *arena);
            }
        }
    }

    /// What is used.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage { arena_bytes: self.arena_bytes(), ..Usage::default() };
        for holding in self.holdings.values() {
            match holding.state {
                State::Filling => usage.filling_count += 1,
                State::Quarantined => usage.quarantined_count += 1,
                State::Leased => {
                    usage.lease_count += 1;
                    usage.leased_bytes += holding.slot.bytes;
                }
                State::Lent => {
                    usage.lent_count += 1;
                    usage.lent_bytes += holding.slot.bytes;
                }
                State::Spoiled => {}
            }
        }
        usage
    }

    /// How many pictures engines are writing into each slot, for the audit.
    pub fn writing_counts(&self) -> impl Iterator<Item = (LeaseId, u64)> {
        self.holdings.iter().map(|(&lease, holding)| (lease, holding.writing_count))
    }

    fn arena_bytes(&self) -> u64 {
        self.arenas.values().map(|arena| arena.bytes).sum()
    }

    /// The largest arena that several results share.
    fn arena_bytes_max(&self) -> u64 {
        ARENA_BYTES_MAX.min(self.quota_bytes / 4).max(SLOT_ALIGNMENT) & !(SLOT_ALIGNMENT - 1)
    }

    fn idle(&self) -> impl Iterator<Item = ArenaId> {
        self.arenas
            .iter()
            .filter(|(_, record)| record.slot_count == record.spoiled_count)
            .map(|(&arena, _)| arena)
    }

    /// First fit, in the arena that is named first: the earlier arenas stay warm and the later become idle.
    fn place(&mut self, lease: LeaseId, bytes: u64, is_dedicated: bool) -> Option<Slot> {
        let fits = |record: &ArenaRecord| {
            let mut stretches = record.free.iter();
            stretches.find(|&(_, &length)| length >= bytes).map(|(&offset, _)| offset)
        };
        let candidates = self.arenas.iter_mut().filter(|(_, record)| record.is_dedicated == is_dedicated);
        let (arena, record, offset) = candidates
            .filter_map(|(&arena, record)| fits(record).map(|offset| (arena, record, offset)))
            .next()?;
        let length = record.free.remove(&offset).unwrap_or(bytes);
        if length > bytes {
            record.free.insert(offset + bytes, length - bytes);
        }
        record.slot_count += 1;
        let slot = Slot { lease, arena, offset, bytes };
        let state = State::Filling;
        let holding = Holding { slot, state, writing_count: 0, claim_count: 0, is_spoiled: false };
        self.holdings.insert(lease, holding);
        self.moving_count += 1;
        Some(slot)
    }

    /// An arena that would hold the slot, if the quota has room for one, with empty arenas given up for it.
    fn grow(&mut self, bytes: u64, is_dedicated: bool) -> Option<Reservation> {
        if self.arenas.len() >= ARENAS_MAX {
            return None;
        }
        let used = self.arena_bytes();
        let idle: Vec<(ArenaId, u64)> = self.idle().map(|arena| (arena, self.arenas[&arena].bytes)).collect();
        let preferred = if is_dedicated { bytes } else { self.next_arena_bytes(bytes) };
        let room = self.quota_bytes.saturating_sub(used);
        if preferred <= room {
            let revoked = Vec::new();
            return Some(Reservation::NeedsArena {
                bytes: preferred,
                bytes_min: bytes,
                is_dedicated,
                revoked,
            });
        }
        let idle_bytes: u64 = idle.iter().map(|(_, bytes)| bytes).sum();
        // After a change of the quota, what is kept may be more than it.
        let room = self.quota_bytes.saturating_sub(used - idle_bytes);
        if bytes > room {
            return None;
        }
        let revoked: Vec<ArenaId> = idle.into_iter().map(|(arena, _)| arena).collect();
        self.forget_arenas(&revoked);
        let granted = preferred.min(room) & !(SLOT_ALIGNMENT - 1);
        Some(Reservation::NeedsArena { bytes: granted, bytes_min: bytes, is_dedicated, revoked })
    }

    fn next_arena_bytes(&self, bytes: u64) -> u64 {
        let largest = self.arenas.values().filter(|arena| !arena.is_dedicated).map(|arena| arena.bytes).max();
        let doubled = largest.map_or(ARENA_BYTES_MIN, |largest| largest.saturating_mul(2));
        doubled.max(bytes.saturating_mul(2).next_power_of_two()).min(self.arena_bytes_max()).max(bytes)
    }

    /// Ends a slot that its owner has given back and nobody else has a claim on.
    fn settle(&mut self, lease: LeaseId) {
        let Some(holding) = self.holdings.get_mut(&lease) else { return };
        if holding.state != State::Lent || holding.claim_count > 0 {
            return;
        }
        if !holding.is_spoiled {
            return self.free(lease);
        }
        holding.state = State::Spoiled;
        if let Some(record) = self.arenas.get_mut(&holding.slot.arena) {
            record.spoiled_count += 1;
        }
    }

    fn free(&mut self, lease: LeaseId) {
        let Some(Holding { slot, state, .. }) = self.holdings.remove(&lease) else { return };
        if matches!(state, State::Filling | State::Quarantined) {
            self.moving_count -= 1;
        }
        let Some(record) = self.arenas.get_mut(&slot.arena) else { return };
        record.slot_count -= 1;
        let (mut offset, mut length) = (slot.offset, slot.bytes);
        if let Some((&before, &before_length)) = record.free.range(..offset).next_back()
            && before + before_length == offset
        {
            record.free.remove(&before);
            offset = before;
            length += before_length;
        }
        if let Some(after_length) = record.free.remove(&(slot.offset + slot.bytes)) {
            length += after_length;
        }
        record.free.insert(offset, length);
    }
}

fn round_up(bytes: u64) -> u64 {
    bytes.div_ceil(SLOT_ALIGNMENT).saturating_mul(SLOT_ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Plays the caller's part: makes arenas as they are needed.
    struct Harness {
        memory: ClientMemory,
        next_lease: u64,
        next_arena: u32,
        revoked: Vec<ArenaId>,
    }

    impl Harness {
        fn new(quota_bytes: u64) -> Harness {
            Harness { memory: ClientMemory::new(quota_bytes), next_lease: 0, next_arena: 0, revoked: vec![] }
        }

        fn reserve(&mut self, bytes: u64) -> Reservation {
            self.next_lease += 1;
            loop {
                match self.memory.reserve(LeaseId(self.next_lease), bytes) {
                    Reservation::NeedsArena { bytes, is_dedicated, revoked, .. } => {
                        self.revoked.extend(revoked);
                        self.memory.add_arena(ArenaId(self.next_arena), bytes, is_dedicated);
                        self.next_arena += 1;
                    }
                    other => return other,
                }
            }
        }

        fn slot(&mut self, bytes: u64) -> Slot {
            match self.reserve(bytes) {
                Reservation::Slot(slot) => slot,
                other => panic!("{other:?}"),
            }
        }

        fn leased(&mut self, bytes: u64) -> Slot {
            let slot = self.slot(bytes);
            self.memory.fulfil(slot.lease);
            slot
        }
    }

    #[test]
    fn slot_is_reused_after_its_lease_came_back() {
        let mut harness = Harness::new(64 * MIB);
        let first = harness.leased(1000);
        assert_eq!(harness.memory.release(first.lease), Release::Freed);
        let second = harness.leased(1000);
        assert_eq!((first.arena, first.offset), (second.arena, second.offset));
        assert_ne!(first.lease, second.lease);
    }

    #[test]
    fn lease_given_back_twice_is_stray() {
        let mut harness = Harness::new(64 * MIB);
        let slot = harness.leased(1000);
        harness.memory.release(slot.lease);
        assert_eq!(harness.memory.release(slot.lease), Release::Stray);
        assert_eq!(harness.memory.release(LeaseId(999)), Release::Stray);
    }

    #[test]
    fn slot_being_filled_cannot_be_given_back() {
        let mut harness = Harness::new(64 * MIB);
        let slot = harness.slot(1000);
        assert_eq!(harness.memory.release(slot.lease), Release::Stray);
        assert_eq!(harness.memory.usage().filling_count, 1);
    }

    #[test]
    fn quarantined_slot_is_not_reused_until_its_engine_has_answered() {
        let mut harness = Harness::new(64 * MIB);
        let slot = harness.slot(1000);
        harness.memory.begin_writing(slot.lease);
        harness.memory.abandon(slot.lease);
        assert_eq!(harness.memory.usage().quarantined_count, 1);
        assert_ne!(harness.slot(1000).offset, slot.offset);
        harness.memory.end_writing(slot.lease);
        assert_eq!(harness.slot(1000).offset, slot.offset);
    }

    #[test]
    fn result_above_the_quota_is_too_large() {
        let mut harness = Harness::new(8 * MIB);
        assert_eq!(harness.reserve(8 * MIB + 1), Reservation::TooLarge);
        assert!(matches!(harness.reserve(8 * MIB), Reservation::Slot(_)));
    }

    #[test]
    fn own_leases_in_the_way_fail_at_once_and_requests_in_flight_wait() {
        let mut harness = Harness::new(8 * MIB);
        let filling = harness.slot(6 * MIB);
        assert_eq!(harness.reserve(4 * MIB), Reservation::Wait);
        harness.memory.fulfil(filling.lease);
        assert_eq!(harness.reserve(4 * MIB), Reservation::NoSlots { leased_bytes: 6 * MIB });
        harness.memory.release(filling.lease);
        assert!(matches!(harness.reserve(4 * MIB), Reservation::Slot(_)));
    }

    #[test]
    fn empty_arenas_make_room_for_a_large_result() {
        let mut harness = Harness::new(32 * MIB);
        let small = harness.leased(MIB);
        harness.memory.release(small.lease);
        assert!(matches!(harness.reserve(30 * MIB), Reservation::Slot(_)));
        assert_eq!(harness.revoked, [small.arena]);
    }

    #[test]
    fn lowered_quota_grants_nothing_more_and_takes_nothing_away() {
        let mut harness = Harness::new(32 * MIB);
        let slots = [harness.leased(3 * MIB), harness.leased(3 * MIB)];
        harness.memory.change_quota(4 * MIB);
        assert_eq!(harness.reserve(3 * MIB), Reservation::NoSlots { leased_bytes: 6 * MIB });
        harness.memory.release(slots[0].lease);
        assert_eq!(harness.reserve(3 * MIB), Reservation::NoSlots { leased_bytes: 3 * MIB });
        harness.memory.release(slots[1].lease);
        assert!(matches!(harness.reserve(3 * MIB), Reservation::Slot(_)));
        assert!(harness.memory.usage().arena_bytes <= 4 * MIB);
    }

    #[test]
    fn large_result_has_an_arena_of_its_own_that_waits_for_the_next_one() {
        let mut harness = Harness::new(1024 * MIB);
        let small = harness.leased(MIB);
        let large = [harness.leased(300 * MIB), harness.leased(310 * MIB)];
        assert!(large.iter().all(|slot| slot.arena != small.arena));
        for slot in large {
            harness.memory.release(slot.lease);
        }
        assert_eq!(harness.memory.revoke_spent(), [large[0].arena]);
        assert_eq!(harness.leased(305 * MIB).arena, large[1].arena);
        assert_eq!(harness.memory.usage().arena_bytes, 314 * MIB);
    }

    #[test]
    fn arenas_double_as_they_fill() {
        let mut harness = Harness::new(1024 * MIB);
        let arenas: Vec<ArenaId> = (0..12).map(|_| harness.leased(MIB).arena).collect();
        assert_eq!(
            arenas.iter().map(|arena| arena.0).collect::<Vec<_>>(),
            [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
        );
        assert_eq!(harness.memory.usage().arena_bytes, 12 * MIB);
    }

    #[test]
    fn idle_arenas_are_revoked_and_busy_ones_stay() {
        let mut harness = Harness::new(1024 * MIB);
        let slots: Vec<Slot> = (0..6).map(|_| harness.leased(MIB)).collect();
        for slot in &slots[..4] {
            harness.memory.release(slot.lease);
        }
        assert_eq!(harness.memory.revoke_idle(), [slots[0].arena]);
    }

    #[test]
    fn lent_slot_is_free_when_owner_and_all_claims_have_ended_in_any_order() {
        for owner_first in [true, false] {
            let mut harness = Harness::new(64 * MIB);
            let slot = harness.leased(1000);
            assert!(harness.memory.claim(slot.lease) && harness.memory.claim(slot.lease));
            harness.memory.end_claim(slot.lease, false);
            if owner_first {
                assert_eq!(harness.memory.release(slot.lease), Release::Freed);
                assert_eq!(harness.memory.release(slot.lease), Release::Stray);
                assert_eq!((harness.memory.usage().lent_count, harness.memory.leased(slot.lease)), (1, None));
                assert_ne!(harness.slot(1000).offset, slot.offset);
                harness.memory.end_claim(slot.lease, false);
            } else {
                harness.memory.end_claim(slot.lease, false);
                assert_eq!(harness.memory.leased(slot.lease), Some(slot));
                harness.memory.release(slot.lease);
            }
            assert_eq!(harness.slot(1000).offset, slot.offset);
        }
    }

    #[test]
    fn spoiled_slot_is_never_reused_and_goes_with_its_arena() {
        let mut harness = Harness::new(64 * MIB);
        let (spoiled, other) = (harness.leased(1000), harness.leased(1000));
        assert!(harness.memory.claim(spoiled.lease));
        harness.memory.end_claim(spoiled.lease, true);
        harness.memory.release(spoiled.lease);
        assert_eq!((harness.memory.usage().lent_count, harness.memory.claim(spoiled.lease)), (0, false));
        assert_ne!(harness.slot(1000).offset, spoiled.offset);
        let third = harness.next_lease;
        harness.memory.abandon(LeaseId(third));
        assert!(harness.memory.revoke_spent().is_empty());
        harness.memory.release(other.lease);
        assert_eq!(harness.memory.revoke_spent(), [spoiled.arena]);
        assert_eq!(harness.memory.usage(), Usage::default());
    }

    #[test]
    fn slot_that_is_not_leased_cannot_be_claimed() {
        let mut harness = Harness::new(64 * MIB);
        let slot = harness.slot(1000);
        assert!(!harness.memory.claim(slot.lease) && !harness.memory.claim(LeaseId(99)));
        harness.memory.fulfil(slot.lease);
        harness.memory.release(slot.lease);
        assert!(!harness.memory.claim(slot.lease));
    }

    #[test]
    fn half_of_the_quota_may_be_lent_and_what_is_lent_may_be_lent_again() {
        let mut harness = Harness::new(8 * MIB);
        let slots = [harness.leased(MIB), harness.leased(3 * MIB), harness.leased(MIB)];
        for slot in &slots[..2] {
            assert!(harness.memory.may_lend(slot.lease) && harness.memory.claim(slot.lease));
        }
        assert!(harness.memory.may_lend(slots[0].lease) && !harness.memory.may_lend(slots[2].lease));
        harness.memory.end_claim(slots[0].lease, false);
        assert!(harness.memory.may_lend(slots[2].lease));
    }

    #[test]
    fn what_others_hold_is_told_from_what_the_client_holds_itself() {
        let mut harness = Harness::new(8 * MIB);
        let slots = [harness.leased(3 * MIB), harness.leased(3 * MIB)];
        harness.memory.claim(slots[0].lease);
        harness.memory.release(slots[0].lease);
        let lent = Reservation::Lent { lent_bytes: 3 * MIB, leased_bytes: 3 * MIB };
        assert_eq!(harness.reserve(4 * MIB), lent);
        harness.memory.end_claim(slots[0].lease, false);
        assert!(matches!(harness.reserve(4 * MIB), Reservation::Slot(_)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve(u64),
        Write(usize),
        EndWrite(usize),
        Fulfil(usize),
        Abandon(usize),
        Release(usize),
        Claim(usize),
        EndClaim(usize, bool),
        RevokeIdle,
        RevokeSpent,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let any = 0..8usize;
        let step = prop_oneof![
            4 => (1..6 * MIB).prop_map(Step::Reserve),
            2 => any.clone().prop_map(Step::Write),
            2 => any.clone().prop_map(Step::EndWrite),
            3 => any.clone().prop_map(Step::Fulfil),
            1 => any.clone().prop_map(Step::Abandon),
            3 => any.clone().prop_map(Step::Release),
            2 => any.clone().prop_map(Step::Claim),
            2 => (any, prop::bool::weighted(0.2)).prop_map(|(i, is_dead)| Step::EndClaim(i, is_dead)),
            1 => Just(Step::RevokeIdle),
            1 => Just(Step::RevokeSpent),
        ];
        prop::collection::vec(step, 1..80)
    }

    /// The slow model: every slot that is not free, with the engines that may write into it.
    #[derive(Clone, Copy)]
    struct Live {
        slot: Slot,
        is_leased: bool,
        is_abandoned: bool,
        writing: u64,
        /// Its owner has given it back.
        is_released: bool,
        claims: u64,
        /// Nobody may have it any more, as long as its arena exists.
        is_spoiled: bool,
    }

    impl Live {
        fn is_over(&self) -> bool {
            let is_given_back = self.is_released && self.claims == 0;
            (self.is_abandoned && self.writing == 0) || is_given_back
        }

        /// Nobody's, and no harm is done when its arena goes.
        fn is_waste(&self) -> bool {
            self.is_over() && self.is_spoiled
        }
    }

    fn apply(harness: &mut Harness, live: &mut Vec<Live>, step: &Step) {
        let pick = |pick: usize, live: &[Live], ok: &dyn Fn(&Live) -> bool| {
            let fitting: Vec<usize> = (0..live.len()).filter(|&i| ok(&live[i])).collect();
            fitting.get(pick % fitting.len().max(1)).copied()
        };
        let filling = |slot: &Live| !slot.is_leased && !slot.is_abandoned;
        match *step {
            Step::Reserve(bytes) => match harness.reserve(bytes) {
                Reservation::Slot(slot) => {
                    live.push(Live {
                        slot,
                        is_leased: false,
                        is_abandoned: false,
                        writing: 0,
                        is_released: false,
                        claims: 0,
                        is_spoiled: false,
                    });
                }
                Reservation::Wait => assert!(live.iter().any(|slot| !slot.is_leased)),
                Reservation::NoSlots { .. } => {
                    assert!(live.iter().all(|slot| slot.is_leased && slot.claims == 0));
                }
                Reservation::Lent { leased_bytes, lent_bytes } => {
                    assert!(live.iter().all(|slot| slot.is_leased));
                    assert!(live.iter().any(|slot| slot.claims > 0));
                    let sum = |wanted: &dyn Fn(&&Live) -> bool| -> u64 {
                        live.iter().filter(wanted).map(|slot| slot.slot.bytes).sum()
                    };
                    assert_eq!(leased_bytes, sum(&|slot| !slot.is_released));
                    assert_eq!(lent_bytes, sum(&|slot| slot.is_released && slot.claims > 0));
                }
                Reservation::TooLarge => assert!(bytes > harness.memory.quota_bytes()),
                Reservation::NeedsArena { .. } => unreachable!("the harness makes arenas"),
            },
            Step::Write(i) => {
                if let Some(i) = pick(i, live, &filling) {
                    live[i].writing += 1;
                    harness.memory.begin_writing(live[i].slot.lease);
                }
            }
            Step::EndWrite(i) => {
                if let Some(i) = pick(i, live, &|slot| slot.writing > 0) {
                    live[i].writing -= 1;
                    harness.memory.end_writing(live[i].slot.lease);
                }
            }
            Step::Fulfil(i) => {
                if let Some(i) = pick(i, live, &|slot| filling(slot) && slot.writing == 0) {
                    live[i].is_leased = true;
                    harness.memory.fulfil(live[i].slot.lease);
                }
            }
            Step::Abandon(i) => {
                if let Some(i) = pick(i, live, &filling) {
                    live[i].is_abandoned = true;
                    harness.memory.abandon(live[i].slot.lease);
                }
            }
            Step::Release(i) => {
                if let Some(i) = pick(i, live, &|slot| slot.is_leased && !slot.is_released) {
                    live[i].is_released = true;
                    assert_eq!(harness.memory.release(live[i].slot.lease), Release::Freed);
                }
            }
            Step::Claim(i) => {
                if let Some(i) = pick(i, live, &|_| true) {
                    let is_there = live[i].is_leased && !live[i].is_over();
                    assert_eq!(harness.memory.claim(live[i].slot.lease), is_there);
                    live[i].claims += u64::from(is_there);
                }
            }
            Step::EndClaim(i, is_dead) => {
                if let Some(i) = pick(i, live, &|slot| slot.claims > 0) {
                    live[i].claims -= 1;
                    live[i].is_spoiled |= is_dead;
                    harness.memory.end_claim(live[i].slot.lease, is_dead);
                }
            }
            Step::RevokeSpent => {
                let revoked = harness.memory.revoke_spent();
                harness.revoked.extend(revoked);
            }
            Step::RevokeIdle => {
                let revoked = harness.memory.revoke_idle();
                harness.revoked.extend(revoked);
            }
        }
        let revoked = &harness.revoked;
        live.retain(|slot| !slot.is_over() || (slot.is_waste() && !revoked.contains(&slot.slot.arena)));
    }

    proptest! {
        #[test]
        fn slots_never_overlap_and_everything_comes_back(steps in steps()) {
            let mut harness = Harness::new(16 * MIB);
            let mut live = Vec::new();
            for step in &steps {
                apply(&mut harness, &mut live, step);
                for (i, one) in live.iter().enumerate() {
                    prop_assert!(!harness.revoked.contains(&one.slot.arena), "a slot in a revoked arena");
                    for other in &live[i + 1..] {
                        let apart = one.slot.arena != other.slot.arena
                            || one.slot.offset + one.slot.bytes <= other.slot.offset
                            || other.slot.offset + other.slot.bytes <= one.slot.offset;
                        prop_assert!(apart, "{:?} overlaps {:?}", one.slot, other.slot);
                    }
                }
                let usage = harness.memory.usage();
                prop_assert!(usage.arena_bytes <= harness.memory.quota_bytes());
                let slots =
                    usage.lease_count + usage.filling_count + usage.quarantined_count + usage.lent_count;
                prop_assert_eq!(slots, live.iter().filter(|slot| !slot.is_waste()).count() as u64);
                let claims: u64 = harness.memory.claims().values().sum();
                prop_assert_eq!(claims, live.iter().map(|slot| slot.claims).sum::<u64>());
                prop_assert_eq!(harness.memory.is_moving(), live.iter().any(|slot| !slot.is_leased));
            }
            for slot in live {
                (0..slot.writing).for_each(|_| {
                    harness.memory.end_writing(slot.slot.lease);
                });
                (0..slot.claims).for_each(|_| harness.memory.end_claim(slot.slot.lease, false));
                if slot.is_leased {
                    harness.memory.release(slot.slot.lease);
                } else if !slot.is_abandoned {
                    harness.memory.abandon(slot.slot.lease);
                }
            }
            harness.memory.revoke_idle();
            prop_assert_eq!(harness.memory.usage(), Usage::default());
        }
    }
}
