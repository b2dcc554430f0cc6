//! [`Ask`]: what a call asks for, kept so that it can be said again to another daemon.
//!
//! When it is sent, and how often, is decided in `errand.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reeld_protocol::frame::OutgoingFd;
use reeld_protocol::message::{GetFrames, GetKeyFrames, OpenSource, Part, Request, SeekMode, Wanted};
use reeld_protocol::{SourceId, StreamIndex};

use crate::bulk::Bulk;
use crate::calls::Expected;
use crate::connection::Connection;
use crate::error::Error;
use crate::mapping::FrameMapping;
use crate::options::OpenOptions;
use crate::source::SourceFile;
use crate::ticket::Ticket;
use crate::video::Video;

/// A request in the words of this side: it names videos, not what one connection calls them.
pub(crate) enum Ask {
    Open {
        file: SourceFile,
        options: Box<OpenOptions>,
    },
    Frames {
        parts: Vec<(Video, Wanted)>,
        priority: i8,
    },
    Status,
    /// From this frame on.
    KeyFrames {
        video: Video,
        from: u64,
    },
    Redeem(Ticket),
}

/// A request as one connection understands it, with its descriptors.
pub(crate) type Said = (Request, Vec<OutgoingFd>);

impl Ask {
    /// Which answer may come.
    pub(crate) fn expected(&self) -> Expected {
        match self {
            Ask::Open { .. } => Expected::SourceOpened,
            Ask::Frames { parts, .. } => {
                Expected::Frames(parts.iter().map(|(video, _)| video.dtype()).collect())
            }
            Ask::Status => Expected::Status,
            Ask::KeyFrames { .. } => Expected::KeyFrames,
            Ask::Redeem(ticket) => Expected::Redeemed(ticket.parts.clone()),
        }
    }

    /// The request, if nothing needs to be opened on this connection first. Never waits.
    pub(crate) fn say_at_once(
        &self,
        connection: &Arc<Connection>,
        deadline: Option<Instant>,
    ) -> Option<Result<Said, Error>> {
        let source = |video: &Video| video.source_at_once(connection).ok_or(NotOpen);
        self.sources(source).ok().map(|sources| self.say(connection, sources, deadline))
    }

    /// The request, after its videos were opened on this connection. May wait for the daemon, as long as
    /// `is_wanted` says so.
    pub(crate) fn say_after_opening(
        &self,
        connection: &Arc<Connection>,
        deadline: Option<Instant>,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Said, Error> {
        if let Ask::Open { file, .. } = self {
            file.check_unchanged()?;
        }
        let sources = self.sources(|video| video.source_on(connection, is_wanted))?;
        self.say(connection, sources, deadline)
    }

    fn sources<E>(&self, source: impl Fn(&Video) -> Result<SourceId, E>) -> Result<Vec<SourceId>, E> {
        match self {
            Ask::Frames { parts, .. } => parts.iter().map(|(video, _)| source(video)).collect(),
            Ask::KeyFrames { video, .. } => Ok(vec![source(video)?]),
            Ask::Open { .. } | Ask::Status | Ask::Redeem(_) => Ok(Vec::new()),
        }
    }

    fn say(
        &self,
        connection: &Connection,
        sources: Vec<SourceId>,
        deadline: Option<Instant>,
    ) -> Result<Said, Error> {
        match self {
            Ask::Open { file, options } => Ok(open_source(file, options)),
            Ask::Status => Ok((Request::Status, Vec::new())),
            &Ask::KeyFrames { from, .. } => {
                let only = sources.first().copied();
                let source = only.ok_or_else(|| Error::Protocol("a request without its video".into()))?;
                Ok((Request::GetKeyFrames(GetKeyFrames { source, from }), Vec::new()))
            }
            Ask::Redeem(ticket) if ticket.instance != connection.welcome().instance => {
                let message = "these frames are lost: the daemon that kept them was restarted, or their ticket is \
                               of another daemon";
                Err(Error::FramesLost(message.into()))
            }
            Ask::Redeem(ticket) => Ok((Request::RedeemTicket(ticket.number), Vec::new())),
            Ask::Frames { parts, priority } => {
                let bulk = Bulk::new(parts.iter().map(|(_, wanted)| wanted));
                bulk.check_quota(connection.ledger().quota_bytes())?;
                let (wanted, fds) = bulk.place()?;
                let part = |(((video, _), source), wanted): ((&(Video, Wanted), SourceId), Wanted)| Part {
                    source,
                    wanted,
                    dtype: video.dtype(),
                    transforms: video.transforms().to_vec(),
                };
                let parts = parts.iter().zip(sources).zip(wanted).map(part).collect();
                let timeout_millis = deadline.map(millis_until);
                Ok((Request::GetFrames(GetFrames { parts, priority: *priority, timeout_millis }), fds))
            }
        }
    }
}

/// A video is not open on the connection, or somebody is just opening it.
struct NotOpen;

/// Opens a source.
pub(crate) fn open_source(file: &SourceFile, options: &OpenOptions) -> Said {
    let request = Request::OpenSource(OpenSource {
        label: file.label.clone(),
        stream: options.stream.map(StreamIndex),
        seek_mode: if options.mapping.is_some() { SeekMode::Mapped } else { options.seek_mode },
        is_memory: file.is_memory,
        thread_count: options.thread_count,
    });
    let mapping = options.mapping.as_ref().map(FrameMapping::memory);
    (request, std::iter::once(Arc::clone(&file.fd)).chain(mapping).collect())
}

/// What is left until a deadline, as it travels: whole milliseconds, rounded up so that a short time is
/// not none.
pub(crate) fn millis_until(deadline: Instant) -> u64 {
    millis(deadline.saturating_duration_since(Instant::now()))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_below_a_millisecond_is_one_millisecond() {
        assert_eq!(millis(Duration::from_micros(1)), 1);
        assert_eq!(millis(Duration::ZERO), 0);
        assert_eq!(millis(Duration::MAX), u64::MAX);
    }

    #[test]
    fn nothing_is_left_after_a_deadline() {
        assert_eq!(millis_until(Instant::now()), 0);
    }
}
