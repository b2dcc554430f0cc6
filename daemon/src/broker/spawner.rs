//! [`Spawner`]: starts processes, away from the loop's thread, and [`Process`], which is what comes of it. Starting
//! one reads the program from its disk, which may be slow or far away.
//!
//! It is one thread that lives as long as the daemon, and no helper: an engine ends with the thread that
//! started it. Which engines there are is the matter of `engines`.

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc as channel;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::mpsc;

use super::engines::EngineKey;
use super::{Event, service};

/// Where to ask for processes.
#[derive(Debug)]
pub struct Spawner {
    orders: channel::Sender<Ordered>,
}

/// Which engine, how it starts, and the socket that it talks on.
type Ordered = (EngineKey, Order, OwnedFd);

/// What an engine is told when it starts.
#[derive(Debug)]
pub struct Order {
    /// Decoded pictures to keep.
    pub cache_mib: u64,
    /// Decoders to keep open.
    pub decoders_mib: u64,
    /// Private memory that it may use.
    pub memory_mib: u64,
    /// What it logs.
    pub log: String,
}

impl Spawner {
    /// Starts the thread. What it has started comes as events.
    pub fn start(events: mpsc::Sender<Event>) -> io::Result<Spawner> {
        let (orders, incoming) = channel::channel();
        std::thread::Builder::new().name("reeld-spawner".into()).spawn(move || {
            for (key, order, socket) in incoming {
                let spawned = spawn(order, socket).map(|child| Box::new(child) as Box<dyn Process>);
                if events.blocking_send(Event::EngineSpawned(key, spawned)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Spawner { orders })
    }

    /// No thread: orders come out at the other end, and whoever has that starts what it likes.
    #[cfg(any(test, fuzzing))]
    pub fn without_thread() -> (Spawner, channel::Receiver<Ordered>) {
        let (orders, incoming) = channel::channel();
        (Spawner { orders }, incoming)
    }

    /// Orders an engine that talks on this socket.
    pub fn order(&self, key: EngineKey, order: Order, socket: OwnedFd) -> io::Result<()> {
        self.orders
            .send((key, order, socket))
            .map_err(|_| io::Error::other("the thread that starts engines has ended"))
    }
}

fn spawn(order: Order, socket: OwnedFd) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    for variable in service::VARIABLES {
        command.env_remove(variable);
    }
    command
        .arg("engine")
        .arg("--cache-mib")
        .arg(order.cache_mib.to_string())
        .arg("--decoders-mib")
        .arg(order.decoders_mib.to_string())
        .arg("--memory-mib")
        .arg(order.memory_mib.to_string())
        .env("REELD_LOG", order.log)
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .spawn()
}

/// An engine's process. Only the simulation has others than [`Child`].
pub trait Process: Debug + Send {
    /// Its number.
    fn id(&self) -> u32;

    /// A descriptor that becomes readable when it has ended.
    fn pidfd(&self) -> io::Result<OwnedFd>;

    /// Ends it; nothing where it has ended.
    fn kill(&mut self);

    /// True once it has ended. Takes its number back.
    fn has_ended(&mut self) -> bool;

    /// Waits for its end and takes its number back.
    fn wait(&mut self) -> io::Result<ExitStatus>;
}

impl Process for Child {
    fn id(&self) -> u32 {
        Child::id(self)
    }

    fn pidfd(&self) -> io::Result<OwnedFd> {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(pidfd_open(pid, PidfdFlags::empty())?)
    }

    fn kill(&mut self) {
        let _ = Child::kill(self);
    }

    fn has_ended(&mut self) -> bool {
        matches!(self.try_wait(), Ok(Some(_)))
    }

    fn wait(&mut self) -> io::Result<ExitStatus> {
        Child::wait(self)
    }
}
