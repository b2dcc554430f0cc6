//! [`offload`]: a blocking call as a future, on a thread of its own.
//!
//! For what happens rarely, such as connecting. Requests for frames need no thread.

use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use crate::error::Error;
use crate::threads;

struct State<T> {
    result: Option<Result<T, Error>>,
    waker: Option<Waker>,
}

/// Runs `call` on a new thread, from the first poll on. Dropping the future lets the call run to its end.
pub(crate) fn offload<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> impl Future<Output = Result<T, Error>> + Send {
    let state = Arc::new(Mutex::new(State { result: None, waker: None }));
    let mut call = Some(call);
    poll_fn(move |context| {
        if let Some(call) = call.take() {
            let theirs = Arc::clone(&state);
            let run = move || finish(&theirs, call());
            if let Err(error) = threads::spawn("reeld-offload", run) {
                return Poll::Ready(Err(Error::LimitReached(format!("no thread could be started: {error}"))));
            }
        }
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    })
}

fn finish<T>(state: &Mutex<State<T>>, result: Result<T, Error>) {
    let waker = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.result = Some(result);
        state.waker.take()
    };
    if let Some(waker) = waker {
        waker.wake();
    }
}
