//! [`Spawner`]: starts processes, away from the loop's thread. Starting one reads the program from its disk,
//! which may be slow or far away.
//!
//! It is one thread that lives as long as the daemon, and no helper: an engine ends with the thread that
//! started it. Which engines there are is the matter of `engines`.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc as channel;

use tokio::sync::mpsc;

use super::engines::EngineKey;
use super::{Event, service};

/// Where to ask for processes.
#[derive(Debug)]
pub struct Spawner {
    orders: channel::Sender<(EngineKey, Order, OwnedFd)>,
}

/// What an engine is told when it starts.
#[derive(Debug)]
pub struct Order {
    /// Decoded pictures to keep.
    pub cache_mib: u64,
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
                let child = spawn(order, socket);
                if events.blocking_send(Event::EngineSpawned(key, child)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Spawner { orders })
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
        .arg("--memory-mib")
        .arg(order.memory_mib.to_string())
        .env("REELD_LOG", order.log)
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .spawn()
}
