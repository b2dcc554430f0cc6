//! [`Client`]: one connected process, with everything it holds. Dropping it gives all of it back but what
//! engines and the catalog know of: those are told by `Broker::forget_client`.

use std::cmp;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeld_protocol::arena::create_arena;
use reeld_protocol::error::WireError;
use reeld_protocol::handshake::{Hello, Refusal, RefusalCause, Welcome};
use reeld_protocol::ids::{ArenaId, LeaseId, SourceId, StreamIndex};
use reeld_protocol::message::{Notice, Reply, kind};
use reeld_protocol::socket::PeerIdentity;
use reeld_protocol::status::{ClientStatus, NAME_BYTES_MAX, shortened};
use reeld_protocol::{VERSION_MAJOR, VERSION_MINOR};

use super::clock;
use super::death::Watch;
use super::gates::{Gate, Gates, Turn};
use super::job::User;
use super::leases::ClientMemory;
use super::peer::Peer;
use super::plan::Timeline;
use super::tickets::{Borrowed, Claim};
use crate::link::{ArenaKey, CatalogId};

/// The uid that the kernel shows for users whom it cannot map into this namespace: it names nobody.
const OVERFLOW_UID: u32 = 65_534;

/// How many replies had each error code, by its name.
pub type ErrorCounts = BTreeMap<&'static str, u64>;

/// A source as its client opened it.
#[derive(Clone, Debug)]
pub struct OpenedSource {
    /// The file.
    pub catalog: CatalogId,
    /// The stream.
    pub stream: StreamIndex,
    /// Where its frames are.
    pub timeline: Timeline,
    /// Rows of a frame.
    pub height: u32,
    /// Columns of a frame.
    pub width: u32,
    /// Codec threads, a hint.
    pub thread_count: u16,
}

/// An arena's memfd and its names.
#[derive(Clone, Debug)]
pub struct GrantedArena {
    /// What engines call it.
    pub key: ArenaKey,
    /// The memory.
    pub fd: Arc<OwnedFd>,
    /// Its length.
    pub bytes: u64,
    /// Who pays for it.
    pub user: User,
}

/// One connected process.
#[derive(Debug)]
pub struct Client {
    /// Number of the connection, never reused.
    pub key: u64,
    /// Whose files and pictures it may share.
    pub user: User,
    /// Who connected.
    pub identity: PeerIdentity,
    /// None until its handshake came.
    pub name: Option<String>,
    /// When it connected.
    pub connected_at: Instant,
    /// When it last asked for frames.
    pub active_at: Instant,
    /// Its slots.
    pub memory: ClientMemory,
    /// Its arenas.
    pub arenas: BTreeMap<ArenaId, GrantedArena>,
    /// What it has of others, by tickets.
    pub borrowed: Borrowed,
    /// Tickets that it was issued.
    pub tickets_issued: u64,
    /// Tickets that it redeemed.
    pub tickets_redeemed: u64,
    /// Results that it says it has copied.
    pub results_copied_out: u64,
    /// Their bytes.
    pub bytes_copied_out: u64,
    /// Its sources.
    pub sources: HashMap<SourceId, OpenedSource>,
    /// Sources that are being opened.
    pub opening_count: usize,
    /// Requests that wait for memory, in order.
    pub waiting: VecDeque<u64>,
    /// Requests that are not answered yet.
    pub request_count: u64,
    /// Requests since it connected.
    pub requests_total: u64,
    /// Its error replies by the names of their codes.
    pub errors: ErrorCounts,
    /// Why its connection ends, once it does.
    pub end_reason: Option<String>,
    /// When each request that is not answered yet was read.
    read_at: HashMap<u64, Instant>,
    peer: Peer,
    /// Kept for its end.
    _watch: Watch,
    /// How many requests it may have in flight.
    pub gate: Gate,
    /// Of requests in flight: one each.
    turns: Vec<Turn>,
    next_arena: u32,
    next_source: u64,
    is_broken: bool,
}

impl Client {
    /// A client that has not said hello yet.
    pub fn new(
        key: u64,
        identity: PeerIdentity,
        quota_bytes: u64,
        gates: Gates,
        now: Instant,
        connect: impl FnOnce(Gates) -> (Peer, Watch),
    ) -> Client {
        let gate = gates.client.clone();
        let (peer, watch) = connect(gates);
        Client {
            key,
            user: Client::user(key, identity),
            identity,
            name: None,
            connected_at: now,
            active_at: now,
            memory: ClientMemory::new(quota_bytes),
            arenas: BTreeMap::new(),
            borrowed: Borrowed::default(),
            tickets_issued: 0,
            tickets_redeemed: 0,
            results_copied_out: 0,
            bytes_copied_out: 0,
            sources: HashMap::new(),
            waiting: VecDeque::new(),
            request_count: 0,
            requests_total: 0,
            errors: ErrorCounts::default(),
            end_reason: None,
            read_at: HashMap::new(),
            opening_count: 0,
            peer,
            _watch: watch,
            gate,
            turns: Vec::new(),
            next_arena: 0,
            next_source: 0,
            is_broken: false,
        }
    }

    /// Whose quota a connection uses. Users whom the kernel cannot name are nobody's like.
    pub fn user(key: u64, identity: PeerIdentity) -> User {
        let connection = (identity.uid == OVERFLOW_UID).then_some(key);
        User { uid: identity.uid, connection }
    }

    /// Answers the handshake. False: the client was refused and must be let go.
    pub fn greet(&mut self, hello: &Hello, instance: u128, daemon: &str, ffmpeg: &str) -> bool {
        if hello.major != VERSION_MAJOR || hello.minor_min > VERSION_MINOR {
            let reason = format!(
                "this daemon ({daemon}) speaks protocol {VERSION_MAJOR}.{VERSION_MINOR}, the client {}.{}; install \
                 the same version of reeld on both sides and restart the older one",
                hello.major, hello.minor_min
            );
            let (pid, uid) = (self.identity.pid, self.identity.uid);
            tracing::info!(client = self.key, pid, uid, major = hello.major, "refused: another version");
            let cause = RefusalCause::Version;
            let refusal = Refusal { major: VERSION_MAJOR, minor: VERSION_MINOR, reason, cause };
            let _ = self.peer.send_raw(kind::REFUSAL, 0, &refusal.to_bytes());
            return false;
        }
        let welcome = Welcome {
            major: VERSION_MAJOR,
            minor: cmp::min(hello.minor_max, VERSION_MINOR),
            features: 0,
            instance,
            quota_bytes: self.memory.quota_bytes(),
            requests_max: u32::try_from(self.gate.count_max()).unwrap_or(u32::MAX),
            daemon: daemon.to_owned(),
            ffmpeg: ffmpeg.to_owned(),
        };
        self.name = Some(cleaned(&hello.name));
        let sent = self.peer.send_raw(kind::WELCOME, 0, &welcome.to_bytes());
        self.note(sent);
        true
    }

    /// Takes note of a request that was read. It is answered by exactly one [`Client::reply`], which ends its turn.
    pub fn accept(&mut self, request_id: u64, kind: u16, turn: Option<Turn>, now: Instant) {
        tracing::debug!(client = self.key, request_id, kind, "request accepted");
        self.request_count += 1;
        self.requests_total += 1;
        self.turns.extend(turn);
        self.read_at.insert(request_id, now);
    }

    /// How long a request has been under way.
    pub fn request_age(&self, request_id: u64, now: Instant) -> Duration {
        self.read_at.get(&request_id).map_or(Duration::ZERO, |&read_at| now.duration_since(read_at))
    }

    /// Sends the one terminal reply of a request.
    pub fn reply(&mut self, request_id: u64, reply: &Reply) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            let micros = self.request_age(request_id, clock::now()).as_micros() as u64;
            match reply {
                Reply::Error(error) => {
                    let (code, reason) = (error.code.name(), error.message.as_str());
                    tracing::debug!(client = self.key, request_id, micros, code, reason, "request failed");
                }
                Reply::SourceOpened(_)
                | Reply::Frames(_)
                | Reply::Status(_)
                | Reply::KeyFrames(_)
                | Reply::TicketIssued(_) => {
                    tracing::debug!(client = self.key, request_id, micros, "request finished");
                }
            }
        }
        self.read_at.remove(&request_id);
        self.request_count = self.request_count.saturating_sub(1);
        self.turns.pop();
        let sent = self.peer.send(reply, request_id, Vec::new());
        self.note(sent);
    }

    /// Answers a request with an error.
    pub fn fail(&mut self, request_id: u64, error: WireError) {
        *self.errors.entry(error.code.name()).or_default() += 1;
        self.reply(request_id, &Reply::Error(error));
    }

    /// Makes an arena and hands it to the client, before any reply names it.
    pub fn grant_arena(&mut self, key: ArenaKey, bytes: u64, is_dedicated: bool) -> io::Result<GrantedArena> {
        let fd = Arc::new(create_arena(bytes)?);
        let arena = ArenaId(self.next_arena);
        self.next_arena += 1;
        let granted = GrantedArena { key, fd: Arc::clone(&fd), bytes, user: self.user };
        self.memory.add_arena(arena, bytes, is_dedicated);
        self.arenas.insert(arena, granted.clone());
        tracing::debug!(client = self.key, arena = arena.0, bytes, is_dedicated, "arena granted");
        let sent = self.peer.send(&Notice::ArenaGranted { arena, bytes }, 0, vec![fd]);
        self.note(sent);
        Ok(granted)
    }

    /// Takes arenas back in which nothing lies, and returns what engines call them.
    pub fn revoke_arenas(&mut self, arenas: &[ArenaId]) -> Vec<ArenaKey> {
        let mut keys = Vec::new();
        for &arena in arenas {
            keys.extend(self.arenas.remove(&arena).map(|granted| granted.key));
            self.tell_revoked(arena);
        }
        keys
    }

    /// Says that an arena is of no use any more.
    pub fn tell_revoked(&mut self, arena: ArenaId) {
        tracing::debug!(client = self.key, arena = arena.0, "arena revoked");
        let sent = self.peer.send(&Notice::ArenaRevoked(arena), 0, Vec::new());
        self.note(sent);
    }

    /// What a lease of this client's stands for, its own or one that it had for a ticket.
    pub fn claim_on(&self, lease: LeaseId) -> Option<Claim> {
        let own = || {
            let slot = self.memory.leased(lease)?;
            let arena = self.arenas.get(&slot.arena)?.key;
            Some(Claim { owner: self.key, lease, arena, offset: slot.offset, bytes: slot.bytes })
        };
        self.borrowed.claim(lease).or_else(own)
    }

    /// Gives it a lease on a slot of another client's, or of its own, after the arena if it does not have that.
    /// Returns what it calls the arena.
    pub fn borrow(&mut self, lease: LeaseId, claim: Claim, fd: Arc<OwnedFd>, bytes: u64) -> ArenaId {
        let own = self.arenas.iter().find(|(_, granted)| granted.key == claim.arena).map(|(&arena, _)| arena);
        let arena = match own.or_else(|| self.borrowed.arena(claim.arena)) {
            Some(arena) => arena,
            None => {
                let arena = ArenaId(self.next_arena);
                self.next_arena += 1;
                self.borrowed.add_arena(claim.arena, arena);
                tracing::debug!(
                    client = self.key,
                    arena = arena.0,
                    bytes,
                    owner = claim.owner,
                    "arena borrowed"
                );
                let sent = self.peer.send(&Notice::ArenaGranted { arena, bytes }, 0, vec![fd]);
                self.note(sent);
                arena
            }
        };
        self.borrowed.take(lease, claim);
        arena
    }

    /// A fresh name for a source.
    pub fn next_source(&mut self) -> SourceId {
        self.next_source += 1;
        SourceId(self.next_source)
    }

    /// The socket can be written to again.
    pub fn writable(&mut self) {
        let sent = self.peer.writable();
        self.note(sent);
    }

    /// True while no answer waits to be sent.
    pub fn is_flushed(&self) -> bool {
        self.peer.is_flushed()
    }

    /// True once the client cannot be reached: it must be let go.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// What it calls itself, once it has said so.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// Says that it is gone, with what goes with it.
    pub fn log_end(&self, now: Instant) {
        let usage = self.memory.usage();
        let reason = self.end_reason.as_deref().unwrap_or("it hung up");
        tracing::info!(
            client = self.key,
            pid = self.identity.pid,
            uid = self.identity.uid,
            name = self.name(),
            reason,
            seconds = now.duration_since(self.connected_at).as_secs(),
            requests = self.requests_total,
            errors = self.errors.values().sum::<u64>(),
            unanswered = self.request_count,
            sources = self.sources.len(),
            leases = usage.lease_count,
            leased_bytes = usage.leased_bytes,
            borrowed = self.borrowed.usage().0,
            arena_bytes = usage.arena_bytes,
            "client gone"
        );
    }

    /// For the status report. Its name is for its own user alone.
    pub fn status(&self, asker: Option<User>, now: Instant) -> ClientStatus {
        let usage = self.memory.usage();
        let (borrowed_count, borrowed_bytes) = self.borrowed.usage();
        ClientStatus {
            connection: self.key,
            pid: self.identity.pid,
            uid: self.identity.uid,
            source_count: self.sources.len() as u64,
            lease_count: usage.lease_count + borrowed_count,
            leased_bytes: usage.leased_bytes + borrowed_bytes,
            arena_bytes: usage.arena_bytes,
            request_count: self.request_count,
            name: if asker == Some(self.user) {
                shortened(self.name(), NAME_BYTES_MAX)
            } else {
                String::new()
            },
            connected_seconds: now.duration_since(self.connected_at).as_secs(),
            requests_total: self.requests_total,
            error_count: self.errors.values().sum(),
            results_copied_out: self.results_copied_out,
            bytes_copied_out: self.bytes_copied_out,
            tickets_issued: self.tickets_issued,
            tickets_redeemed: self.tickets_redeemed,
        }
    }

    fn note(&mut self, sent: io::Result<()>) {
        if let Err(error) = sent {
            self.end_reason.get_or_insert_with(|| format!("cannot be reached: {error}"));
            self.is_broken = true;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Its reading task may be waiting for one, and would wait for ever.
        self.gate.close();
    }
}

/// Text that somebody else wrote, for logs and reports: without control characters.
pub fn cleaned(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}
