"""Reading file-like objects into files without a name: the daemon reads files, and nothing else.

Which objects are read at all is decided in `_sources.py`; where the bytes lie, in the native module.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, SupportsIndex, cast

from reeld._native import Spool
from reeld.errors import ArgumentTypeError, InvalidRequestError, LimitReachedError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from reeld.decoders._sources import FileLike

SPOOL_LIMIT_BYTES = 4 << 30
"""What is read of one object at most, unless the caller or the environment says otherwise."""

_VARIABLE = "REELD_SPOOL_MAX_BYTES"
# Few calls of Python code, and no object in memory that a worker would notice.
_CHUNK_BYTES = 1 << 20

_limit_bytes: int | None = None
_progress: Callable[[int, int | None], object] | None = None


def set_spool_limit(limit_bytes: SupportsIndex | None) -> None:
    """Sets how large a file-like object may be that a decoder of this process is made from.

    Such an object is read as a whole when the decoder is made: up to 64 MiB into memory, what is larger into
    a file without a name in ``$TMPDIR``. The limit guards against objects without an end. It does not concern
    paths, files opened with ``open(path, "rb")``, bytes, arrays and tensors.

    Args:
        limit_bytes: At least 1; None for the environment variable ``REELD_SPOOL_MAX_BYTES``, or 4 GiB where
            it is not set.

    Raises:
        InvalidRequestError: It is below 1.
        ArgumentTypeError: It is not an integer.

    Example:
        >>> from reeld.decoders import VideoDecoder, set_spool_limit
        >>> class Reader:
        ...     def __init__(self, file):
        ...         self.read, self.seek = file.read, file.seek
        >>> with open(video_path, "rb") as file:
        ...     set_spool_limit(100)
        ...     VideoDecoder(Reader(file))
        Traceback (most recent call last):
        reeld.errors.LimitReachedError: ...
        >>> set_spool_limit(None)
    """
    global _limit_bytes
    if limit_bytes is None:
        _limit_bytes = None
        return
    try:
        limit = operator.index(limit_bytes)
    except TypeError:
        raise ArgumentTypeError(
            f"The limit must be a number of bytes, not {type(limit_bytes).__name__}."
        ) from None
    if limit < 1:
        raise InvalidRequestError(f"The limit must be at least 1 byte, not {limit}.")
    _limit_bytes = limit


def on_spool_progress(callback: Callable[[int, int | None], object] | None) -> None:
    """Has a function called while file-like objects are read, for a progress bar.

    Args:
        callback: Called as ``callback(read_bytes, total_bytes)`` after each MiB or so and at the end, in the
            thread that makes the decoder. The total is None where the object does not tell. An exception that
            it raises ends the reading and comes out of the decoder's constructor. None: no function any more.

    Example:
        >>> from reeld.decoders import VideoDecoder, on_spool_progress
        >>> class Reader:
        ...     def __init__(self, file):
        ...         self.read, self.seek = file.read, file.seek
        >>> seen = []
        >>> on_spool_progress(lambda read_bytes, total_bytes: seen.append((read_bytes, total_bytes)))
        >>> with open(video_path, "rb") as file:
        ...     decoder = VideoDecoder(Reader(file))
        >>> on_spool_progress(None)
        >>> read_bytes, total_bytes = seen[-1]
        >>> read_bytes == total_bytes
        True
    """
    global _progress
    _progress = callback


def spool(source: FileLike) -> Spool:
    """All bytes of a file-like object, from its begin to its end.

    Raises:
        LimitReachedError: There are more than are allowed.
        ArgumentTypeError: It reads something else than bytes.
        Exception: Whatever the object itself raises.
    """
    limit, progress = _limit(), _progress
    total = _total_bytes(source)
    # Without a look at the result: all that matters is where the next read begins.
    source.seek(0, os.SEEK_SET)
    if total is not None and total > limit:
        raise _too_large(limit, f"{total} bytes")
    content = Spool()
    if total is not None:
        content.expect_bytes(total)
    read_bytes = 0
    while chunk := _checked(source.read(_CHUNK_BYTES)):
        if read_bytes + len(chunk) > limit:
            raise _too_large(limit, f"more than {read_bytes} bytes")
        read_bytes += content.write(chunk)
        if progress is not None:
            progress(read_bytes, total)
    return content


def _total_bytes(source: FileLike) -> int | None:
    """The length, of objects that can tell it; the others are read until they end."""
    try:
        total = source.seek(0, os.SEEK_END)
    except Exception:
        # Such as streams that are unpacked on the way. What cannot seek at all says so again at once.
        return None
    return total if isinstance(total, int) and total >= 0 else None


def _checked(chunk: object) -> memoryview:
    try:
        view = memoryview(cast("Buffer", chunk))
    except TypeError:
        raise ArgumentTypeError(
            f"The source's read() returned {type(chunk).__name__} instead of bytes. "
            "Was it meant for binary reading?"
        ) from None
    return view.cast("B") if view.nbytes else memoryview(b"")


def _limit() -> int:
    if _limit_bytes is not None:
        return _limit_bytes
    text = os.environ.get(_VARIABLE)
    if not text:
        return SPOOL_LIMIT_BYTES
    try:
        limit = int(text)
    except ValueError:
        limit = 0
    if limit < 1:
        raise InvalidRequestError(f"{_VARIABLE}={text!r}: it must be a number of bytes, at least 1.")
    return limit


def _too_large(limit: int, found: str) -> LimitReachedError:
    return LimitReachedError(
        f"The source has {found}, over the limit of {limit} for file-like objects: pass a path, or raise the "
        f"limit with reeld.decoders.set_spool_limit() or {_VARIABLE}."
    )
