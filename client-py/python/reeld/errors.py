"""The exceptions of this package: one class per thing that a caller would do differently.

Each class also inherits the builtin exception that TorchCodec raises in that case, so that existing
``except`` clauses keep working. Which of the daemon's errors becomes which class is decided in the native
module, not here.
"""


class ReeldError(Exception):
    """Anything that this package raises on purpose."""


class InvalidRequestError(ReeldError, ValueError):
    """An argument is wrong: its sentence says which, and what is allowed."""


class ArgumentTypeError(InvalidRequestError, TypeError, RuntimeError):
    """An argument has a type that cannot be used.

    TorchCodec raises ``TypeError``, ``ValueError`` or, from its operators, ``RuntimeError`` for this,
    depending on the method. This class is all three.
    """


class FrameIndexError(ReeldError, IndexError, RuntimeError):
    """A frame index outside the stream, or behind the last frame that there is, whatever the header says.

    TorchCodec raises ``IndexError`` for the former and ``RuntimeError`` for the latter. This class is both.
    """


class RangeError(InvalidRequestError, FrameIndexError, RuntimeError):
    """A time, a range of frames, a frame rate or a stream's number that is outside what there is.

    TorchCodec raises ``IndexError``, ``ValueError`` or ``RuntimeError`` for this, depending on the method.
    This class is all three.
    """


class MediaError(ReeldError, RuntimeError):
    """The file cannot be read as video: it is missing, damaged, or in a format that FFmpeg does not know."""


class SourceChangedError(ReeldError, RuntimeError):
    """The file was changed after the decoder had opened it: make a new decoder."""


class UnsupportedError(ReeldError, RuntimeError):
    """This package or the daemon cannot do that, whatever the file."""


class NoSlotsError(ReeldError, RuntimeError):
    """The frames do not fit into the memory that the daemon grants this process.

    Either the request alone is larger than the quota, or frames that are still alive fill it.
    """


class DeadlineError(ReeldError, TimeoutError):
    """The frames were not ready before the request's own deadline."""


class CancelledError(ReeldError):
    """The request was cancelled."""


class DecoderCrashedError(ReeldError, RuntimeError):
    """The decoder crashed on this file, and again when it was retried."""


class LimitReachedError(ReeldError, RuntimeError):
    """Another limit than that of memory was reached, such as open videos or requests in flight."""


class FramesLostError(ReeldError, RuntimeError):
    """Frames that another process handed over are lost.

    They were taken over already, the processes that they depended on have ended, or the daemon was restarted.
    Frames that a process got from a queue and that are lost are objects of their class all the same, and
    raise this where they are used: ``data``, the times, indexing, iterating. So a ``DataLoader`` goes on:
    whoever catches it may leave out that batch and take the next.
    """


class InternalError(ReeldError, RuntimeError):
    """The daemon made a mistake; its log has the details."""


class DaemonUnavailableError(ReeldError, ConnectionError):
    """No daemon answers, none could be started, or it refuses this process.

    Where a daemon went away, calls look for it for some time before they raise this: see ``reeld.connect``.
    """
