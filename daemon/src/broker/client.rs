//! [`Client`]: one connected process, with everything it holds. Dropping it gives all of it back but what
//! engines and the catalog know of: those are told by `Broker::forget_client`.

use std::cmp;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use reeld_protocol::arena::create_arena;
use reeld_protocol::error::WireError;
use reeld_protocol::handshake::{Hello, Refusal, Welcome};
use reeld_protocol::ids::{ArenaId, SourceId, StreamIndex};
use reeld_protocol::message::{Notice, Reply, kind};
use reeld_protocol::socket::PeerIdentity;
use reeld_protocol::status::ClientStatus;
use reeld_protocol::{VERSION_MAJOR, VERSION_MINOR};
use tokio::sync::Semaphore;

use super::death::Watch;
use super::job::User;
use super::leases::ClientMemory;
use super::peer::Peer;
use super::plan::Timeline;
use crate::link::{ArenaKey, CatalogId};

/// Requests in flight per client. 64 covers prefetch 8 x batch 8; more only hides a stalled client.
pub const REQUESTS_MAX: usize = 64;

/// Open sources per client: a data set's worth, but not a leak's.
pub const SOURCES_MAX: usize = 65_536;

/// The uid that the kernel shows for users whom it cannot map into this namespace: it names nobody.
const OVERFLOW_UID: u32 = 65_534;

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
    /// Its sources.
    pub sources: HashMap<SourceId, OpenedSource>,
    /// Requests that wait for memory, in order.
    pub waiting: VecDeque<u64>,
    /// Requests that are not answered yet.
    pub request_count: u64,
    peer: Peer,
    permits: Arc<Semaphore>,
    /// Kept for its end.
    _watch: Watch,
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
        now: Instant,
        connect: impl FnOnce(Arc<Semaphore>) -> (Peer, Watch),
    ) -> Client {
        let connection = (identity.uid == OVERFLOW_UID).then_some(key);
        let permits = Arc::new(Semaphore::new(REQUESTS_MAX));
        let (peer, watch) = connect(Arc::clone(&permits));
        Client {
            key,
            user: User { uid: identity.uid, connection },
            identity,
            name: None,
            connected_at: now,
            active_at: now,
            memory: ClientMemory::new(quota_bytes),
            arenas: BTreeMap::new(),
            sources: HashMap::new(),
            waiting: VecDeque::new(),
            request_count: 0,
            peer,
            permits,
            _watch: watch,
            next_arena: 0,
            next_source: 0,
            is_broken: false,
        }
    }

    /// Answers the handshake. False: the client was refused and must be let go.
    pub fn greet(&mut self, hello: Hello, instance: u128, daemon: &str, ffmpeg: &str) -> bool {
        if hello.major != VERSION_MAJOR || hello.minor_min > VERSION_MINOR {
            let reason = format!(
                "this daemon ({daemon}) speaks protocol {VERSION_MAJOR}.{VERSION_MINOR}, the client {}.{}; install \
                 the same version of reeld on both sides and restart the older one",
                hello.major, hello.minor_min
            );
            let refusal = Refusal { major: VERSION_MAJOR, minor: VERSION_MINOR, reason };
            let _ = self.peer.send_raw(kind::REFUSAL, 0, &refusal.to_bytes());
            return false;
        }
        let welcome = Welcome {
            major: VERSION_MAJOR,
            minor: cmp::min(hello.minor_max, VERSION_MINOR),
            features: 0,
            instance,
            quota_bytes: self.memory.quota_bytes(),
            requests_max: REQUESTS_MAX as u32,
            daemon: daemon.to_owned(),
            ffmpeg: ffmpeg.to_owned(),
        };
        self.name = Some(hello.name);
        let sent = self.peer.send_raw(kind::WELCOME, 0, &welcome.to_bytes());
        self.note(sent);
        true
    }

    /// Sends the one terminal reply of a request.
    pub fn reply(&mut self, request_id: u64, reply: &Reply) {
        self.request_count = self.request_count.saturating_sub(1);
        self.permits.add_permits(1);
        let sent = self.peer.send(reply, request_id, Vec::new());
        self.note(sent);
    }

    /// Answers a request with an error.
    pub fn fail(&mut self, request_id: u64, error: WireError) {
        tracing::debug!(client = self.key, request_id, code = ?error.code, "{}", error.message);
        self.reply(request_id, &Reply::Error(error));
    }

    /// Makes an arena and hands it to the client, before any reply names it.
    pub fn grant_arena(&mut self, key: ArenaKey, bytes: u64, is_dedicated: bool) -> io::Result<GrantedArena> {
        let fd = Arc::new(create_arena(bytes)?);
        let arena = ArenaId(self.next_arena);
        self.next_arena += 1;
        let granted = GrantedArena { key, fd: Arc::clone(&fd), bytes };
        self.memory.add_arena(arena, bytes, is_dedicated);
        self.arenas.insert(arena, granted.clone());
        let sent = self.peer.send(&Notice::ArenaGranted { arena, bytes }, 0, vec![fd]);
        self.note(sent);
        Ok(granted)
    }

    /// Takes arenas back in which nothing lies, and returns what engines call them.
    pub fn revoke_arenas(&mut self, arenas: &[ArenaId]) -> Vec<ArenaKey> {
        let mut keys = Vec::new();
        for &arena in arenas {
            keys.extend(self.arenas.remove(&arena).map(|granted| granted.key));
            let sent = self.peer.send(&Notice::ArenaRevoked(arena), 0, Vec::new());
            self.note(sent);
        }
        keys
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

    /// True once the client cannot be reached: it must be let go.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// For the status report.
    pub fn status(&self) -> ClientStatus {
        let usage = self.memory.usage();
        ClientStatus {
            connection: self.key,
            pid: self.identity.pid,
            uid: self.identity.uid,
            source_count: self.sources.len() as u64,
            lease_count: usage.lease_count,
            leased_bytes: usage.leased_bytes,
            arena_bytes: usage.arena_bytes,
            request_count: self.request_count,
        }
    }

    fn note(&mut self, sent: io::Result<()>) {
        if let Err(error) = sent {
            tracing::debug!(client = self.key, %error, "client cannot be reached");
            self.is_broken = true;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Its reading task may be waiting for one, and would wait for ever.
        self.permits.close();
    }
}
