//! Which of the client's errors becomes which Python exception. This is the only place that decides it.
//!
//! The exception classes are not defined here but in `python/reeld/errors.py`.

use pyo3::PyErr;
use reeld_client::Error;

mod classes {
    //! Imported when the first of them is raised.

    use pyo3::import_exception;

    import_exception!(reeld.errors, CancelledError);
    import_exception!(reeld.errors, DaemonUnavailableError);
    import_exception!(reeld.errors, DeadlineError);
    import_exception!(reeld.errors, DecoderCrashedError);
    import_exception!(reeld.errors, FrameIndexError);
    import_exception!(reeld.errors, FramesLostError);
    import_exception!(reeld.errors, InternalError);
    import_exception!(reeld.errors, InvalidRequestError);
    import_exception!(reeld.errors, LimitReachedError);
    import_exception!(reeld.errors, MediaError);
    import_exception!(reeld.errors, NoSlotsError);
    import_exception!(reeld.errors, RangeError);
    import_exception!(reeld.errors, SourceChangedError);
    import_exception!(reeld.errors, UnsupportedError);
}

/// The exception for sizes that do not fit each other, which TorchCodec takes for several things.
pub(crate) fn range_error(error: &Error) -> PyErr {
    classes::RangeError::new_err(error.to_string())
}

/// The exception for an error, with its sentence.
pub(crate) fn exception(error: &Error) -> PyErr {
    let sentence = error.to_string();
    match error {
        Error::InvalidRequest(_) => classes::InvalidRequestError::new_err(sentence),
        Error::FrameIndex(_) => classes::FrameIndexError::new_err(sentence),
        Error::TimeOutOfRange(_) => classes::RangeError::new_err(sentence),
        // TorchCodec has FFmpeg open the file, so a missing one is no different from a broken one.
        Error::Media(_) | Error::Io { .. } => classes::MediaError::new_err(sentence),
        Error::SourceChanged(_) => classes::SourceChangedError::new_err(sentence),
        Error::Unsupported(_) => classes::UnsupportedError::new_err(sentence),
        Error::NoSlots(_) => classes::NoSlotsError::new_err(sentence),
        Error::Deadline(_) => classes::DeadlineError::new_err(sentence),
        Error::Cancelled(_) => classes::CancelledError::new_err(sentence),
        Error::DecoderCrashed(_) => classes::DecoderCrashedError::new_err(sentence),
        Error::DaemonUnavailable { .. } => classes::DaemonUnavailableError::new_err(sentence),
        Error::FramesLost(_) => classes::FramesLostError::new_err(sentence),
        Error::LimitReached(_) => classes::LimitReachedError::new_err(sentence),
        Error::Internal(_) | Error::Protocol(_) => classes::InternalError::new_err(sentence),
    }
}
