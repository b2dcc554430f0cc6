//! [`Lines`]: a bounded queue of log lines and the thread that writes them.
//!
//! Where to is the caller's choice.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait to be written: a dump of the state, twice over. A line has about 200 bytes.
const LINES_MAX: usize = 2048;

/// The longest line: it fits into any datagram, and 2048 of them into what a daemon may spend on a reader that
/// is stuck.
pub const LINE_BYTES_MAX: usize = 4096;

/// What is queued at the end has so long to be written.
const WRITTEN_OUT_WITHIN: Duration = Duration::from_millis(500);

/// Takes lines and never waits.
#[derive(Clone, Debug)]
pub struct Lines {
    queue: SyncSender<Vec<u8>>,
    is_colored: bool,
}

/// Held as long as there is something to log. Dropping it waits, not for ever, until all is written.
#[derive(Debug)]
pub struct WrittenOut {
    queue: SyncSender<Vec<u8>>,
    is_over: Arc<AtomicBool>,
    done: Receiver<()>,
}

impl Lines {
    /// Starts the thread. A line that `write` fails for counts as dropped.
    pub fn start(
        write: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
    ) -> io::Result<(Lines, WrittenOut)> {
        let (queue, lines) = mpsc::sync_channel(LINES_MAX);
        let (say_done, done) = mpsc::sync_channel(1);
        let is_over = Arc::new(AtomicBool::new(false));
        std::thread::Builder::new().name("reeld-log".into()).spawn({
            let is_over = Arc::clone(&is_over);
            move || {
                write_all(&lines, &is_over, write);
                let _ = say_done.try_send(());
            }
        })?;
        Ok((Lines { queue: queue.clone(), is_colored: false }, WrittenOut { queue, is_over, done }))
    }

    /// Lets the subscriber's colours through, for a terminal.
    pub fn colored(self, is_colored: bool) -> Lines {
        Lines { is_colored, ..self }
    }

    /// Queues a line, or drops it where there is no room.
    pub fn push(&self, line: Vec<u8>) {
        if self.queue.try_send(line).is_err() {
            super::note_dropped();
        }
    }
}

/// Writes what comes until it is over and nothing is left.
fn write_all(
    lines: &Receiver<Vec<u8>>,
    is_over: &AtomicBool,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) {
    loop {
        let line = match lines.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Empty) if is_over.load(Ordering::Acquire) => return,
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => match lines.recv() {
                Ok(line) => line,
                Err(_) => return,
            },
        };
        // An empty line is said at the end, to wake this thread.
        if !line.is_empty() && write(&line).is_err() {
            super::note_dropped();
        }
    }
}

impl Drop for WrittenOut {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        // Where there is no room for it, the thread is awake.
        let _ = self.queue.try_send(Vec::new());
        let _ = self.done.recv_timeout(WRITTEN_OUT_WITHIN);
    }
}

/// The subscriber writes each event at once, as one text with a line feed behind it.
impl Write for Lines {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let mut line = one_line(&String::from_utf8_lossy(text), self.is_colored);
        line.push('\n');
        self.push(line.into_bytes());
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

/// The text as one line: whatever a client, a file or FFmpeg put into it, it cannot look like two. Escape
/// sequences may stay, for a terminal: those that the subscriber did not make itself it has escaped.
pub fn one_line(text: &str, keeps_escapes: bool) -> String {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let mut line = String::with_capacity(text.len() + 1);
    for character in text.chars() {
        if line.len() >= LINE_BYTES_MAX - 16 {
            line.push('…');
            break;
        }
        if is_harmless(character) || (keeps_escapes && character == '\u{1b}') {
            line.push(character);
        } else {
            line.extend(character.escape_default());
        }
    }
    line
}

/// Neither a control character nor one that some readers take for the end of a line.
fn is_harmless(character: char) -> bool {
    !character.is_control() && !matches!(character, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn all_that_is_queued_is_written_in_order_before_the_end() {
        let (written, seen) = channel();
        let (lines, written_out) = Lines::start(move |line| {
            written.send(line.to_vec()).unwrap();
            Ok(())
        })
        .unwrap();
        for number in 0..100_u8 {
            lines.push(vec![b'a', number]);
        }
        drop(written_out);
        assert_eq!(seen.try_iter().map(|line| line[1]).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn writer_that_is_stuck_costs_lines_and_nobody_waits() {
        let (go_on, stuck) = channel::<()>();
        let (lines, _written_out) = Lines::start(move |_| {
            let _ = stuck.recv();
            Ok(())
        })
        .unwrap();
        let before = super::super::dropped_count();
        for _ in 0..LINES_MAX + 100 {
            lines.push(vec![b'a']);
        }
        // One line at most is with the writer.
        assert!(super::super::dropped_count() - before >= 99);
        drop(go_on);
    }

    #[test]
    fn text_with_line_feeds_and_controls_is_one_line() {
        let forged = "a\nERROR b\r\u{1b}[2Jc\u{85}d\u{2028}e\n";
        assert_eq!(one_line(forged, false), "a\\nERROR b\\r\\u{1b}[2Jc\\u{85}d\\u{2028}e");
        assert_eq!(one_line("\u{1b}[32m INFO\u{1b}[0m ü\n", true), "\u{1b}[32m INFO\u{1b}[0m ü");
    }

    #[test]
    fn line_that_is_too_long_is_cut() {
        let line = one_line(&"ü".repeat(LINE_BYTES_MAX), false);
        assert!(line.len() <= LINE_BYTES_MAX && line.ends_with('…'), "{}", line.len());
    }
}
