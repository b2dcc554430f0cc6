//! How a connection begins: connecting to a path, Hello, and the daemon's answer to it.
//!
//! Which paths are tried is decided in `locate.rs`.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeld_protocol::message::kind;
use reeld_protocol::{
    Frame, FrameError, FrameReader, Hello, Outbox, Received, Refusal, RefusalCause, VERSION_MAJOR,
    VERSION_MINOR, Welcome,
};
use rustix::net::{RecvFlags, SendFlags};

use crate::error::Error;
use crate::link::Link;
use crate::socket::Socket;

/// How long a daemon may take to answer Hello. A healthy one takes microseconds; one that has just been
/// started on a busy machine may take seconds.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How a daemon at one path answers.
pub(crate) enum Dialled {
    /// It does.
    Connected(Arc<Link>),
    /// Nobody listens there, or it is just going away. The text says which.
    NobodyThere(String),
    /// Somebody may be there, but this process may not connect.
    NotPermitted,
    /// Somebody listens who does not answer. The text says how.
    Silent(String),
}

/// Connects and shakes hands. Waits at most that long for the answer, and never longer than
/// [`ANSWER_TIMEOUT`].
pub(crate) fn dial(path: &Path, name: &str, patience: Duration) -> Result<Dialled, Error> {
    let patience = patience.min(ANSWER_TIMEOUT);
    let stream = match reeld_protocol::socket::connect(path, patience) {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound => Ok(Dialled::NobodyThere("there is no socket".into())),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
                    Ok(Dialled::NobodyThere("nobody listens".into()))
                }
                io::ErrorKind::PermissionDenied => Ok(Dialled::NotPermitted),
                io::ErrorKind::WouldBlock => {
                    Ok(Dialled::Silent("it does not take further connections at this moment".into()))
                }
                _ => Err(Error::unavailable(format!("cannot connect to {}: {error}", path.display()))),
            };
        }
    };
    match shake_hands(stream, name, patience) {
        Ok(link) => Ok(Dialled::Connected(link)),
        Err(Failure::WentAway) => Ok(Dialled::NobodyThere("the daemon there is stopping".into())),
        Err(Failure::Refused(refusal)) => {
            let reason = format!("the daemon at {} refuses: {}", path.display(), refusal.reason);
            // A daemon of one's own would only go round the limit.
            Err(match refusal.cause {
                RefusalCause::Limit => Error::LimitReached(reason),
                _ => Error::unavailable(reason),
            })
        }
        Err(Failure::Silent) => {
            Ok(Dialled::Silent(format!("no greeting within {} s", patience.as_secs_f64())))
        }
        Err(Failure::Io(error)) => {
            Err(Error::unavailable(format!("the daemon at {} does not answer: {error}", path.display())))
        }
        Err(Failure::Broken(reason)) => Err(Error::Protocol(format!("{} ({})", reason, path.display()))),
    }
}

enum Failure {
    WentAway,
    Silent,
    Refused(Refusal),
    Io(io::Error),
    Broken(String),
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Self {
        Failure::Broken(error.to_string())
    }
}

fn shake_hands(stream: UnixStream, name: &str, patience: Duration) -> Result<Arc<Link>, Failure> {
    let hello = Hello {
        major: VERSION_MAJOR,
        minor_min: 0,
        minor_max: VERSION_MINOR,
        features: 0,
        name: format!("{name} {}", std::process::id()),
    };
    let socket = Socket::new(stream).map_err(Failure::Io)?;
    let mut outbox = Outbox::new();
    outbox.push_raw(kind::HELLO, 0, &hello.to_bytes(), Vec::new());
    match outbox.send(&socket, SendFlags::empty()) {
        Ok(()) => {}
        // A daemon that refuses at once has closed already; its reason lies there to be read.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
        Err(error) => return Err(Failure::Io(error)),
    }
    let mut reader = FrameReader::new();
    let answer = await_answer(&socket, &mut reader, patience)?;
    match answer.header.kind {
        kind::WELCOME => {
            let welcome = Welcome::from_bytes(&answer.body)?;
            if welcome.major != VERSION_MAJOR || welcome.minor > VERSION_MINOR {
                return Err(Failure::Broken("it welcomes with a version that was not offered".into()));
            }
            Ok(Link::new(socket, welcome, reader))
        }
        kind::REFUSAL => Err(Failure::Refused(Refusal::from_bytes(&answer.body)?)),
        other => Err(Failure::Broken(format!("it answers Hello with a message of kind {other}"))),
    }
}

fn await_answer(socket: &Socket, reader: &mut FrameReader, patience: Duration) -> Result<Frame, Failure> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(frame) = reader.next_frame()? {
            return Ok(frame);
        }
        match reader.receive(socket, RecvFlags::empty()) {
            Ok(Received::Bytes) => {}
            Ok(Received::Closed) => return Err(Failure::WentAway),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {
                    if Instant::now() > deadline {
                        return Err(Failure::Silent);
                    }
                }
                io::ErrorKind::ConnectionReset => return Err(Failure::WentAway),
                _ => return Err(Failure::Io(error)),
            },
        }
    }
}
