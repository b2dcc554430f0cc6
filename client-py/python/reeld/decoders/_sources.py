"""What a decoder can be made from: a path or the bytes of a file.

The file is opened by the native module, and only its descriptor reaches the daemon.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from reeld.errors import ArgumentTypeError, InvalidRequestError, UnsupportedError

if TYPE_CHECKING:
    Source = str | Path | bytes

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def checked_source(source: Source) -> str | bytes:
    """The bytes or the absolute path to open: a copy of the decoder may open it in another working directory.

    Raises:
        InvalidRequestError: There are no bytes.
        UnsupportedError: It is something that TorchCodec reads and the daemon does not, such as a URL.
        ArgumentTypeError: It is nothing that a video can be read from.
    """
    if isinstance(source, Path):
        return _absolute(os.fspath(source))
    if isinstance(source, bytes):
        if not source:
            raise InvalidRequestError("The source has no bytes.")
        return source
    if isinstance(source, str):
        return _checked_path(source)
    if isinstance(source, io.TextIOBase):
        raise ArgumentTypeError(
            "The source reads text. Was it meant for binary reading? Open it with mode 'rb', pass its bytes."
        )
    if hasattr(source, "read") and hasattr(source, "seek"):
        raise UnsupportedError("File-like objects are not supported yet: pass the path, or source.read().")
    if hasattr(source, "untyped_storage"):
        raise UnsupportedError("Tensors are not supported as a source: pass source.numpy().tobytes().")
    raise ArgumentTypeError(
        f"Unknown source type {type(source).__name__}: pass a path (str or pathlib.Path) or bytes."
    )


def _checked_path(source: str) -> str:
    # FFmpeg's own way to say that the rest is a path.
    if source.startswith("file:"):
        source = source.removeprefix("file:")
    url = _URL.match(source)
    if url:
        raise UnsupportedError(
            f"{source!r}: {url[1]} URLs are not supported, the daemon has no network. "
            "Download the file and pass its path, or pass its bytes."
        )
    if "\0" in source:
        raise UnsupportedError(f"{source!r} holds a NUL character, which no path can.")
    if not source:
        raise UnsupportedError("The source is an empty path.")
    return _absolute(source)


def _absolute(path: str) -> str:
    # Not `abspath`, which takes "link/.." for nothing and may so name another file.
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
