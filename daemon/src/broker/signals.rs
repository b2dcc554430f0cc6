//! [`Signals`]: what the administrator asks for by a signal. SIGTERM and SIGINT: finish what is under way and end;
//! a second one ends the process at once, with code 1. SIGHUP: read the configuration again. SIGUSR1: write the
//! state to the log.
//!
//! What follows from it is in `drain`, `reload` and `dump`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use tokio::sync::Notify;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Finish what is under way and end.
    Stop,
    /// Read the configuration again.
    Reload,
    /// Write the state to the log.
    Dump,
}

/// Signals that have arrived and were not looked at yet. Several of one kind are one, so that this is no queue
/// that could be full while the loop is busy.
#[derive(Debug)]
pub struct Signals {
    pending: Arc<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    stop: AtomicBool,
    reload: AtomicBool,
    dump: AtomicBool,
    changed: Notify,
}

impl Signals {
    /// Takes over the signals of this process.
    pub fn start() -> io::Result<Signals> {
        let pending = Arc::new(Pending::default());
        let mut arriving = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
        std::thread::Builder::new().name("reeld-signals".into()).spawn({
            let pending = Arc::clone(&pending);
            move || {
                let mut is_stopping = false;
                for number in arriving.forever() {
                    match number {
                        SIGHUP => pending.reload.store(true, Ordering::Release),
                        SIGUSR1 => pending.dump.store(true, Ordering::Release),
                        // The lock goes with the process, and a socket without a lock is replaced by whoever
                        // serves next: nothing has to be put in order for that.
                        _ if is_stopping => std::process::exit(1),
                        _ => {
                            is_stopping = true;
                            pending.stop.store(true, Ordering::Release);
                        }
                    }
                    pending.changed.notify_one();
                }
            }
        })?;
        Ok(Signals { pending })
    }

    /// The next one.
    pub async fn next(&self) -> Signal {
        loop {
            let pending = [
                (&self.pending.stop, Signal::Stop),
                (&self.pending.dump, Signal::Dump),
                (&self.pending.reload, Signal::Reload),
            ];
            for (flag, signal) in pending {
                if flag.swap(false, Ordering::AcqRel) {
                    return signal;
                }
            }
            self.pending.changed.notified().await;
        }
    }
}
