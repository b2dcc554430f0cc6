//! Waiting for the daemon: without the GIL, and so that Ctrl-C ends it.
//!
//! What is waited for is not known here.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use reeld_client::{Error, Frames, Opening, Pending, RequestOptions, Video, Wanted};

use crate::error::exception;

/// How long a wait lasts before it asks whether a signal came. A person takes 50 ms for at once; asking
/// more often only costs.
const SLICE: Duration = Duration::from_millis(50);

/// Asks for frames; waits while many requests wait to be sent. There is at least one part.
pub(crate) fn submit_interruptibly(
    py: Python<'_>,
    parts: &[(&Video, Wanted)],
    priority: i8,
    timeout: Option<Duration>,
) -> PyResult<Pending> {
    let Some((first, _)) = parts.first() else {
        return Err(exception(&Error::InvalidRequest("there are no parts to ask for".into())));
    };
    let began = Instant::now();
    loop {
        let timeout = timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
        let options = RequestOptions { priority, timeout };
        let submitted = py.detach(|| first.client().submit_within(parts, options, SLICE));
        match submitted.map_err(|error| exception(&error))? {
            Some(pending) => return Ok(pending),
            None if timeout.is_some_and(|timeout| timeout.is_zero()) => {
                let message = "the deadline of the request passed while earlier ones waited to be sent";
                return Err(exception(&Error::Deadline(message.into())));
            }
            None => py.check_signals()?,
        }
    }
}

/// The frames, however long it takes. An interrupted wait cancels the request.
pub(crate) fn wait_for_frames(py: Python<'_>, pending: &Pending) -> PyResult<Frames> {
    loop {
        if let Some(frames) = wait_for_slice(py, pending, SLICE)? {
            return Ok(frames);
        }
    }
}

/// The video, however long it takes. An interrupted wait leaves it closed.
pub(crate) fn wait_for_opening(py: Python<'_>, opening: &Opening) -> PyResult<Video> {
    loop {
        if let Some(video) = py.detach(|| opening.wait_timeout(SLICE)) {
            return video.map_err(|error| exception(&error));
        }
        py.check_signals()?;
    }
}

/// The frames; none where they are not there at the deadline. An interrupted wait cancels the request.
pub(crate) fn wait_until(py: Python<'_>, pending: &Pending, deadline: Instant) -> PyResult<Option<Frames>> {
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let frames = wait_for_slice(py, pending, remaining.min(SLICE))?;
        if frames.is_some() || remaining.is_zero() {
            return Ok(frames);
        }
    }
}

fn wait_for_slice(py: Python<'_>, pending: &Pending, slice: Duration) -> PyResult<Option<Frames>> {
    let frames = py.detach(|| pending.wait_timeout(slice)).map_err(|error| exception(&error))?;
    if frames.is_none() {
        py.check_signals().inspect_err(|_| pending.cancel())?;
    }
    Ok(frames)
}

/// What a call of the client gives that cannot be left before its end: it is made in a thread of its own,
/// which an interrupted wait leaves behind. Meant for calls of milliseconds and more, such as opening a file.
pub(crate) fn interruptibly<T: Send + 'static>(
    py: Python<'_>,
    call: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> PyResult<T> {
    let (sender, mut receiver) = mpsc::sync_channel(1);
    // An interrupted caller has dropped the receiver, and nobody wants the result any more.
    let thread = move || drop(sender.send(call()));
    thread::Builder::new().name("reeld-call".into()).spawn(thread)?;
    loop {
        // Moved in and out again: `detach` takes nothing by reference that other threads must not use.
        let received;
        (receiver, received) = py.detach(move || {
            let received = receiver.recv_timeout(SLICE);
            (receiver, received)
        });
        match received {
            Ok(result) => return result.map_err(|error| exception(&error)),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err("The thread that talks to the daemon panicked."));
            }
        }
    }
}
