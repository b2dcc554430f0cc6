//! [`Events`]: what the loop has to do next, and how it waits for that.
//!
//! What an event means is known to the loop alone.

use std::time::Instant;

use reeld_protocol::vigil::{AWAKE_FOR, Vigil};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::Event;

/// Events that wait for the loop. When it is full, sockets are not read.
pub const EVENTS_MAX: usize = 1024;

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
