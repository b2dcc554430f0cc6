//! The way of a client in: who may connect, and the handshake.
//!
//! How a client ends is the matter of `parting`; the listening socket, of `listen`.

use reeld_protocol::Frame;
use reeld_protocol::handshake::{Hello, RefusalCause};
use reeld_protocol::message::kind;
use reeld_protocol::socket::{PeerIdentity, peer_identity};
use tokio::net::UnixStream;

use super::client::Client;
use super::death::Watch;
use super::gates::{Gate, Gates};
use super::helpers::Line;
use super::quotas::Barrier;
use super::{Broker, PeerKey, clock, listen, peer};

impl Broker {
    /// Somebody has connected.
    pub(super) fn connect(&mut self, stream: UnixStream) {
        match peer_identity(&stream) {
            // It was accepted just before the socket was closed, and looks for the next daemon.
            Ok(identity) if self.is_draining() => self.helpers.discard(Line::User(identity.uid), stream),
            Ok(identity) => self.admit_client(stream, identity),
            Err(error) => tracing::warn!(%error, "a peer that cannot be identified"),
        }
    }

    /// Takes a connection in, if there is room for it.
    pub(super) fn admit_client(&mut self, stream: UnixStream, identity: PeerIdentity) {
        let line = Line::User(identity.uid);
        if self.settings.is_private && identity.uid != rustix::process::getuid().as_raw() {
            tracing::warn!(uid = identity.uid, "refused: this daemon is private");
            return self.helpers.discard(line, stream);
        }
        if self.helpers.is_overfull(line) {
            // The one socket that is closed here: nothing of it was read, so at most the kernel's own closing
            // of what lies in it takes place on this thread.
            return tracing::warn!(uid = identity.uid, "refused: this user's file systems do not answer");
        }
        self.next_client += 1;
        let (key, events) = (self.next_client, self.events.clone());
        let user = Client::user(key, identity);
        if let Err(barrier) = self.quotas.connect(user) {
            let reason = self.too_many_clients(barrier);
            tracing::warn!(pid = identity.pid, uid = identity.uid, reason, "connection refused");
            listen::refuse(&stream, RefusalCause::Limit, reason);
            return self.helpers.discard(line, stream);
        }
        let stream = match stream
            .into_std()
            .map_err(|error| (None, error))
            .and_then(|stream| peer::Socket::new(stream).map_err(|(fd, error)| (Some(fd), error)))
        {
            Ok(stream) => stream,
            Err((left, error)) => {
                tracing::warn!(pid = identity.pid, uid = identity.uid, %error, "a connection cannot be watched");
                self.quotas.disconnect(user);
                return self.helpers.discard(line, left);
            }
        };
        let limits = &self.settings.limits;
        let quota_bytes = limits.client_memory_mib << 20;
        let of_user = self.gates.entry(user).or_insert_with(|| Gate::new(limits.user_requests_max));
        let gates = Gates { client: Gate::new(limits.client_requests_max), user: of_user.clone() };
        let best = self.switches.death;
        let client = Client::new(key, identity, quota_bytes, gates, clock::now(), |gates| {
            let watch = Watch::start(best, key, &stream, identity, events.clone());
            (peer::Peer::start(PeerKey::Client(key), line, stream, events, Some(gates)), watch)
        });
        tracing::debug!(client = key, pid = identity.pid, uid = identity.uid, "connection accepted");
        self.clients.insert(key, client);
        self.had_clients = true;
        self.totals.clients += 1;
    }

    fn too_many_clients(&self, barrier: Barrier) -> String {
        let limits = &self.settings.limits;
        match barrier {
            Barrier::UserClients => format!(
                "{} clients of this user are connected (user_client_count_max); end some, or raise the limit",
                limits.user_client_count_max
            ),
            Barrier::Clients
            | Barrier::UserSources
            | Barrier::UserMappedFrames
            | Barrier::UserMemory
            | Barrier::Lent
            | Barrier::Memory => format!(
                "{} clients are connected (client_count_max); end some, or raise the limit",
                limits.client_count_max
            ),
        }
    }

    /// The first message, which must be a Hello.
    pub(super) fn greet(&mut self, key: u64, frame: &Frame) {
        let hello = match Hello::from_bytes(&frame.body) {
            Ok(hello) if frame.header.kind == kind::HELLO && frame.header.request_id == 0 => hello,
            Ok(_) => return self.break_off(key, "the first message is no Hello"),
            Err(error) => return self.break_off(key, &error.to_string()),
        };
        let (daemon, ffmpeg) = (daemon_name(), self.ffmpeg_versions.join(", "));
        let Some(client) = self.clients.get_mut(&key) else { return };
        if !client.greet(&hello, self.instance, &daemon, &ffmpeg) {
            return self.break_off(key, "another version of the protocol");
        }
        let (pid, uid) = (client.identity.pid, client.identity.uid);
        tracing::info!(client = key, pid, uid, name = client.name(), "client connected");
    }
}

fn daemon_name() -> String {
    format!("reeld {}", env!("CARGO_PKG_VERSION"))
}
