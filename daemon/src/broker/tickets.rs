//! Tickets: leases on their way from one process to another. Who issued them, on whose behalf, how long they
//! hold, and what those who redeemed them have. Pure: no slot is freed here and nobody is told anything.
//!
//! What a claim does to a slot is known to `leases`; the way of a ticket is in `handing`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use reeld_protocol::ids::{ArenaId, LeaseId};
use reeld_protocol::message::Ticket;

use super::job::User;
use crate::link::ArenaKey;

/// Tickets of one client that wait to be redeemed. A worker that prefetches has a few, one that hands frames over
/// one by one some thousand.
const OF_CLIENT_MAX: usize = 4096;

/// Tickets of all clients of one user, at some 250 bytes each.
const OF_USER_MAX: usize = 65_536;

/// Leases that one client may have had for tickets. Unlike its own they are not bounded by its quota.
const BORROWED_LEASES_MAX: usize = 16_384;

/// Arenas of others that one client may have at a time: clients map no more of them.
const BORROWED_ARENAS_MAX: usize = 4000;

/// A ticket whose issuer is gone is kept at least so long, even where its memory is wanted. Nobody may come
/// for it any more: a loader that is left in the middle of an epoch ends its workers and throws away what they
/// had handed over. A trainer that still wants it comes when its step is over.
const ORPHANED_MIN: Duration = Duration::from_secs(60);

/// A right to a slot that is not its owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The client in whose memory the slot lies.
    pub owner: u64,
    /// The owner's name for the slot.
    pub lease: LeaseId,
    /// Where it lies.
    pub arena: ArenaKey,
    /// Where it begins there.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

/// A ticket that was issued and not redeemed.
#[derive(Clone, Copy, Debug)]
pub struct Issued {
    /// What it stands for.
    pub claim: Claim,
    issuer: u64,
    user: User,
}

/// The process on whose behalf a client issues its tickets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Session {
    /// It was not named: then the client itself.
    None,
    Alive,
    Dead,
}

#[derive(Debug)]
struct Issuer {
    session: Session,
    /// None while it is connected.
    gone_at: Option<Instant>,
    tickets: BTreeSet<Ticket>,
}

/// Why there is no ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooMany {
    /// Of this client.
    OfClient(usize),
    /// Of all clients of its user.
    OfUser(usize),
}

/// All tickets that were issued and not redeemed.
#[derive(Debug, Default)]
pub struct Tickets {
    issued: HashMap<Ticket, Issued>,
    issuers: BTreeMap<u64, Issuer>,
    of_users: BTreeMap<User, usize>,
}

impl Tickets {
    /// How many wait to be redeemed.
    pub fn len(&self) -> usize {
        self.issued.len()
    }

    /// All of them, for the audit.
    pub fn iter(&self) -> impl Iterator<Item = &Issued> {
        self.issued.values()
    }

    /// Clients that have issued tickets or named a session, for the audit.
    pub fn issuers(&self) -> impl Iterator<Item = (u64, usize)> {
        self.issuers.iter().map(|(&issuer, record)| (issuer, record.tickets.len()))
    }

    /// Whether one more may be issued.
    pub fn check_room(&self, issuer: u64, user: User) -> Result<(), TooMany> {
        if self.issuers.get(&issuer).is_some_and(|issuer| issuer.tickets.len() >= OF_CLIENT_MAX) {
            return Err(TooMany::OfClient(OF_CLIENT_MAX));
        }
        if self.of_users.get(&user).is_some_and(|&count| count >= OF_USER_MAX) {
            return Err(TooMany::OfUser(OF_USER_MAX));
        }
        Ok(())
    }

    /// Takes note of a ticket with a number that was never used before.
    pub fn issue(&mut self, ticket: Ticket, issuer: u64, user: User, claim: Claim) {
        self.issued.insert(ticket, Issued { claim, issuer, user });
        self.issuer(issuer).tickets.insert(ticket);
        *self.of_users.entry(user).or_default() += 1;
    }

    /// Who asks has the same user as who issued it: otherwise there is no such ticket.
    pub fn find(&self, ticket: Ticket, user: User) -> Option<Claim> {
        self.issued.get(&ticket).filter(|issued| issued.user == user).map(|issued| issued.claim)
    }

    /// A ticket has ended: what it stood for is somebody else's matter now.
    pub fn take(&mut self, ticket: Ticket) -> Option<Claim> {
        let issued = self.issued.remove(&ticket)?;
        if let Some(issuer) = self.issuers.get_mut(&issued.issuer) {
            issuer.tickets.remove(&ticket);
            if issuer.gone_at.is_some() && issuer.tickets.is_empty() {
                self.issuers.remove(&issued.issuer);
            }
        }
        if let Some(count) = self.of_users.get_mut(&issued.user) {
            *count -= 1;
            if *count == 0 {
                self.of_users.remove(&issued.user);
            }
        }
        Some(issued.claim)
    }

    /// A client says on whose behalf it issues tickets, once. False if it has said so before.
    pub fn name_session(&mut self, issuer: u64) -> bool {
        let issuer = self.issuer(issuer);
        let is_first = issuer.session == Session::None;
        if is_first {
            issuer.session = Session::Alive;
        }
        is_first
    }

    /// The session of a client has ended. What expires is returned.
    pub fn session_ended(&mut self, issuer: u64) -> Vec<Claim> {
        let Some(record) = self.issuers.get_mut(&issuer) else { return Vec::new() };
        record.session = Session::Dead;
        self.expire(issuer)
    }

    /// A client is gone. What expires is returned.
    pub fn issuer_gone(&mut self, issuer: u64, now: Instant) -> Vec<Claim> {
        let Some(record) = self.issuers.get_mut(&issuer) else { return Vec::new() };
        record.gone_at = Some(now);
        self.expire(issuer)
    }

    /// True while tickets of an issuer wait: its session is watched as long.
    pub fn needs_session(&self, issuer: u64) -> bool {
        self.issuers.contains_key(&issuer)
    }

    /// Whose tickets wait to be redeemed.
    pub fn users(&self) -> impl Iterator<Item = User> {
        self.of_users.keys().copied()
    }

    /// The ticket of a user, or of anybody, whose issuer has been gone for longest, if that is long.
    pub fn take_orphan(&mut self, user: Option<User>, now: Instant) -> Option<Claim> {
        let is_old = |gone_at: Instant| now.duration_since(gone_at) >= ORPHANED_MIN;
        let orphans = self.issuers.values().filter_map(|issuer| {
            let ticket = *issuer.tickets.first()?;
            let is_concerned = user.is_none_or(|user| self.issued[&ticket].user == user);
            issuer.gone_at.filter(|&gone_at| is_concerned && is_old(gone_at)).map(|gone_at| (gone_at, ticket))
        });
        let (_, ticket) = orphans.min()?;
        self.take(ticket)
    }

    fn issuer(&mut self, issuer: u64) -> &mut Issuer {
        self.issuers.entry(issuer).or_insert_with(|| Issuer {
            session: Session::None,
            gone_at: None,
            tickets: BTreeSet::new(),
        })
    }

    /// Ends all tickets of an issuer if it is gone and its session too.
    fn expire(&mut self, issuer: u64) -> Vec<Claim> {
        let Some(record) = self.issuers.get(&issuer) else { return Vec::new() };
        if record.gone_at.is_none() || (record.session == Session::Alive && !record.tickets.is_empty()) {
            return Vec::new();
        }
        let tickets: Vec<Ticket> = record.tickets.iter().copied().collect();
        let claims = tickets.into_iter().filter_map(|ticket| self.take(ticket)).collect();
        self.issuers.remove(&issuer);
        claims
    }
}

/// An arena of another client, as one has it.
#[derive(Clone, Copy, Debug)]
struct BorrowedArena {
    id: ArenaId,
    lease_count: u64,
}

/// What one client has had for tickets.
#[derive(Debug, Default)]
pub struct Borrowed {
    leases: BTreeMap<LeaseId, Claim>,
    arenas: BTreeMap<ArenaKey, BorrowedArena>,
}

impl Borrowed {
    /// True if no more can be had.
    pub fn is_full(&self) -> bool {
        self.leases.len() >= BORROWED_LEASES_MAX || self.arenas.len() >= BORROWED_ARENAS_MAX
    }

    /// How many leases there are, and their bytes.
    pub fn usage(&self) -> (u64, u64) {
        (self.leases.len() as u64, self.leases.values().map(|claim| claim.bytes).sum())
    }

    /// All claims.
    pub fn claims(&self) -> impl Iterator<Item = Claim> {
        self.leases.values().copied()
    }

    /// What a lease stands for.
    pub fn claim(&self, lease: LeaseId) -> Option<Claim> {
        self.leases.get(&lease).copied()
    }

    /// What the client calls an arena.
    pub fn arena(&self, arena: ArenaKey) -> Option<ArenaId> {
        self.arenas.get(&arena).map(|borrowed| borrowed.id)
    }

    /// The arenas that the client has, for the audit.
    pub fn arenas(&self) -> impl Iterator<Item = (ArenaKey, u64)> {
        self.arenas.iter().map(|(&arena, borrowed)| (arena, borrowed.lease_count))
    }

    /// The client has one more arena.
    pub fn add_arena(&mut self, arena: ArenaKey, id: ArenaId) {
        self.arenas.insert(arena, BorrowedArena { id, lease_count: 0 });
    }

    /// The client has one more lease.
    pub fn take(&mut self, lease: LeaseId, claim: Claim) {
        self.leases.insert(lease, claim);
        if let Some(arena) = self.arenas.get_mut(&claim.arena) {
            arena.lease_count += 1;
        }
    }

    /// The client gives a lease back.
    pub fn release(&mut self, lease: LeaseId) -> Option<Claim> {
        let claim = self.leases.remove(&lease)?;
        if let Some(arena) = self.arenas.get_mut(&claim.arena) {
            arena.lease_count -= 1;
        }
        Some(claim)
    }

    /// Forgets an arena that its owner has given up, if no lease lies in it, and says what the client calls it.
    pub fn withdraw(&mut self, arena: ArenaKey) -> Option<ArenaId> {
        let borrowed = self.arenas.get(&arena).filter(|borrowed| borrowed.lease_count == 0)?;
        let id = borrowed.id;
        self.arenas.remove(&arena);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32) -> User {
        User { uid, connection: None }
    }

    fn ticket(number: u16) -> Ticket {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_le_bytes());
        Ticket(bytes)
    }

    fn claim(lease: u64) -> Claim {
        Claim { owner: 1, lease: LeaseId(lease), arena: ArenaKey(1), offset: 0, bytes: 4096 }
    }

    fn issued(issuer: u64, count: u16) -> Tickets {
        let mut tickets = Tickets::default();
        for number in 0..count {
            tickets.issue(ticket(number), issuer, user(7), claim(number.into()));
        }
        tickets
    }

    #[test]
    fn ticket_is_redeemed_once_and_by_its_user() {
        let mut tickets = issued(1, 1);
        assert_eq!(tickets.find(ticket(0), user(8)), None);
        assert_eq!(tickets.find(ticket(0), user(7)), Some(claim(0)));
        assert_eq!(tickets.take(ticket(0)), Some(claim(0)));
        assert_eq!((tickets.find(ticket(0), user(7)), tickets.take(ticket(0))), (None, None));
    }

    #[test]
    fn ticket_expires_when_issuer_and_session_are_both_gone_in_any_order() {
        let now = Instant::now();
        let mut tickets = issued(1, 2);
        tickets.name_session(1);
        assert!(tickets.issuer_gone(1, now).is_empty());
        assert_eq!(tickets.session_ended(1).len(), 2);
        assert_eq!((tickets.len(), tickets.issuers().count()), (0, 0));
        let mut tickets = issued(1, 2);
        tickets.name_session(1);
        assert!(tickets.session_ended(1).is_empty());
        assert_eq!(tickets.issuer_gone(1, now).len(), 2);
        assert_eq!((tickets.len(), tickets.issuers().count()), (0, 0));
    }

    #[test]
    fn ticket_without_a_session_goes_with_its_issuer() {
        let mut tickets = issued(1, 2);
        assert_eq!(tickets.issuer_gone(1, Instant::now()).len(), 2);
        assert_eq!((tickets.len(), tickets.issuers().count()), (0, 0));
    }

    #[test]
    fn issuer_is_forgotten_with_its_last_ticket() {
        let mut tickets = issued(1, 1);
        tickets.name_session(1);
        tickets.issuer_gone(1, Instant::now());
        assert!(tickets.needs_session(1));
        tickets.take(ticket(0));
        assert!(!tickets.needs_session(1));
    }

    #[test]
    fn session_is_named_once() {
        let mut tickets = Tickets::default();
        assert!(tickets.name_session(1));
        assert!(!tickets.name_session(1));
    }

    #[test]
    fn tickets_are_limited_by_client_and_by_user() {
        let tickets = issued(1, OF_CLIENT_MAX as u16);
        assert_eq!(tickets.check_room(1, user(7)), Err(TooMany::OfClient(OF_CLIENT_MAX)));
        assert_eq!(tickets.check_room(2, user(7)), Ok(()));
        let mut tickets = Tickets::default();
        for number in 0..OF_USER_MAX {
            tickets.issue(ticket(number as u16), number as u64, user(7), claim(1));
        }
        assert_eq!(tickets.check_room(9, user(7)), Err(TooMany::OfUser(OF_USER_MAX)));
        assert_eq!(tickets.check_room(9, user(8)), Ok(()));
    }

    #[test]
    fn orphan_is_given_up_only_after_a_while_and_the_oldest_first() {
        let start = Instant::now();
        let mut tickets = Tickets::default();
        for issuer in [1, 2] {
            tickets.name_session(issuer);
            tickets.issue(ticket(issuer as u16), issuer, user(7), claim(issuer));
        }
        tickets.issuer_gone(2, start);
        tickets.issuer_gone(1, start + Duration::from_secs(1));
        assert_eq!(tickets.take_orphan(None, start + ORPHANED_MIN - Duration::from_millis(1)), None);
        let late = start + 2 * ORPHANED_MIN;
        assert_eq!(tickets.take_orphan(Some(user(8)), late), None);
        assert_eq!(tickets.take_orphan(Some(user(7)), late), Some(claim(2)));
        assert_eq!(tickets.take_orphan(None, late), Some(claim(1)));
        assert_eq!(tickets.take_orphan(None, late), None);
    }

    #[test]
    fn borrowed_arena_is_withdrawn_when_no_lease_lies_in_it() {
        let mut borrowed = Borrowed::default();
        borrowed.add_arena(ArenaKey(1), ArenaId(5));
        borrowed.take(LeaseId(10), claim(3));
        assert_eq!(borrowed.withdraw(ArenaKey(1)), None);
        assert_eq!(borrowed.release(LeaseId(10)), Some(claim(3)));
        assert_eq!(borrowed.release(LeaseId(10)), None);
        assert_eq!(borrowed.withdraw(ArenaKey(1)), Some(ArenaId(5)));
        assert_eq!(borrowed.usage(), (0, 0));
    }
}
