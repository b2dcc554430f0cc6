//! [`Event`]: everything that can happen. [`Events`]: how the loop waits for what is next.
//!
//! What an event means is known to the loop alone.

use std::io;
use std::time::Instant;

use reeld_protocol::Frame;
use reeld_protocol::vigil::{AWAKE_FOR, Vigil};
use tokio::net::UnixStream;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::oneshot;

use super::engines::EngineKey;
use super::gates::Turn;
use super::helpers::{Done, Line};
use super::peer::Remains;
use super::spawner::Process;
use crate::config::Settings;

/// Events that wait for the loop. When it is full, sockets are not read.
pub const EVENTS_MAX: usize = 1024;

/// Whose socket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKey {
    Client(u64),
    Engine(EngineKey),
}

/// Everything that can happen.
#[derive(Debug)]
pub enum Event {
    Connected(UnixStream),
    /// A connection waits that cannot be accepted for want of descriptors. `tried` hears when those that can
    /// be spared are closed.
    OutOfDescriptors {
        tried: oneshot::Sender<()>,
    },
    /// A message. One that needs an answer has its turn.
    Frame {
        key: PeerKey,
        line: Line,
        frame: Frame,
        turn: Option<Turn>,
    },
    /// A socket has ended.
    Gone {
        reason: Option<io::Error>,
        remains: Remains,
    },
    /// The process of a client has ended.
    Died(u64),
    /// The session of a client's tickets has ended.
    SessionEnded(u64),
    Writable(Remains),
    /// Something is left to be closed.
    Left(Remains),
    EngineSpawned(EngineKey, io::Result<Box<dyn Process>>),
    EngineExited(EngineKey),
    Helped {
        line: Line,
        call: u64,
        done: Done,
    },
    Reloaded(Result<Box<Settings>, String>),
}

/// Both ends of everything that happens.
pub fn channel() -> (Sender<Event>, Events) {
    let (events, incoming) = mpsc::channel(EVENTS_MAX);
    (events, Events { incoming, vigil: Vigil::default() })
}

/// The receiving end of everything that happens.
pub struct Events {
    incoming: Receiver<Event>,
    vigil: Vigil,
}

impl Events {
    /// The next event; none when nothing more can happen. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<Event> {
        let begin = Instant::now();
        if self.vigil.is_worthwhile() {
            loop {
                match self.incoming.try_recv() {
                    Ok(event) => {
                        self.vigil.watched(Some(begin.elapsed()));
                        return Some(event);
                    }
                    Err(TryRecvError::Disconnected) => return None,
                    Err(TryRecvError::Empty) => {}
                }
                if begin.elapsed() >= AWAKE_FOR {
                    self.vigil.watched(None);
                    break;
                }
                // Whoever else is to run on this processor does so now, such as an engine; then the sockets are looked
                // at, which does not sleep while a task is about to go on.
                std::thread::yield_now();
                tokio::task::yield_now().await;
            }
        }
        let event = self.incoming.recv().await;
        self.vigil.slept(begin.elapsed());
        event
    }
}
