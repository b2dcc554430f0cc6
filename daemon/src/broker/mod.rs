//! The broker: one thread that owns all state in plain fields. It accepts clients, plans, queues, leases and
//! routes. It never reads media and makes no call that could wait on a foreign file.
//!
//! | file          | what                                                                  |
//! |---------------|-----------------------------------------------------------------------|
//! | `mod`         | the loop: every event goes to one method                              |
//! | `opening`     | the way of an `OpenSource`: check, probe, scan, answer                |
//! | `frames`      | the way of a `GetFrames`: plan, reserve, queue, answer                |
//! | `running`     | handing jobs to engines, and what comes back                          |
//! | `tending`     | what happens by the clock, and the status report                      |
//! | `client`      | one connected process and what it holds                               |
//! | `catalog`     | files and what is known of them                                       |
//! | `index_store` | indexes on disk                                                       |
//! | `requests`    | requests that are not answered yet                                    |
//! | `job`         | a piece of work for an engine                                         |
//! | `engines`     | the engine processes                                                  |
//! | `peer`        | a socket as the loop sees it                                          |
//! | `source_file` | checks of a file that a client sent                                   |
//! | `listen`      | the listening socket and its lock                                     |
//! | `service`     | what the service manager is told and gives                            |
//! | `reply`       | errors as numbers and sentences                                       |
//! | `plan`, `queue`, `leases` | pure: what to decode, whose turn it is, whose memory it is |

mod catalog;
mod client;
mod engines;
mod frames;
mod index_store;
mod job;
mod leases;
mod listen;
mod opening;
mod peer;
mod plan;
mod queue;
mod reply;
mod requests;
mod running;
mod service;
mod source_file;
mod tending;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeld_protocol::Frame;
use reeld_protocol::error::WireError;
use reeld_protocol::handshake::Hello;
use reeld_protocol::ids::StreamIndex;
use reeld_protocol::message::{Message, Notice, Reply, Request, kind};
use reeld_protocol::socket::peer_identity;
use reeld_protocol::status::Totals;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};

use crate::config::Settings;
use crate::link::index::{Index, IndexError};
use crate::link::{ArenaKey, CatalogId};
use catalog::Catalog;
use client::{Client, GrantedArena};
use engines::{EngineKey, Engines};
use index_store::IndexStore;
use job::Job;
use opening::PendingOpen;
use queue::{Queue, Waiter};
use requests::Requests;
use service::Service;
use source_file::SourceFile;

/// Events that wait for the loop. When it is full, sockets are not read.
const EVENTS_MAX: usize = 1024;

/// Helper threads for calls that may hang on a foreign file system.
const HELPERS_MAX: usize = 8;

/// Calls that one user may have in the helper pool at once: a file system that hangs costs its user, nobody
/// else.
const HELPERS_PER_USER_MAX: usize = 4;

/// Whose socket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerKey {
    Client(u64),
    Engine(EngineKey),
}

/// Everything that can happen.
#[derive(Debug)]
enum Event {
    Connected(UnixStream),
    Frame { key: PeerKey, frame: Frame },
    Gone { key: PeerKey, reason: Option<io::Error> },
    Writable(PeerKey),
    EngineExited(EngineKey),
    SourceChecked { open: u64, checked: Result<SourceFile, WireError> },
    IndexLoaded { source: CatalogId, stream: StreamIndex, waiter: Waiter, index: Option<Index> },
    IndexRead { source: CatalogId, stream: StreamIndex, index: Result<Index, IndexError> },
    Stop,
}

/// What an event means for the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    GoOn,
    Stop,
}

/// All state of the daemon.
struct Broker {
    settings: Settings,
    ffmpeg_versions: Vec<String>,
    instance: u128,
    started: Instant,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    without_clients_since: Instant,
    had_clients: bool,
    catalog: Catalog,
    opens: HashMap<u64, PendingOpen>,
    next_open: u64,
    requests: Requests,
    index_store: Option<Arc<IndexStore>>,
    queue: Queue<Job>,
    engines: Engines,
    /// Clients of whom a quarantined slot became free.
    relieved: BTreeSet<u64>,
    arenas: HashMap<ArenaKey, GrantedArena>,
    next_arena: u64,
    next_lease: u64,
    helpers: HashMap<u32, Arc<Semaphore>>,
    totals: Totals,
    service: Service,
    events: mpsc::Sender<Event>,
}

/// Serves until it is told to stop. `ffmpeg_versions` is what clients are told about the engines.
pub fn serve(settings: Settings, ffmpeg_versions: Vec<String>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(HELPERS_MAX)
        .thread_name("reeld-helper")
        .build()?;
    let result = runtime.block_on(run(settings, ffmpeg_versions));
    // A helper that hangs on a dead file system does not keep the daemon from ending.
    runtime.shutdown_background();
    result
}

async fn run(settings: Settings, ffmpeg_versions: Vec<String>) -> io::Result<()> {
    let (events, mut incoming) = mpsc::channel(EVENTS_MAX);
    let (service, listening) = listen(&settings)?;
    let socket = listening.path();
    listen::stop_on_signals(events.clone())?;
    tokio::spawn(listening.accept(events.clone())?);
    if let Some(fd) = settings.ready_fd {
        listen::announce(fd)?;
    }
    tracing::info!(socket = %socket.display(), pid = std::process::id(), "serving");
    let mut broker = Broker::new(settings, ffmpeg_versions, events)?;
    broker.service = service;
    broker.service.ready();
    let mut tick = tokio::time::interval(tending::TICK);
    loop {
        let deadline = broker.next_deadline();
        let flow = tokio::select! {
            event = incoming.recv() => event.map_or(Flow::Stop, |event| broker.handle(event)),
            _ = tick.tick() => broker.tend(),
            () = tokio::time::sleep_until(deadline.into()) => broker.expire(),
        };
        if flow == Flow::Stop {
            tracing::info!("stopping");
            broker.service.stopping();
            return Ok(());
        }
    }
}

/// The service manager, and the socket that it passed or else one of our own. A private daemon has no service
/// manager: what it finds in its environment was meant for a program that started it.
fn listen(settings: &Settings) -> io::Result<(Service, listen::Listening)> {
    let own = || listen::Listening::start(&settings.socket, settings.socket_mode);
    if settings.is_private {
        return Ok((Service::default(), own()?));
    }
    let listening = match service::passed_socket()? {
        Some(passed) => listen::Listening::passed(passed)?,
        None => own()?,
    };
    Ok((Service::from_environment()?, listening))
}

impl Broker {
    fn new(
        settings: Settings,
        ffmpeg_versions: Vec<String>,
        events: mpsc::Sender<Event>,
    ) -> io::Result<Broker> {
        let index_store = index_store(&settings);
        let engine_count_max = settings.limits.engine_count_max.unwrap_or_else(engines::processor_count);
        let mut instance = [0; 16];
        rustix::rand::getrandom(&mut instance, rustix::rand::GetRandomFlags::empty())?;
        Ok(Broker {
            engines: Engines::new(
                engine_count_max,
                settings.limits.engine_cache_mib,
                settings.log.clone(),
                events.clone(),
            ),
            settings,
            ffmpeg_versions,
            instance: u128::from_le_bytes(instance),
            started: Instant::now(),
            clients: BTreeMap::new(),
            next_client: 0,
            without_clients_since: Instant::now(),
            had_clients: false,
            catalog: Catalog::default(),
            opens: HashMap::new(),
            next_open: 0,
            index_store,
            requests: Requests::default(),
            queue: Queue::default(),
            relieved: BTreeSet::new(),
            arenas: HashMap::new(),
            next_arena: 0,
            next_lease: 0,
            helpers: HashMap::new(),
            totals: Totals::default(),
            service: Service::default(),
            events,
        })
    }

    fn handle(&mut self, event: Event) -> Flow {
        match event {
            Event::Connected(stream) => self.connect(stream),
            Event::Frame { key: PeerKey::Client(client), frame } => self.client_frame(client, frame),
            Event::Frame { key: PeerKey::Engine(engine), frame } => self.engine_frame(engine, frame),
            Event::Gone { key: PeerKey::Client(client), reason } => {
                if let Some(reason) = reason {
                    tracing::info!(client, %reason, "connection ended");
                }
                self.forget_client(client);
            }
            Event::Gone { key: PeerKey::Engine(engine), reason } => {
                // Its end as a process is an event of its own; without a socket it is of no use.
                tracing::debug!(engine = engine.0, ?reason, "engine closed its socket");
                if let Some(engine) = self.engines.get_mut(engine) {
                    engine.kill();
                }
            }
            Event::Writable(PeerKey::Client(client)) => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.writable();
                }
            }
            Event::Writable(PeerKey::Engine(engine)) => {
                if let Some(engine) = self.engines.get_mut(engine) {
                    engine.writable();
                }
            }
            Event::EngineExited(engine) => self.engine_exited(engine),
            Event::SourceChecked { open, checked } => self.source_checked(open, checked),
            Event::IndexLoaded { source, stream, waiter, index } => {
                self.index_loaded(source, stream, waiter, index);
            }
            Event::IndexRead { source, stream, index } => self.index_read(source, stream, index),
            Event::Stop => return Flow::Stop,
        }
        self.admit_relieved();
        self.dispatch();
        self.drop_broken_clients();
        Flow::GoOn
    }

    fn connect(&mut self, stream: UnixStream) {
        let identity = match peer_identity(&stream) {
            Ok(identity) => identity,
            Err(error) => return tracing::warn!(%error, "a peer that cannot be identified"),
        };
        if self.settings.is_private && identity.uid != rustix::process::getuid().as_raw() {
            return tracing::warn!(uid = identity.uid, "refused: this daemon is private");
        }
        self.next_client += 1;
        let (key, events) = (self.next_client, self.events.clone());
        let quota_bytes = self.settings.limits.client_memory_mib << 20;
        let client = Client::new(key, identity, quota_bytes, Instant::now(), |permits| {
            peer::Peer::start(PeerKey::Client(key), stream, events, Some(permits))
        });
        tracing::debug!(client = key, pid = identity.pid, uid = identity.uid, "client connected");
        self.clients.insert(key, client);
        self.had_clients = true;
        self.totals.clients += 1;
    }

    fn client_frame(&mut self, key: u64, frame: Frame) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        if client.name.is_none() {
            return self.greet(key, &frame);
        }
        let (kind, request_id) = (frame.header.kind, frame.header.request_id);
        if request_id == 0 {
            return match Notice::decode(kind, &frame.body) {
                Ok(Some(notice)) => self.client_notice(key, notice),
                Ok(None) => {}
                Err(error) => self.break_off(key, &error.to_string()),
            };
        }
        client.request_count += 1;
        match Request::decode(kind, &frame.body) {
            Ok(Some(Request::OpenSource(open))) => self.open_source(key, request_id, open, frame.fds),
            Ok(Some(Request::GetFrames(wanted))) => self.get_frames(key, request_id, &wanted, frame.fds),
            Ok(Some(Request::Status)) => {
                let status = Reply::Status(Box::new(self.status()));
                if let Some(client) = self.clients.get_mut(&key) {
                    client.reply(request_id, &status);
                }
            }
            Ok(None) => self.fail(key, request_id, reply::unknown_kind(kind)),
            Err(error) => self.fail(key, request_id, reply::invalid(error.to_string())),
        }
    }

    fn greet(&mut self, key: u64, frame: &Frame) {
        let hello = match Hello::from_bytes(&frame.body) {
            Ok(hello) if frame.header.kind == kind::HELLO => hello,
            Ok(_) => return self.break_off(key, "the first message is no Hello"),
            Err(error) => return self.break_off(key, &error.to_string()),
        };
        let (daemon, ffmpeg) = (daemon_name(), self.ffmpeg_versions.join(", "));
        let Some(client) = self.clients.get_mut(&key) else { return };
        if !client.greet(hello, self.instance, &daemon, &ffmpeg) {
            self.break_off(key, "another version of the protocol");
        }
    }

    fn client_notice(&mut self, key: u64, notice: Notice) {
        match notice {
            Notice::Release(leases) => self.release(key, &leases),
            Notice::CloseSource(source) => {
                let Some(client) = self.clients.get_mut(&key) else { return };
                if let Some(opened) = client.sources.remove(&source) {
                    self.catalog.release(opened.catalog, Instant::now());
                }
            }
            Notice::Cancel(request_id) => {
                if let Some(request) = self.requests.find(key, request_id) {
                    self.fail_request(request, reply::cancelled());
                }
            }
            // These are the daemon's to say.
            Notice::ArenaGranted { .. } | Notice::ArenaRevoked(_) => {
                self.break_off(key, "a notice that only the daemon sends");
            }
        }
    }

    fn fail(&mut self, client: u64, request_id: u64, error: WireError) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.fail(request_id, error);
        }
    }

    /// Ends a connection that does not keep to the protocol.
    fn break_off(&mut self, client: u64, reason: &str) {
        tracing::info!(client, reason, "connection broken off");
        self.forget_client(client);
    }

    fn drop_broken_clients(&mut self) {
        let broken: Vec<u64> =
            self.clients.iter().filter(|(_, client)| client.is_broken()).map(|(&key, _)| key).collect();
        for client in broken {
            self.forget_client(client);
        }
    }

    /// Gives back everything that a client held. The only way in which a client ends.
    fn forget_client(&mut self, key: u64) {
        let Some(client) = self.clients.remove(&key) else { return };
        tracing::debug!(client = key, "client gone");
        self.forget_opens(key);
        for request in self.requests.of_client(key) {
            self.requests.remove(request);
        }
        self.forget_unwanted();
        self.queue.forget_client(key);
        let now = Instant::now();
        for opened in client.sources.values() {
            self.catalog.release(opened.catalog, now);
        }
        let arenas: Vec<ArenaKey> = client.arenas.values().map(|granted| granted.key).collect();
        self.drop_arenas(&arenas);
        self.without_clients_since = now;
    }

    fn drop_arenas(&mut self, arenas: &[ArenaKey]) {
        for arena in arenas {
            self.arenas.remove(arena);
            self.engines.drop_arena(*arena);
        }
    }

    fn now_millis(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn next_deadline(&self) -> Instant {
        let far = || Instant::now() + Duration::from_secs(3600);
        let at = |millis| self.started.checked_add(Duration::from_millis(millis));
        self.requests.next_deadline().and_then(at).unwrap_or_else(far)
    }

    /// Answers requests whose deadline has passed.
    fn expire(&mut self) -> Flow {
        let now_millis = self.now_millis();
        while let Some(request) = self.requests.overdue(now_millis) {
            self.fail_request(request, reply::deadline());
        }
        self.dispatch();
        Flow::GoOn
    }
}

fn index_store(settings: &Settings) -> Option<Arc<IndexStore>> {
    let folder = settings.cache_dir.as_ref().filter(|_| settings.index_cache_mib > 0)?;
    Some(Arc::new(IndexStore::new(folder.join("indexes"), settings.index_cache_mib << 20)))
}

fn daemon_name() -> String {
    format!("reeld {}", env!("CARGO_PKG_VERSION"))
}
