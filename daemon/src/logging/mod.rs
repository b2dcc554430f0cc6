//! Where log lines go: text on standard error, or fields to systemd's journal. Logging never waits: lines pass
//! through a bounded queue to a thread of their own ([`lines`]), and what a stuck reader leaves no room for is
//! dropped and counted.
//!
//! What is worth a line is decided where it happens; here no line is made.

mod journal;
mod lines;
mod stderr;

use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use journal::{Journal, JournalLayer};
use lines::Lines;
pub use lines::WrittenOut;
use stderr::ImpatientStderr;

/// Events with this target are shown whatever the filter says: somebody has asked for them by a signal.
pub const STATE_TARGET: &str = "reeld_state";

/// The filter where nobody says otherwise.
const FILTER_DEFAULT: &str = "info";

/// The filter of the running process: a process has one log.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Lines that were dropped since the start.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Begins to log, in the broker. What is returned writes out what is queued when it is dropped.
pub fn start(filter: &str) -> Result<WrittenOut, String> {
    let filter = parse(filter)?;
    let said = |error: io::Error| format!("no thread for the log: {error}");
    if let Some(journal) = Journal::of_this_process() {
        let (lines, written_out) = Lines::start(move |line| journal.send(line)).map_err(said)?;
        install(filter, JournalLayer::new(lines))?;
        return Ok(written_out);
    }
    // A log file is read with other tools than a terminal.
    let is_colored = io::stderr().is_terminal();
    let (lines, written_out) = Lines::start(stderr::write).map_err(said)?;
    install(
        filter,
        tracing_subscriber::fmt::layer().with_ansi(is_colored).with_writer(lines.colored(is_colored)),
    )?;
    Ok(written_out)
}

/// Begins to log, in an engine, which has no thread to spare and no way to the journal's socket: its lines go
/// to the standard error that it shares with the broker, or nowhere if that is full.
pub fn start_in_engine(filter: &str) -> Result<(), String> {
    let text = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(|| ImpatientStderr);
    install(parse(filter)?, text)
}

/// What `REELD_LOG` says, or the default.
pub fn filter_of_environment() -> String {
    let named = std::env::var("REELD_LOG").ok().filter(|filter| !filter.trim().is_empty());
    named.unwrap_or_else(|| FILTER_DEFAULT.to_owned())
}

/// Fails with a sentence where this is no filter.
pub fn check(filter: &str) -> Result<(), String> {
    parse(filter).map(drop)
}

/// Logs by another filter from now on.
pub fn change_filter(filter: &str) -> Result<(), String> {
    let filter = parse(filter)?;
    match FILTER.get() {
        Some(handle) => handle.reload(filter).map_err(|error| error.to_string()),
        None => Err("this process does not log".into()),
    }
}

/// Lines that were dropped since the start because whoever reads the log did not.
pub fn dropped_count() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

fn note_dropped() {
    DROPPED.fetch_add(1, Ordering::Relaxed);
}

fn install(filter: EnvFilter, output: impl Layer<Filtered> + Send + Sync) -> Result<(), String> {
    let (filter, handle) = reload::Layer::new(filter);
    let logging = tracing_subscriber::registry().with(filter).with(output);
    logging.try_init().map_err(|error| error.to_string())?;
    let _ = FILTER.set(handle);
    Ok(())
}

type Filtered = tracing_subscriber::layer::Layered<reload::Layer<EnvFilter, Registry>, Registry>;

fn parse(filter: &str) -> Result<EnvFilter, String> {
    let refused = |error: &dyn std::fmt::Display| {
        format!("{filter:?} is no log filter ({error}); use error, warn, info, debug or trace")
    };
    let parsed = EnvFilter::builder().parse(filter).map_err(|error| refused(&error))?;
    let shown = format!("{STATE_TARGET}=info").parse().map_err(|error| refused(&error))?;
    Ok(parsed.add_directive(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_filter_applies_to_the_running_process_and_the_state_is_always_shown() {
        start_in_engine("error").unwrap();
        assert!(!tracing::enabled!(tracing::Level::WARN));
        assert!(tracing::enabled!(target: STATE_TARGET, tracing::Level::INFO));
        assert!(change_filter("reeld_daemon=loud").is_err());
        assert!(!tracing::enabled!(tracing::Level::WARN));
        change_filter("debug").unwrap();
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        change_filter("off").unwrap();
        assert!(!tracing::enabled!(tracing::Level::ERROR));
        assert!(tracing::enabled!(target: STATE_TARGET, tracing::Level::INFO));
    }

    #[test]
    fn filter_that_names_no_level_is_refused_with_what_to_write() {
        for filter in ["info", "warn,reeld_daemon::broker=debug", "off"] {
            assert_eq!(check(filter), Ok(()), "{filter}");
        }
        let refused = check("reeld_daemon=loud").unwrap_err();
        assert!(refused.contains("reeld_daemon=loud") && refused.contains("debug"), "{refused}");
    }
}
