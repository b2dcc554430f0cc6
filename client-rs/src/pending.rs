//! [`Pending`]: frames on their way, to be waited for, awaited or cancelled.
//!
//! Who reads the socket meanwhile is `link.rs`'s matter.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::call::Call;
use crate::calls::{Answer, Outcome};
use crate::error::Error;
use crate::frames::Frames;

/// A request for frames that was sent and may not be answered yet.
///
/// Wait for it with [`Pending::wait`], or `.await` it: it is a `Future` that needs no particular runtime.
/// Dropping it cancels the request and gives back what it brings.
///
/// Where the daemon goes away meanwhile, the request is made again by itself as soon as there is one.
#[must_use = "dropping it cancels the request"]
pub struct Pending {
    call: Call,
}

impl Pending {
    pub(crate) fn new(call: Call) -> Pending {
        Pending { call }
    }

    /// Waits for the frames.
    ///
    /// # Errors
    /// What the daemon says of the request; [`Error::DaemonUnavailable`] if it goes away meanwhile and is not
    /// back in time; [`Error::Deadline`].
    pub fn wait(self) -> Result<Frames, Error> {
        frames_of(self.call.wait())
    }

    /// Waits for the frames, at most that long. None where they are not there by then, and also where a
    /// signal came: then look after it and call again. The frames are given once: a later call is an
    /// [`Error::InvalidRequest`].
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn wait_timeout(&self, patience: Duration) -> Result<Option<Frames>, Error> {
        self.call.wait_timeout(patience).map(frames_of).transpose()
    }

    /// True if waiting will not take time. Reads what has come meanwhile.
    pub fn is_done(&self) -> bool {
        self.call.is_done()
    }

    /// Asks the daemon to give up. The request still ends as others do: with [`Error::Cancelled`], or with
    /// its frames if they were faster.
    pub fn cancel(&self) {
        self.call.cancel();
    }
}

impl Future for Pending {
    type Output = Result<Frames, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.call.poll(context).map(frames_of)
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

fn frames_of(outcome: Outcome) -> Result<Frames, Error> {
    match outcome? {
        Answer::Frames(frames) => Ok(frames),
        // The link lets only the expected kind through.
        Answer::SourceOpened(_) | Answer::Status(_) | Answer::KeyFrames(_) | Answer::Ticket(_) => {
            Err(Error::Protocol("an answer of another kind".into()))
        }
    }
}
