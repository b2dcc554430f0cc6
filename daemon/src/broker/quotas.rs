//! Who has how much of what all share: connections, sources and bytes of arenas, by user and altogether. Pure:
//! nothing is granted or taken back here, only counted and judged.
//!
//! What one client has is known to `client` and `leases`; requests in flight are counted by `gates`.

use std::collections::BTreeMap;

use super::job::User;

/// Arenas are cut to whole pages.
const PAGE_BYTES: u64 = 4096;

/// A user may have this many times what is left for others. With 3, one user alone can fill three quarters of
/// the memory, and whoever comes next finds three quarters of the rest; `docs/decisions` says what lost.
const SHARE_OF_FREE: u64 = 3;

/// Frames of mappings that one user's clients may have together: each costs us 32 bytes, so this is half a GiB. It
/// is no setting, since nobody is known who needs more: sixteen workers with a day of video at 10 per second each.
const USER_MAPPED_FRAMES_MAX: u64 = 1 << 24;

/// What may be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaLimits {
    /// Bytes of all arenas.
    pub memory_bytes: u64,
    /// Bytes of one user's arenas.
    pub user_memory_bytes: u64,
    /// Sources of one user.
    pub user_sources_max: usize,
    /// Connections.
    pub client_count_max: usize,
    /// Connections of one user.
    pub user_client_count_max: usize,
    /// True where only one user can connect: then nothing is kept free for others.
    pub is_single_user: bool,
}

/// What one user has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Connections.
    pub client_count: usize,
    /// Sources that are open or being opened.
    pub source_count: usize,
    /// Frames of mappings, whose sources are open or being opened.
    pub mapped_frame_count: u64,
    /// Bytes of arenas that clients have.
    pub arena_bytes: u64,
    /// Bytes of arenas whose client has given them up, but an engine may still write to, or others have claims on.
    pub detached_bytes: u64,
}

impl Account {
    fn bytes(&self) -> u64 {
        self.arena_bytes + self.detached_bytes
    }
}

/// The limit that stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// `user_client_count_max`.
    UserClients,
    /// `client_count_max`.
    Clients,
    /// `user_sources_max`.
    UserSources,
    /// Frames of mappings; not a setting.
    UserMappedFrames,
    /// `user_memory_mib`.
    UserMemory,
    /// The client's own quota, of which others have a part by tickets.
    Lent,
    /// `memory_mib`, or the part of it that is kept free for other users.
    Memory,
}

/// All accounts.
#[derive(Debug)]
pub struct Quotas {
    limits: QuotaLimits,
    accounts: BTreeMap<User, Account>,
    total: Account,
}

impl Quotas {
    /// Nobody has anything yet.
    pub fn new(limits: QuotaLimits) -> Quotas {
        Quotas { limits, accounts: BTreeMap::new(), total: Account::default() }
    }

    /// The limits.
    pub fn limits(&self) -> QuotaLimits {
        self.limits
    }

    /// What is granted from now on is judged by these. What was granted stays granted.
    pub fn change_limits(&mut self, limits: QuotaLimits) {
        self.limits = limits;
    }

    /// What a user has.
    pub fn account(&self, user: User) -> Account {
        self.accounts.get(&user).copied().unwrap_or_default()
    }

    /// What all users have.
    pub fn total(&self) -> Account {
        self.total
    }

    /// All users who have something.
    pub fn iter(&self) -> impl Iterator<Item = (User, Account)> {
        self.accounts.iter().map(|(&user, &account)| (user, account))
    }

    /// One more connection.
    pub fn connect(&mut self, user: User) -> Result<(), Barrier> {
        if self.total.client_count >= self.limits.client_count_max {
            return Err(Barrier::Clients);
        }
        if self.account(user).client_count >= self.limits.user_client_count_max {
            return Err(Barrier::UserClients);
        }
        self.change(user, |account| account.client_count += 1);
        Ok(())
    }

    /// One connection less.
    pub fn disconnect(&mut self, user: User) {
        self.change(user, |account| account.client_count = account.client_count.saturating_sub(1));
    }

    /// One more source.
    pub fn open_source(&mut self, user: User) -> Result<(), Barrier> {
        if self.account(user).source_count >= self.limits.user_sources_max {
            return Err(Barrier::UserSources);
        }
        self.change(user, |account| account.source_count += 1);
        Ok(())
    }

    /// Some sources less.
    pub fn close_sources(&mut self, user: User, count: usize) {
        self.change(user, |account| account.source_count = account.source_count.saturating_sub(count));
    }

    /// A mapping of so many frames more.
    pub fn map_frames(&mut self, user: User, count: u64) -> Result<(), Barrier> {
        if self.account(user).mapped_frame_count.saturating_add(count) > USER_MAPPED_FRAMES_MAX {
            return Err(Barrier::UserMappedFrames);
        }
        self.change(user, |account| account.mapped_frame_count += count);
        Ok(())
    }

    /// Mappings of so many frames less.
    pub fn unmap_frames(&mut self, user: User, count: u64) {
        self.change(user, |account| {
            account.mapped_frame_count = account.mapped_frame_count.saturating_sub(count);
        });
    }

    /// How large an arena may be that the user is granted now: as large as preferred, or less where there is
    /// less, but not below `bytes_min`.
    pub fn grantable(&self, user: User, preferred_bytes: u64, bytes_min: u64) -> Result<u64, Barrier> {
        let bytes = self.account(user).bytes();
        let of_user = self.limits.user_memory_bytes.saturating_sub(bytes);
        if of_user < bytes_min && self.limits.user_memory_bytes < self.limits.memory_bytes {
            return Err(Barrier::UserMemory);
        }
        let of_all = self.free_for(bytes).min(of_user);
        if of_all < bytes_min {
            return Err(Barrier::Memory);
        }
        // Whole pages, unless that is less than what is needed.
        let granted = preferred_bytes.min(of_all);
        Ok((granted & !(PAGE_BYTES - 1)).max(bytes_min))
    }

    /// The largest arena that any state of the accounts would allow, and what stands in the way of a larger one.
    pub fn largest(&self) -> (u64, Barrier) {
        let of_all = share(self.limits.memory_bytes, 0, self.limits.is_single_user);
        if self.limits.user_memory_bytes < of_all {
            (self.limits.user_memory_bytes, Barrier::UserMemory)
        } else {
            (of_all, Barrier::Memory)
        }
    }

    /// An arena was granted.
    pub fn grant(&mut self, user: User, bytes: u64) {
        self.change(user, |account| account.arena_bytes += bytes);
    }

    /// A client gave an arena up, and nobody writes to it any more.
    pub fn free(&mut self, user: User, bytes: u64) {
        self.change(user, |account| account.arena_bytes = account.arena_bytes.saturating_sub(bytes));
    }

    /// A client gave an arena up, but an engine may still write to it.
    pub fn detach(&mut self, user: User, bytes: u64) {
        self.free(user, bytes);
        self.change(user, |account| account.detached_bytes += bytes);
    }

    /// No engine writes to a detached arena any more.
    pub fn free_detached(&mut self, user: User, bytes: u64) {
        self.change(user, |account| account.detached_bytes = account.detached_bytes.saturating_sub(bytes));
    }

    /// What a user who has that many bytes may still be granted out of the memory of all.
    fn free_for(&self, user_bytes: u64) -> u64 {
        let free = self.limits.memory_bytes.saturating_sub(self.total.bytes());
        share(free, user_bytes, self.limits.is_single_user)
    }

    fn change(&mut self, user: User, change: impl Fn(&mut Account)) {
        let account = self.accounts.entry(user).or_default();
        change(account);
        if *account == Account::default() {
            self.accounts.remove(&user);
        }
        change(&mut self.total);
    }
}

/// The most that can be added to `user_bytes` and taken from `free_bytes` so that the user still has at most
/// [`SHARE_OF_FREE`] times what is then free.
fn share(free_bytes: u64, user_bytes: u64, is_single_user: bool) -> u64 {
    if is_single_user {
        return free_bytes;
    }
    let room = free_bytes.saturating_mul(SHARE_OF_FREE).saturating_sub(user_bytes);
    (room / (SHARE_OF_FREE + 1)).min(free_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn user(uid: u32) -> User {
        User { uid, connection: None }
    }

    fn limits() -> QuotaLimits {
        QuotaLimits {
            memory_bytes: 64 * MIB,
            user_memory_bytes: 64 * MIB,
            user_sources_max: 3,
            client_count_max: 4,
            user_client_count_max: 2,
            is_single_user: false,
        }
    }

    #[test]
    fn connections_are_counted_by_user_and_altogether() {
        let mut quotas = Quotas::new(limits());
        assert_eq!((quotas.connect(user(1)), quotas.connect(user(1))), (Ok(()), Ok(())));
        assert_eq!(quotas.connect(user(1)), Err(Barrier::UserClients));
        assert_eq!((quotas.connect(user(2)), quotas.connect(user(3))), (Ok(()), Ok(())));
        assert_eq!(quotas.connect(user(4)), Err(Barrier::Clients));
        quotas.disconnect(user(1));
        assert_eq!(quotas.connect(user(4)), Ok(()));
    }

    #[test]
    fn sources_are_counted_by_user() {
        let mut quotas = Quotas::new(limits());
        (0..3).for_each(|_| quotas.open_source(user(1)).unwrap());
        assert_eq!(quotas.open_source(user(1)), Err(Barrier::UserSources));
        assert_eq!(quotas.open_source(user(2)), Ok(()));
        quotas.close_sources(user(1), 3);
        assert_eq!(quotas.open_source(user(1)), Ok(()));
    }

    #[test]
    fn mapped_frames_are_counted_by_user() {
        let mut quotas = Quotas::new(limits());
        assert_eq!(quotas.map_frames(user(1), USER_MAPPED_FRAMES_MAX), Ok(()));
        assert_eq!(quotas.map_frames(user(1), 1), Err(Barrier::UserMappedFrames));
        assert_eq!(quotas.map_frames(user(2), 1), Ok(()));
        quotas.unmap_frames(user(1), USER_MAPPED_FRAMES_MAX);
        assert_eq!(quotas.map_frames(user(1), 1), Ok(()));
    }

    #[test]
    fn one_user_alone_leaves_a_quarter_and_the_next_gets_three_quarters_of_it() {
        let mut quotas = Quotas::new(limits());
        assert_eq!(quotas.grantable(user(1), 64 * MIB, MIB), Ok(48 * MIB));
        quotas.grant(user(1), 48 * MIB);
        assert_eq!(quotas.grantable(user(1), MIB, MIB), Err(Barrier::Memory));
        assert_eq!(quotas.grantable(user(2), 64 * MIB, MIB), Ok(12 * MIB));
    }

    #[test]
    fn single_user_may_have_everything() {
        let mut quotas = Quotas::new(QuotaLimits { is_single_user: true, ..limits() });
        assert_eq!(quotas.grantable(user(1), 90 * MIB, MIB), Ok(64 * MIB));
        quotas.grant(user(1), 64 * MIB);
        assert_eq!(quotas.grantable(user(1), MIB, 1), Err(Barrier::Memory));
    }

    #[test]
    fn detached_memory_counts_until_it_is_free() {
        let mut quotas = Quotas::new(QuotaLimits { user_memory_bytes: 8 * MIB, ..limits() });
        quotas.grant(user(1), 8 * MIB);
        quotas.detach(user(1), 8 * MIB);
        assert_eq!(quotas.grantable(user(1), MIB, MIB), Err(Barrier::UserMemory));
        assert_eq!((quotas.total().arena_bytes, quotas.total().detached_bytes), (0, 8 * MIB));
        quotas.free_detached(user(1), 8 * MIB);
        assert_eq!(quotas.grantable(user(1), MIB, MIB), Ok(MIB));
        assert_eq!(quotas.iter().count(), 0);
    }

    #[test]
    fn lowered_limits_keep_what_was_granted_and_grant_nothing_more() {
        let mut quotas = Quotas::new(limits());
        quotas.grant(user(1), 30 * MIB);
        quotas.change_limits(QuotaLimits { memory_bytes: 16 * MIB, user_memory_bytes: MIB, ..limits() });
        assert_eq!(quotas.grantable(user(1), MIB, 1), Err(Barrier::UserMemory));
        assert_eq!(quotas.grantable(user(2), MIB, 1), Err(Barrier::Memory));
        assert_eq!(quotas.account(user(1)).arena_bytes, 30 * MIB);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Grant(u32, u64, u64),
        Free(usize),
        Detach(usize),
        Reap(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..4u32, 1..4000u64, 1..2000u64).prop_map(|(u, p, m)| Step::Grant(u, p * PAGE_BYTES, m * PAGE_BYTES)),
            2 => (0..16usize).prop_map(Step::Free),
            1 => (0..16usize).prop_map(Step::Detach),
            1 => (0..16usize).prop_map(Step::Reap),
        ];
        prop::collection::vec(step, 1..100)
    }

    /// The slow answer: tries all numbers of pages.
    fn slow_grantable(arenas: &[(u32, u64, bool)], uid: u32, limits: QuotaLimits, preferred: u64) -> u64 {
        let used: u64 = arenas.iter().map(|(_, bytes, _)| bytes).sum();
        let own: u64 = arenas.iter().filter(|(owner, ..)| *owner == uid).map(|(_, bytes, _)| bytes).sum();
        let fits = |bytes: u64| {
            own + bytes <= limits.user_memory_bytes
                && used + bytes <= limits.memory_bytes
                && own + bytes <= SHARE_OF_FREE * (limits.memory_bytes - used - bytes)
        };
        let pages = (1..=preferred / PAGE_BYTES).rev().map(|count| count * PAGE_BYTES);
        pages.into_iter().find(|bytes| fits(*bytes)).unwrap_or(0)
    }

    proptest! {
        #[test]
        fn accounts_are_those_of_brute_force(steps in steps()) {
            let limits = QuotaLimits { memory_bytes: 24 * MIB, user_memory_bytes: 14 * MIB, ..limits() };
            let mut quotas = Quotas::new(limits);
            // Owner, bytes, whether it is detached.
            let mut arenas: Vec<(u32, u64, bool)> = Vec::new();
            for step in steps {
                let pick = |pick: usize, is_detached: bool, arenas: &[(u32, u64, bool)]| {
                    let fitting: Vec<usize> =
                        (0..arenas.len()).filter(|&i| arenas[i].2 == is_detached).collect();
                    fitting.get(pick % fitting.len().max(1)).copied()
                };
                match step {
                    Step::Grant(uid, preferred, bytes_min) => {
                        let preferred = preferred.max(bytes_min);
                        let expected = slow_grantable(&arenas, uid, limits, preferred);
                        match quotas.grantable(user(uid), preferred, bytes_min) {
                            Ok(bytes) => {
                                prop_assert_eq!(bytes, expected);
                                quotas.grant(user(uid), bytes);
                                arenas.push((uid, bytes, false));
                            }
                            Err(_) => prop_assert!(expected < bytes_min),
                        }
                    }
                    Step::Free(i) => if let Some(i) = pick(i, false, &arenas) {
                        let (uid, bytes, _) = arenas.remove(i);
                        quotas.free(user(uid), bytes);
                    },
                    Step::Detach(i) => if let Some(i) = pick(i, false, &arenas) {
                        quotas.detach(user(arenas[i].0), arenas[i].1);
                        arenas[i].2 = true;
                    },
                    Step::Reap(i) => if let Some(i) = pick(i, true, &arenas) {
                        let (uid, bytes, _) = arenas.remove(i);
                        quotas.free_detached(user(uid), bytes);
                    },
                }
                let sum = |of: &dyn Fn(&(u32, u64, bool)) -> bool| -> u64 {
                    arenas.iter().filter(|arena| of(arena)).map(|(_, bytes, _)| bytes).sum()
                };
                prop_assert!(sum(&|_| true) < limits.memory_bytes, "nothing is left for others");
                prop_assert_eq!(quotas.total().arena_bytes, sum(&|arena| !arena.2));
                prop_assert_eq!(quotas.total().detached_bytes, sum(&|arena| arena.2));
                for uid in 0..4 {
                    let account = quotas.account(user(uid));
                    prop_assert!(account.bytes() <= limits.user_memory_bytes);
                    prop_assert_eq!(account.bytes(), sum(&|arena| arena.0 == uid));
                }
            }
        }
    }
}
