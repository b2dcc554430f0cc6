//! One client's memory: which part of which arena is whose, and until when. Pure: the memfds themselves are
//! made by the caller, and nothing of this is written into shared memory.
//!
//! A slot's life: *filling* while engines write into it, *leased* once its request is answered, free after
//! the client gave it back. A request that ends early leaves its slot *quarantined* until the last engine
//! that may still write has answered or is known to be dead.

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
}

#[derive(Debug)]
struct Holding {
    slot: Slot,
    state: State,
    /// Pictures that engines were asked to write into it and have not answered for.
    writing_count: u64,
}

#[derive(Debug)]
struct ArenaRecord {
    bytes: u64,
    is_dedicated: bool,
    /// Offset and length of each free stretch; neighbours are joined.
    free: BTreeMap<u64, u64>,
    slot_count: u64,
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
    /// The slot is free.
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
    /// Bytes of all arenas.
    pub arena_bytes: u64,
}

/// One client's arenas and slots.
#[derive(Debug)]
pub struct ClientMemory {
    quota_bytes: u64,
    arenas: BTreeMap<ArenaId, ArenaRecord>,
    holdings: BTreeMap<LeaseId, Holding>,
    /// Holdings that are not leased.
    moving_count: u64,
}

impl ClientMemory {
    /// A client that has nothing yet.
    pub fn new(quota_bytes: u64) -> ClientMemory {
        ClientMemory { quota_bytes, arenas: BTreeMap::new(), holdings: BTreeMap::new(), moving_count: 0 }
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
            Reservation::Wait
        } else {
            Reservation::NoSlots { leased_bytes: self.usage().leased_bytes }
        }
    }

    /// Takes note of a new, empty arena.
    pub fn add_arena(&mut self, arena: ArenaId, bytes: u64, is_dedicated: bool) {
        let free = BTreeMap::from([(0, bytes)]);
        self.arenas.insert(arena, ArenaRecord { bytes, is_dedicated, free, slot_count: 0 });
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
                self.free(lease);
                Release::Freed
            }
            Some(State::Filling | State::Quarantined) | None => Release::Stray,
        }
    }

    /// Forgets arenas without slots and names them, so that the caller gives them back.
    pub fn revoke_idle(&mut self) -> Vec<ArenaId> {
        let idle: Vec<ArenaId> = self.idle().collect();
        for arena in &idle {
            self.arenas.remove(arena);
        }
        idle
    }

    /// Forgets dedicated arenas whose slot was given back, and names them.
    pub fn revoke_spent(&mut self) -> Vec<ArenaId> {
        let spent: Vec<ArenaId> = self.idle().filter(|arena| self.arenas[arena].is_dedicated).collect();
        for arena in &spent {
            self.arenas.remove(arena);
        }
        spent
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
        self.arenas.iter().filter(|(_, record)| record.slot_count == 0).map(|(&arena, _)| arena)
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
        self.holdings.insert(lease, Holding { slot, state: State::Filling, writing_count: 0 });
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
        for (arena, _) in &idle {
            self.arenas.remove(arena);
        }
        let granted = preferred.min(room) & !(SLOT_ALIGNMENT - 1);
        let revoked = idle.into_iter().map(|(arena, _)| arena).collect();
        Some(Reservation::NeedsArena { bytes: granted, bytes_min: bytes, is_dedicated, revoked })
    }

    fn next_arena_bytes(&self, bytes: u64) -> u64 {
        let largest = self.arenas.values().filter(|arena| !arena.is_dedicated).map(|arena| arena.bytes).max();
        let doubled = largest.map_or(ARENA_BYTES_MIN, |largest| largest.saturating_mul(2));
        doubled.max(bytes.saturating_mul(2).next_power_of_two()).min(self.arena_bytes_max()).max(bytes)
    }

    fn free(&mut self, lease: LeaseId) {
        let Some(Holding { slot, state, .. }) = self.holdings.remove(&lease) else { return };
        if state != State::Leased {
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
    fn large_result_has_an_arena_of_its_own_that_goes_with_it() {
        let mut harness = Harness::new(1024 * MIB);
        let small = harness.leased(MIB);
        let large = harness.leased(300 * MIB);
        assert_ne!(small.arena, large.arena);
        harness.memory.release(large.lease);
        assert_eq!(harness.memory.revoke_spent(), [large.arena]);
        assert_eq!(harness.memory.usage().arena_bytes, 4 * MIB);
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

    #[derive(Clone, Debug)]
    enum Step {
        Reserve(u64),
        Write(usize),
        EndWrite(usize),
        Fulfil(usize),
        Abandon(usize),
        Release(usize),
        RevokeIdle,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let any = 0..8usize;
        let step = prop_oneof![
            4 => (1..6 * MIB).prop_map(Step::Reserve),
            2 => any.clone().prop_map(Step::Write),
            2 => any.clone().prop_map(Step::EndWrite),
            3 => any.clone().prop_map(Step::Fulfil),
            1 => any.clone().prop_map(Step::Abandon),
            3 => any.prop_map(Step::Release),
            1 => Just(Step::RevokeIdle),
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
                    live.push(Live { slot, is_leased: false, is_abandoned: false, writing: 0 });
                }
                Reservation::Wait => assert!(live.iter().any(|slot| !slot.is_leased)),
                Reservation::NoSlots { .. } => assert!(live.iter().all(|slot| slot.is_leased)),
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
                if let Some(i) = pick(i, live, &|slot| slot.is_leased) {
                    assert_eq!(harness.memory.release(live.remove(i).slot.lease), Release::Freed);
                }
            }
            Step::RevokeIdle => {
                let revoked = harness.memory.revoke_idle();
                harness.revoked.extend(revoked);
            }
        }
        live.retain(|slot| !(slot.is_abandoned && slot.writing == 0));
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
                let slots = usage.lease_count + usage.filling_count + usage.quarantined_count;
                prop_assert_eq!(slots, live.len() as u64);
                prop_assert_eq!(harness.memory.is_moving(), live.iter().any(|slot| !slot.is_leased));
            }
            for slot in live {
                (0..slot.writing).for_each(|_| {
                    harness.memory.end_writing(slot.slot.lease);
                });
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
