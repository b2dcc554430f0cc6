//! systemd's journal as a place for the log: each event becomes one datagram in the journal's native protocol,
//! its fields prefixed `REELD_`.
//!
//! `tracing-journald` speaks the same protocol, but sends from the thread that logs and waits where the journal
//! does not read; here the datagram goes through the same queue as text.

use std::env;
use std::fmt::{Debug, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::lines::{Lines, one_line};

/// Where journald listens; systemd holds the socket open while journald is started again.
const SOCKET: &str = "/run/systemd/journal/socket";

/// The longest value of a field.
const VALUE_BYTES_MAX: usize = 1024;

/// The most fields of one event.
const FIELDS_MAX: usize = 32;

/// The journal's socket.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// The journal, if systemd has connected this process's standard error to it.
    pub fn of_this_process() -> Option<Journal> {
        let stream = env::var("JOURNAL_STREAM").ok()?;
        let stderr = rustix::fs::fstat(io::stderr()).ok()?;
        if !names(&stream, stderr.st_dev, stderr.st_ino) {
            return None;
        }
        let journal = Journal { socket: UnixDatagram::unbound().ok()?, path: SOCKET.into() };
        journal.path.exists().then_some(journal)
    }

    /// Sends one entry, however long it takes.
    pub fn send(&self, entry: &[u8]) -> io::Result<()> {
        self.socket.send_to(entry, &self.path).map(drop)
    }
}

/// True where `JOURNAL_STREAM`, which is `device:inode`, means this file.
fn names(stream: &str, device: u64, inode: u64) -> bool {
    let numbers = stream.split_once(':');
    numbers.is_some_and(|(one, two)| one.parse() == Ok(device) && two.parse() == Ok(inode))
}

/// Makes an entry of each event.
#[derive(Debug)]
pub struct JournalLayer {
    lines: Lines,
}

impl JournalLayer {
    /// Entries go there.
    pub fn new(lines: Lines) -> JournalLayer {
        JournalLayer { lines }
    }
}

impl<S: Subscriber> Layer<S> for JournalLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        self.lines.push(entry.to_bytes(*event.metadata().level(), event.metadata().target()));
    }
}

/// An event's message and its other fields.
#[derive(Debug, Default)]
struct Entry {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.note(field.name(), format!("{value:?}"));
    }
}

impl Entry {
    fn note(&mut self, name: &'static str, mut value: String) {
        if name == "message" {
            self.message = value;
        } else if self.fields.len() < FIELDS_MAX {
            let mut end = value.len().min(VALUE_BYTES_MAX);
            while !value.is_char_boundary(end) {
                end -= 1;
            }
            value.truncate(end);
            self.fields.push((name, value));
        }
    }

    /// The datagram. The message shows the fields too: `journalctl` without options prints nothing else.
    fn to_bytes(&self, level: Level, target: &str) -> Vec<u8> {
        let mut message = self.message.clone();
        for (name, value) in &self.fields {
            let _ = write!(message, " {name}={value}");
        }
        let mut bytes = Vec::with_capacity(256);
        put(&mut bytes, "PRIORITY", priority(level));
        put(&mut bytes, "SYSLOG_IDENTIFIER", "reeld");
        put(&mut bytes, "MESSAGE", &one_line(&message, false));
        put(&mut bytes, "REELD_TARGET", target);
        for (name, value) in &self.fields {
            put(&mut bytes, &field_name(name), value);
        }
        bytes
    }
}

/// The number that syslog has for a level. Not one higher for `info`, which would be shown in bold.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// The journal takes capital letters, digits and underscores.
fn field_name(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("REELD_{}", name.chars().map(allowed).collect::<String>())
}

/// `NAME=value` and a line feed; where the value has line feeds of its own, the name, the value's length and
/// the value.
fn put(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend(name.as_bytes());
    if value.contains('\n') {
        bytes.push(b'\n');
        bytes.extend((value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend(value.as_bytes());
    bytes.push(b'\n');
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// The datagrams that the events of `work` become.
    fn sent_by(work: impl FnOnce()) -> Vec<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let receiver = UnixDatagram::bind(&path).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let journal = Journal { socket: UnixDatagram::unbound().unwrap(), path };
        let (lines, written_out) = Lines::start(move |entry| journal.send(entry)).unwrap();
        let logging = tracing_subscriber::registry().with(JournalLayer::new(lines));
        tracing::subscriber::with_default(logging, work);
        drop(written_out);
        let mut buffer = vec![0; 1 << 16];
        std::iter::from_fn(|| receiver.recv(&mut buffer).ok().map(|count| buffer[..count].to_vec())).collect()
    }

    #[test]
    fn event_becomes_one_datagram_with_prefixed_fields() {
        let sent = sent_by(|| tracing::info!(client = 3, name = "py 7", is_busy = true, "client connected"));
        let expected = format!(
            "PRIORITY=6\nSYSLOG_IDENTIFIER=reeld\nMESSAGE=client connected client=3 name=py 7 is_busy=true\n\
             REELD_TARGET={}\nREELD_CLIENT=3\nREELD_NAME=py 7\nREELD_IS_BUSY=true\n",
            module_path!()
        );
        assert_eq!(sent, [expected.into_bytes()]);
    }

    #[test]
    fn value_with_line_feeds_makes_no_field() {
        let sent = sent_by(|| tracing::warn!(label = "a\nPRIORITY=0", "odd"));
        let text = sent[0].as_slice();
        let value = b"REELD_LABEL\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n";
        assert!(text.ends_with(value), "{}", String::from_utf8_lossy(text));
        assert!(text.starts_with(b"PRIORITY=4\nSYSLOG_IDENTIFIER=reeld\nMESSAGE=odd label=a\\nPRIORITY=0\n"));
    }

    #[test]
    fn only_the_stream_that_systemd_made_is_the_journal() {
        assert!(names("8:123", 8, 123));
        for stream in ["8:124", "9:123", "8", "", "8:123:1", "a:b"] {
            assert!(!names(stream, 8, 123), "{stream}");
        }
    }
}
