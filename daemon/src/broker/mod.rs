//! The broker: one thread that owns all state in plain fields. It accepts clients, plans, queues, leases and
//! routes. It never reads media and makes no call that could wait on a foreign file.
//!
//! | file          | what                                                                  |
//! |---------------|-----------------------------------------------------------------------|
//! | `mod`         | the loop: every event goes to one method                              |
//! | `events`      | everything that can happen, and how the loop waits for it            |
//! | `opening`     | the way of an `OpenSource`: check, probe, scan, answer                |
//! | `frames`      | the way of a `GetFrames`: plan, reserve, queue, answer                |
//! | `handing`     | the way of a ticket: leases from one client to another                |
//! | `notices`     | what clients say without expecting an answer                          |
//! | `prefetching` | the way of a hint: what engines do while nobody waits                 |
//! | `running`     | handing jobs to engines, and what comes back                          |
//! | `tending`     | what happens by the clock, and the status report                      |
//! | `signals`     | what the administrator asks for                                       |
//! | `drain`       | how the daemon ends                                                   |
//! | `reload`      | how the configuration is read again                                   |
//! | `dump`        | the state, for the log                                                |
//! | `arriving`    | who may connect, and the handshake                                    |
//! | `client`      | one connected process and what it holds                               |
//! | `catalog`     | files and what is known of them                                       |
//! | `index_store` | indexes on disk                                                       |
//! | `requests`    | requests that are not answered yet                                    |
//! | `job`         | a piece of work for an engine                                         |
//! | `engines`     | the engine processes; `engines/engine`: one of them                   |
//! | `backoff`, `blame` | pure: how long to wait for the next engine, and whose fault a death is |
//! | `spawner`     | the thread that starts processes                                      |
//! | `memory`      | granting slots and arenas, and who waits for memory of others         |
//! | `gates`       | back-pressure: how many requests may be in flight                     |
//! | `node_memory` | how much memory there is                                              |
//! | `descriptors` | the limit of open files, and what is done where it is reached         |
//! | `peer`        | a socket as the loop sees it                                          |
//! | `death`       | how a client's death is noticed that its socket does not show         |
//! | `helpers`     | threads for calls that may hang                                       |
//! | `parting`     | what becomes of what clients leave behind, and what helpers bring     |
//! | `locating`    | finding the frames of large requests, away from the loop              |
//! | `source_file` | checks of a file that a client sent                                   |
//! | `mappings`    | frames that a client has listed, for it alone                         |
//! | `turns`       | how long the loop's turns take                                        |
//! | `audit`       | what must hold across all tables                                      |
//! | `switches`    | what only tests change                                                |
//! | `listen`      | the listening socket and its lock                                     |
//! | `service`     | what the service manager is told and gives                            |
//! | `clock`       | what time it is                                                       |
//! | `simulation`  | for tests and fuzzing: engines and clients that are not processes     |
//! | `reply`       | errors as numbers and sentences                                       |
//! | `plan`, `queue`, `hints`, `kept`, `leases`, `tickets`, `quotas` | pure: what to decode, whose turn it is, what may be decoded ahead, which engine has what, whose memory it is, who may take it over, who may have how much |

mod arriving;
mod audit;
mod backoff;
mod blame;
mod catalog;
mod client;
mod clock;
mod death;
mod descriptors;
mod drain;
mod dump;
mod engines;
mod events;
mod frames;
mod gates;
mod handing;
mod helpers;
mod hints;
mod index_store;
mod job;
mod kept;
mod leases;
mod listen;
mod locating;
mod mappings;
mod memory;
mod node_memory;
mod notices;
mod opening;
mod parting;
mod peer;
mod plan;
mod prefetching;
mod queue;
mod quotas;
mod reload;
mod reply;
mod requests;
mod running;
mod service;
mod signals;
#[cfg(any(test, fuzzing))]
pub mod simulation;
mod source_file;
mod spawner;
mod switches;
mod tending;
mod tickets;
mod turns;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeld_protocol::Frame;
use reeld_protocol::error::WireError;
use reeld_protocol::message::{Message, Notice, Reply, Request, kind};
use reeld_protocol::status::Totals;
use tokio::sync::mpsc;

use crate::config::Settings;
use crate::link::{ArenaKey, CatalogId};
use catalog::Catalog;
use client::{Client, ErrorCounts, GrantedArena};
use death::Watch;
use drain::Drain;
use engines::Engines;
use events::{Event, PeerKey};
use gates::{Gate, Turn};
use helpers::Helpers;
use hints::Hints;
use index_store::IndexStore;
use job::{Job, User};
use kept::KeptPictures;
use memory::{DetachedArena, Starving};
use opening::PendingOpen;
use queue::{Queue, Waiter};
use quotas::Quotas;
use reload::{Reload, Reloading};
use requests::Requests;
use service::Service;
use signals::{Signal, Signals};
use switches::Switches;
use tickets::Tickets;
use turns::Turns;

/// What an event means for the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    GoOn,
    Stop,
}

/// All state of the daemon.
struct Broker {
    settings: Settings,
    switches: Switches,
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
    hints: Hints,
    kept: KeptPictures,
    engines: Engines,
    /// Clients of whom a quarantined slot became free.
    relieved: BTreeSet<u64>,
    arenas: HashMap<ArenaKey, GrantedArena>,
    next_arena: u64,
    /// Arenas that no client has any more, but that an engine may still write to.
    detached: HashMap<ArenaKey, DetachedArena>,
    /// Leases on their way from one client to another.
    tickets: Tickets,
    /// For the ends of the processes on whose behalf clients issue tickets.
    sessions: BTreeMap<u64, Watch>,
    /// Who has arenas of others.
    borrowers: BTreeMap<ArenaKey, BTreeSet<u64>>,
    /// Who has how much of what all share.
    quotas: Quotas,
    /// All the memory that there is.
    node_bytes: u64,
    /// Requests that wait for memory of others.
    starving: Starving,
    /// Something happened that may help them.
    has_memory_moved: bool,
    /// Requests in flight by user.
    gates: BTreeMap<User, Gate>,
    next_lease: u64,
    helpers: Helpers,
    /// Handles on files that clients left behind, given back a few at a time.
    leavings: Vec<CatalogId>,
    turns: Turns,
    totals: Totals,
    /// Error replies to clients that are gone.
    past_errors: ErrorCounts,
    /// None in tests of parts of the broker.
    accepting: Option<listen::Accepting>,
    service: Service,
    drain: Option<Drain>,
    reload: Arc<Reload>,
    reloading: Reloading,
    /// Lines of the log that were dropped, as far as the log says so.
    log_lines_dropped: u64,
    events: mpsc::Sender<Event>,
}

/// Serves until it is told to stop. `reload` reads the settings anew; `ffmpeg_versions` is what clients are told
/// about the engines.
pub fn serve(settings: Settings, reload: Reload, ffmpeg_versions: Vec<String>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(helpers::THREADS_MAX)
        .thread_name("reeld-helper")
        .build()?;
    // As a task: what the tasks that read sockets bring is done next, without a look at all sockets in between.
    let task = runtime.spawn(run(settings, reload, ffmpeg_versions));
    let result = runtime.block_on(task).unwrap_or_else(|panic| resume_unwind(panic.into_panic()));
    // Nothing is closed here that may be a file on a dead file system, and no helper is waited for that hangs
    // on one: what is left is the kernel's to close when the process ends.
    std::mem::forget(runtime);
    result
}

async fn run(settings: Settings, reload: Reload, ffmpeg_versions: Vec<String>) -> io::Result<()> {
    descriptors::raise_limit();
    let (events, mut incoming) = events::channel();
    let (service, listening) = listen(&settings)?;
    let socket = listening.path();
    let signals = Signals::start()?;
    let accepting = listening.accept(events.clone())?;
    if let Some(fd) = settings.ready_fd {
        listen::announce(fd)?;
    }
    tracing::info!(socket = %socket.display(), pid = std::process::id(), "serving");
    // Not dropped, for the reason given in `serve`.
    let mut broker = ManuallyDrop::new(Broker::new(settings, reload, ffmpeg_versions, events)?);
    broker.accepting = Some(accepting);
    broker.service = service;
    broker.service.ready();
    let mut tick = tokio::time::interval(tending::TICK);
    // One that is set too early finds nothing to do. To set it anew at each turn would cost more.
    let mut alarm = pin!(tokio::time::sleep(Duration::ZERO));
    loop {
        let deadline = broker.next_deadline().into();
        if deadline < alarm.deadline() || alarm.is_elapsed() {
            alarm.as_mut().reset(deadline);
        }
        let flow = tokio::select! {
            event = incoming.next() => event.map_or(Flow::Stop, |event| broker.turn(|broker| broker.handle(event))),
            signal = signals.next() => broker.turn(|broker| broker.obey(signal)),
            _ = tick.tick() => broker.turn(Broker::tend),
            () = &mut alarm => broker.turn(Broker::expire),
        };
        if flow == Flow::Stop {
            broker.end();
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
        reload: Reload,
        ffmpeg_versions: Vec<String>,
        events: mpsc::Sender<Event>,
    ) -> io::Result<Broker> {
        let index_store = index_store(&settings);
        let node_bytes = node_memory::bytes();
        let switches = Switches::from_environment();
        let mut instance = [0; 16];
        rustix::rand::getrandom(&mut instance, rustix::rand::GetRandomFlags::empty())?;
        Ok(Broker {
            engines: Engines::new(&settings.limits, &settings.log, switches.silence_max, events.clone())?,
            quotas: Quotas::new(memory::quota_limits(&settings, node_bytes)),
            node_bytes,
            detached: HashMap::new(),
            tickets: Tickets::default(),
            sessions: BTreeMap::new(),
            borrowers: BTreeMap::new(),
            starving: Starving::default(),
            has_memory_moved: false,
            gates: BTreeMap::new(),
            settings,
            switches,
            ffmpeg_versions,
            instance: u128::from_le_bytes(instance),
            started: clock::now(),
            clients: BTreeMap::new(),
            next_client: 0,
            without_clients_since: clock::now(),
            had_clients: false,
            catalog: Catalog::new(descriptors::count_max()),
            opens: HashMap::new(),
            next_open: 0,
            index_store,
            requests: Requests::default(),
            queue: Queue::default(),
            hints: Hints::default(),
            kept: KeptPictures::default(),
            relieved: BTreeSet::new(),
            arenas: HashMap::new(),
            next_arena: 0,
            next_lease: 0,
            helpers: Helpers::new(switches.patience, events.clone()),
            leavings: Vec::new(),
            turns: Turns::default(),
            totals: Totals::default(),
            past_errors: ErrorCounts::default(),
            accepting: None,
            service: Service::default(),
            drain: None,
            reload: Arc::new(reload),
            reloading: Reloading::Idle,
            log_lines_dropped: 0,
            events,
        })
    }

    fn handle(&mut self, event: Event) -> Flow {
        match event {
            Event::Connected(stream) => self.connect(stream),
            Event::OutOfDescriptors { tried } => {
                self.shed_files_and(tried);
            }
            Event::Frame { key, line, frame, turn } => {
                let unused = match key {
                    PeerKey::Client(client) => self.client_frame(client, frame, turn),
                    PeerKey::Engine(engine) => self.engine_frame(engine, frame),
                };
                if !unused.is_empty() {
                    self.helpers.discard(line, unused);
                    self.check_chores(key, line);
                }
            }
            Event::Gone { reason, remains } => {
                match remains.key {
                    PeerKey::Client(client) => {
                        if let (Some(reason), Some(client)) = (reason, self.clients.get_mut(&client)) {
                            client.end_reason.get_or_insert_with(|| reason.to_string());
                        }
                        self.forget_client(client);
                    }
                    PeerKey::Engine(engine) => {
                        // Its end as a process is an event of its own; without a socket it is of no use.
                        tracing::debug!(engine = engine.0, ?reason, "engine closed its socket");
                        if let Some(engine) = self.engines.get_mut(engine) {
                            engine.kill();
                        }
                    }
                }
                self.helpers.discard(remains.line, remains);
            }
            Event::Died(client) => {
                self.end_client(client, "its process has ended");
            }
            Event::SessionEnded(client) => self.session_ended(client),
            Event::Writable(remains) => {
                match remains.key {
                    PeerKey::Client(client) => {
                        if let Some(client) = self.clients.get_mut(&client) {
                            client.writable();
                        }
                    }
                    PeerKey::Engine(engine) => {
                        if let Some(engine) = self.engines.get_mut(engine) {
                            engine.writable();
                        }
                    }
                }
                self.let_go(remains);
            }
            Event::Left(remains) => {
                let (key, line) = (remains.key, remains.line);
                self.helpers.discard(line, remains);
                self.check_chores(key, line);
            }
            Event::EngineSpawned(engine, spawned) => self.engine_spawned(engine, spawned),
            Event::EngineExited(engine) => self.engine_exited(engine),
            Event::Helped { line, call, done } => self.helped(line, call, done),
            Event::Reloaded(read) => self.reloaded(read),
        }
        self.settle_turn();
        self.settle_drain()
    }

    /// Does something as one turn of the loop, and takes its time.
    fn turn(&mut self, work: impl FnOnce(&mut Broker) -> Flow) -> Flow {
        let begin = Instant::now();
        let flow = work(self);
        self.turns.add(begin.elapsed());
        if self.switches.is_audited
            && let Err(fault) = self.audit()
        {
            tracing::error!(fault, "the tables contradict each other");
            std::process::abort();
        }
        flow
    }

    /// What follows from whatever has happened.
    fn settle_turn(&mut self) {
        self.admit_relieved();
        self.admit_starving();
        self.dispatch();
        self.drop_broken_clients();
        self.give_back_leavings();
    }

    fn obey(&mut self, signal: Signal) -> Flow {
        match signal {
            Signal::Stop => self.begin_drain("a signal"),
            Signal::Reload => self.begin_reload(),
            Signal::Dump => self.dump(),
        }
        self.settle_drain()
    }

    /// The last thing that is done: what is left goes with the process.
    fn end(&mut self) {
        for client in self.clients.keys().copied().collect::<Vec<_>>() {
            self.end_client(client, "the daemon ends");
        }
        self.engines.end();
        tracing::info!(uptime_seconds = self.age().as_secs(), "stopped");
        // Others may serve from here on, even if a dead file system keeps this process from ending.
        self.accepting = None;
    }

    /// Handles a message, and returns the descriptors that it has no use for.
    fn client_frame(&mut self, key: u64, mut frame: Frame, turn: Option<Turn>) -> Vec<OwnedFd> {
        let are_fds_lost = frame.are_fds_lost();
        let mut fds = std::mem::take(&mut frame.fds);
        let Some(client) = self.clients.get_mut(&key) else { return fds };
        if client.name.is_none() {
            self.greet(key, &frame);
            return fds;
        }
        let (kind, request_id) = (frame.header.kind, frame.header.request_id);
        if request_id == 0 {
            match Notice::decode(kind, &frame.body) {
                Ok(Some(notice)) => self.client_notice(key, notice, &mut fds),
                Ok(None) if kind::is_no_notice(kind) => {
                    self.break_off(key, "a request, a reply or another Hello where a notice is due");
                }
                Ok(None) => {}
                Err(error) => self.break_off(key, &error.to_string()),
            }
            return fds;
        }
        client.accept(request_id, kind, turn, clock::now());
        if are_fds_lost {
            self.shed_files();
            self.fail(key, request_id, reply::lost_descriptors());
            return fds;
        }
        match Request::decode(kind, &frame.body) {
            Ok(Some(Request::OpenSource(_) | Request::GetFrames(_) | Request::IssueTicket(_)))
                if self.is_draining() =>
            {
                self.fail(key, request_id, reply::shutting_down());
            }
            Ok(Some(Request::OpenSource(open))) => self.open_source(key, request_id, open, &mut fds),
            Ok(Some(Request::GetFrames(wanted))) => self.get_frames(key, request_id, wanted, &mut fds),
            Ok(Some(Request::GetKeyFrames(asked))) => self.get_key_frames(key, request_id, asked),
            Ok(Some(Request::IssueTicket(lease))) => self.issue_ticket(key, request_id, lease),
            Ok(Some(Request::RedeemTicket(ticket))) => self.redeem_ticket(key, request_id, ticket),
            Ok(Some(Request::Status)) => {
                let status = Reply::Status(Box::new(self.status(key)));
                if let Some(client) = self.clients.get_mut(&key) {
                    client.reply(request_id, &status);
                }
            }
            Ok(None) => self.fail(key, request_id, reply::unknown_kind(kind)),
            Err(error) => self.fail(key, request_id, reply::invalid(error.to_string())),
        }
        fds
    }

    fn fail(&mut self, client: u64, request_id: u64, error: WireError) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.fail(request_id, error);
        }
    }

    /// Ends a connection that does not keep to the protocol.
    fn break_off(&mut self, client: u64, reason: &str) {
        self.end_client(client, reason);
    }

    fn end_client(&mut self, key: u64, reason: &str) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.end_reason.get_or_insert_with(|| reason.to_owned());
        }
        self.forget_client(key);
    }

    fn drop_broken_clients(&mut self) {
        let broken: Vec<u64> =
            self.clients.iter().filter(|(_, client)| client.is_broken()).map(|(&key, _)| key).collect();
        for client in broken {
            self.forget_client(client);
        }
    }

    /// Takes note of work that was done, for those who waited for it and are still there.
    fn charge(&mut self, mut waiters: Vec<Waiter>, pixels: u64) {
        waiters.retain(|waiter| self.clients.contains_key(&waiter.client));
        self.queue.charge(&waiters, pixels);
    }

    /// How long it has been serving.
    fn age(&self) -> Duration {
        clock::now().duration_since(self.started)
    }

    fn now_millis(&self) -> u64 {
        self.age().as_millis() as u64
    }

    fn next_deadline(&self) -> Instant {
        let now = clock::now();
        if !self.leavings.is_empty() || self.catalog.has_surplus() {
            return now;
        }
        let far = now + Duration::from_secs(3600);
        let at = |millis| self.started.checked_add(Duration::from_millis(millis));
        let of_requests = self.requests.next_deadline().and_then(at);
        let others = [self.engines.next_start(now), self.starving.next_deadline(), self.drain_deadline()];
        others.into_iter().flatten().chain(of_requests).min().unwrap_or(far)
    }

    /// Answers requests whose deadline has passed.
    fn expire(&mut self) -> Flow {
        let now_millis = self.now_millis();
        while let Some(request) = self.requests.overdue(now_millis) {
            self.fail_request(request, reply::deadline());
        }
        self.refuse_starved(clock::now());
        self.settle_turn();
        self.settle_drain()
    }
}

fn index_store(settings: &Settings) -> Option<Arc<IndexStore>> {
    let folder = settings.cache_dir.as_ref().filter(|_| settings.index_cache_mib > 0)?;
    Some(Arc::new(IndexStore::new(folder.join("indexes"), settings.index_cache_mib << 20)))
}
