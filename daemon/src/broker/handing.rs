//! The way of a ticket: a client that has a lease asks for one, another client of the same user brings it and
//! has a lease on the same slot. What ends with whom is decided here, too.
//!
//! What is known of tickets lives in `tickets`; what a claim does to a slot, in `leases`.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use reeld_protocol::error::WireError;
use reeld_protocol::ids::LeaseId;
use reeld_protocol::message::{FramesReply, Reply, Ticket};

use super::death::{self, Watch};
use super::tickets::{Borrowed, Claim, TooMany};
use super::{Broker, clock, reply};
use crate::link::ArenaKey;

impl Broker {
    /// A client wants to hand a lease on.
    pub(super) fn issue_ticket(&mut self, key: u64, request_id: u64, lease: LeaseId) {
        match self.try_issue(key, lease) {
            Ok(ticket) => {
                self.totals.tickets_issued += 1;
                if let Some(client) = self.clients.get_mut(&key) {
                    client.tickets_issued += 1;
                    client.reply(request_id, &Reply::TicketIssued(ticket));
                }
            }
            Err(error) => self.fail(key, request_id, error),
        }
    }

    fn try_issue(&mut self, key: u64, lease: LeaseId) -> Result<Ticket, WireError> {
        let Some(client) = self.clients.get(&key) else {
            return Err(reply::internal("a request without its client"));
        };
        let user = client.user;
        let claim = client.claim_on(lease).ok_or_else(|| reply::invalid("no such lease is held"))?;
        self.tickets.check_room(key, user).map_err(|limit| reply::limit(too_many(limit)))?;
        let mut number = [0; 32];
        rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| reply::internal(format!("no random numbers: {error}")))?;
        if let Some(owner) = self.clients.get_mut(&claim.owner) {
            if !owner.memory.may_lend(claim.lease) {
                return Err(reply::limit(
                    "more than half of this client's quota of shared memory would be handed on; copy the frames, \
                     or raise client_memory_mib",
                ));
            }
            owner.memory.claim(claim.lease);
        } else if let Some(arena) = self.detached.get_mut(&claim.arena) {
            arena.claim_count += 1;
        }
        let ticket = Ticket(number);
        self.tickets.issue(ticket, key, user, claim);
        Ok(ticket)
    }

    /// A client brings a ticket. Why it is of no use is not told: nobody shall find out what others have.
    pub(super) fn redeem_ticket(&mut self, key: u64, request_id: u64, ticket: Ticket) {
        let Some(client) = self.clients.get(&key) else { return };
        let Some(claim) = self.tickets.find(ticket, client.user) else {
            return self.fail(key, request_id, reply::frames_lost());
        };
        if client.borrowed.is_full() {
            let message = "this client has too many leases on frames of others; drop or copy some";
            return self.fail(key, request_id, reply::limit(message));
        }
        let of_owner = self.arenas.get(&claim.arena).map(|arena| (Arc::clone(&arena.fd), arena.bytes));
        let of_nobody = self.detached.get(&claim.arena).map(|arena| (Arc::clone(&arena.fd), arena.bytes));
        let Some((fd, bytes)) = of_owner.or(of_nobody) else {
            return self.fail(key, request_id, reply::internal("a ticket for memory that is gone"));
        };
        self.tickets.take(ticket);
        self.totals.tickets_redeemed += 1;
        self.next_lease += 1;
        let lease = LeaseId(self.next_lease);
        let Some(client) = self.clients.get_mut(&key) else { return };
        client.tickets_redeemed += 1;
        let arena = client.borrow(lease, claim, fd, bytes);
        if client.borrowed.arena(claim.arena).is_some() {
            self.borrowers.entry(claim.arena).or_default().insert(key);
        }
        let frames = FramesReply {
            lease,
            arena,
            slot_offset: claim.offset,
            slot_bytes: claim.bytes,
            parts: Vec::new(),
        };
        client.reply(request_id, &Reply::Frames(frames));
    }

    /// A client gives back a lease that it has had for a ticket. False if it has none such.
    pub(super) fn release_borrowed(&mut self, key: u64, lease: LeaseId) -> bool {
        let claim = self.clients.get_mut(&key).and_then(|client| client.borrowed.release(lease));
        if let Some(claim) = claim {
            self.end_claim(claim, false);
            if !self.arenas.contains_key(&claim.arena) {
                self.withdraw(claim.arena);
            }
        }
        claim.is_some()
    }

    /// Somebody other than its owner has no right to a slot any more. `is_spoiled`: whoever had it is dead, and
    /// may have forked others who still have the memory mapped.
    fn end_claim(&mut self, claim: Claim, is_spoiled: bool) {
        self.has_memory_moved = true;
        if let Some(owner) = self.clients.get_mut(&claim.owner) {
            owner.memory.end_claim(claim.lease, is_spoiled);
            let spent = owner.memory.revoke_spent();
            let dropped = owner.revoke_arenas(&spent);
            self.relieved.insert(claim.owner);
            self.drop_arenas(&dropped);
        } else if let Some(arena) = self.detached.get_mut(&claim.arena) {
            arena.claim_count = arena.claim_count.saturating_sub(1);
            self.forget_detached(claim.arena);
        }
    }

    fn expire_tickets(&mut self, claims: Vec<Claim>) {
        self.totals.tickets_expired += claims.len() as u64;
        for claim in claims {
            self.end_claim(claim, false);
        }
    }

    /// Gives up a ticket whose issuer has been gone for long. False if there is none.
    pub(super) fn expire_orphan(&mut self, user: Option<super::job::User>) -> bool {
        let claim = self.tickets.take_orphan(user, clock::now());
        self.expire_tickets(claim.into_iter().collect());
        claim.is_some()
    }

    /// Takes back arenas that their owner has given up from those who have no lease in them.
    pub(super) fn withdraw(&mut self, arena: ArenaKey) {
        let Some(borrowers) = self.borrowers.get_mut(&arena) else { return };
        borrowers.retain(|borrower| {
            let Some(client) = self.clients.get_mut(borrower) else { return false };
            let Some(id) = client.borrowed.withdraw(arena) else { return true };
            client.tell_revoked(id);
            false
        });
        if borrowers.is_empty() {
            self.borrowers.remove(&arena);
        }
    }

    /// A client that is gone has no claims any more, and its tickets hold only as long as its session.
    pub(super) fn end_claims_of(&mut self, key: u64, borrowed: &Borrowed) {
        for (arena, _) in borrowed.arenas() {
            if let Some(borrowers) = self.borrowers.get_mut(&arena) {
                borrowers.remove(&key);
                if borrowers.is_empty() {
                    self.borrowers.remove(&arena);
                }
            }
        }
        for claim in borrowed.claims() {
            self.end_claim(claim, true);
        }
        let expired = self.tickets.issuer_gone(key, clock::now());
        self.expire_tickets(expired);
        self.forget_sessions();
    }

    /// A client says on whose behalf it issues tickets. Takes the descriptor out of `fds` if it is a process.
    pub(super) fn name_session(&mut self, key: u64, fds: &mut Vec<OwnedFd>) {
        if fds.len() != 1 || !death::is_process(&fds[0]) {
            return self.break_off(key, "a session that is no process");
        }
        if !self.tickets.name_session(key) {
            return self.break_off(key, "another session");
        }
        let watch = fds.pop().map(|pidfd| Watch::of_session(key, pidfd, self.events.clone()));
        match watch {
            Some(Ok(watch)) => {
                self.sessions.insert(key, watch);
            }
            Some(Err(error)) => {
                tracing::warn!(client = key, %error, "the session of its tickets cannot be watched");
                self.session_ended(key);
            }
            None => {}
        }
    }

    /// The process is gone on whose behalf a client issued tickets.
    pub(super) fn session_ended(&mut self, key: u64) {
        let expired = self.tickets.session_ended(key);
        self.expire_tickets(expired);
    }

    /// Watches no session any more of which no ticket is left.
    pub(super) fn forget_sessions(&mut self) {
        let (clients, tickets) = (&self.clients, &self.tickets);
        self.sessions.retain(|issuer, _| clients.contains_key(issuer) || tickets.needs_session(*issuer));
    }
}

fn too_many(limit: TooMany) -> String {
    match limit {
        TooMany::OfClient(count) => {
            format!("{count} tickets of this client wait to be redeemed; copy the frames")
        }
        TooMany::OfUser(count) => {
            format!("{count} tickets of all clients of this user wait to be redeemed; copy the frames")
        }
    }
}
