"""What a decoder can be made from: paths, bytes in memory, open files, and objects that read like files.

All of them become a descriptor, which is all that reaches the daemon. How objects are read is in `_spool.py`.
"""

from __future__ import annotations

import io
import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from reeld._native import Spool
from reeld.decoders._spool import spool
from reeld.errors import ArgumentTypeError, InvalidRequestError, MediaError, UnsupportedError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class FileLike(Protocol):
    """What a file must be able to do to be read."""

    def read(self, size: int, /) -> object:
        """At most so many bytes from the position on; none at the end."""
        ...

    def seek(self, offset: int, whence: int, /) -> object:
        """Moves the position, as files do."""
        ...


if TYPE_CHECKING:
    Source = (
        str
        | os.PathLike[str]
        | os.PathLike[bytes]
        | bytes
        | bytearray
        | memoryview
        | NDArray[np.uint8]
        | torch.Tensor
        | FileLike
    )


@dataclass(frozen=True)
class OpenedSource:
    """A source that was checked, and read where it is not a file."""

    native: str | Spool | tuple[int, str]
    """As the native module takes it: an absolute path, content, or a descriptor with its label."""
    is_in_memory: bool = False
    """Its caller had all of it in memory."""
    path: str | None = None
    """The path, if that is what it was."""


def opened_source(source: Source) -> OpenedSource:
    """Makes of anything that a video can be read from what the native module can open.

    Raises:
        InvalidRequestError: There are no bytes.
        UnsupportedError: It is a URL, or an empty path.
        MediaError: It is a tensor without bytes, or text that names no file.
        ArgumentTypeError: It is nothing that a video can be read from, or reads text, or its bytes are not
            uint8, not one behind the other, or not in the processor's memory.
        LimitReachedError: It is a file-like object and too large.
        Exception: It is a file-like object and raised this.
    """
    if isinstance(source, str):
        return _of_path(_checked_path(source))
    if isinstance(source, Path):
        return _of_path(_absolute(os.fspath(source)))
    if isinstance(source, bytes | bytearray | memoryview):
        return _of_memory(_bytes_of_view(memoryview(source)))
    if isinstance(source, np.ndarray):
        return _of_memory(_bytes_of_array(source))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        return _of_memory(_bytes_of_tensor(cast("torch.Tensor", source)))
    if isinstance(source, io.TextIOBase):
        raise ArgumentTypeError(
            "The source reads text. Was it meant for binary reading? Open it with mode 'rb', pass its bytes."
        )
    if hasattr(source, "read") and hasattr(source, "seek"):
        return _of_file_like(cast("FileLike", source))
    if isinstance(source, os.PathLike):
        return _of_path(_absolute(os.fsdecode(source)))
    raise ArgumentTypeError(
        f"Unknown source type {type(source).__name__}: pass a path, bytes, an array or tensor of uint8, or a "
        "binary file-like object with read(size) and seek(offset, whence)."
    )


def _of_path(path: str) -> OpenedSource:
    return OpenedSource(path, path=path)


def _of_memory(content: memoryview) -> OpenedSource:
    native = Spool(in_memory=True)
    # The one copy: the daemon reads this memory, and the caller may change the other.
    native.write(content)
    return OpenedSource(native, is_in_memory=True)


def _of_file_like(source: FileLike) -> OpenedSource:
    descriptor = _descriptor_of(source)
    if descriptor is not None:
        return OpenedSource((descriptor, f"the open file {getattr(source, 'name', descriptor)}"))
    if type(source) is io.BytesIO:
        with source.getbuffer() as content:
            return _of_memory(content)
    return OpenedSource(spool(source))


def _descriptor_of(source: FileLike) -> int | None:
    """The descriptor of what surely is a plain file and nothing else, as `open(path, "rb")` gives one."""
    raw = source.raw if type(source) is io.BufferedReader else source
    # Of other classes, also derived ones, nobody knows what they make of the bytes on the way.
    if type(raw) is not io.FileIO or not raw.readable():
        return None
    descriptor = raw.fileno()
    return descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def _bytes_of_view(view: memoryview) -> memoryview:
    if view.itemsize != 1 or not view.c_contiguous:
        raise ArgumentTypeError(
            f"The memory has items of {view.itemsize} bytes and strides {view.strides}: bytes must lie in it "
            "one behind the other."
        )
    if not view.nbytes:
        raise InvalidRequestError("The source has no bytes.")
    return view.cast("B")


def _bytes_of_array(array: NDArray[Any]) -> memoryview:
    if array.dtype != np.uint8 or not array.flags.c_contiguous:
        layout = "" if array.flags.c_contiguous else ", not contiguous"
        raise ArgumentTypeError(
            f"The array has dtype {array.dtype}{layout}: pass a contiguous one of uint8, a file's bytes."
        )
    return _bytes_of_view(array.data)


def _bytes_of_tensor(tensor: torch.Tensor) -> memoryview:
    if tensor.device.type != "cpu":
        raise ArgumentTypeError(f"The tensor is on {tensor.device}: pass source.cpu().")
    if str(tensor.dtype) != "torch.uint8" or not tensor.is_contiguous():
        layout = "" if tensor.is_contiguous() else ", not contiguous"
        raise ArgumentTypeError(
            f"The tensor has dtype {tensor.dtype}{layout}: pass a contiguous one of uint8, a file's bytes."
        )
    if not tensor.numel():
        raise MediaError("The source has no bytes: the tensor is empty.")
    return _bytes_of_view(tensor.detach().numpy().data)


def _checked_path(source: str) -> str:
    # FFmpeg's own way to say that the rest is a path.
    if source.startswith("file:"):
        source = source.removeprefix("file:")
    url = _URL.match(source)
    if url:
        raise UnsupportedError(
            f"{source!r}: {url[1]} URLs are not supported, the daemon has no network. Download the file and "
            "pass its path, or pass a file-like object, such as fsspec.open(url).open(). If it is a local "
            "file, pass pathlib.Path(source)."
        )
    if "\0" in source:
        raise UnsupportedError(f"{source!r} holds a NUL character, which no path can.")
    if not source:
        raise UnsupportedError("The source is an empty path.")
    return _absolute(source)


def _absolute(path: str) -> str:
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise MediaError(f"{path!r} cannot be the name of a file: {error.reason}.") from None
    # Not `abspath`, which takes "link/.." for nothing and may so name another file.
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
