"""One file in each form that a decoder takes, and where its frames are. Each call gives new objects."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import torch


class Reader:
    """As little of a file as a decoder needs."""

    def __init__(self, content: bytes) -> None:
        self._stream = io.BytesIO(content)

    def read(self, size: int) -> bytes:
        """At most so many bytes, and sometimes fewer than there are."""
        return self._stream.read(min(size, 10_000))

    def seek(self, offset: int, whence: int) -> int:
        """As files do."""
        return self._stream.seek(offset, whence)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "Path": lambda file: file,
    "relative": os.path.relpath,
    "file:": lambda file: f"file:{file}",
    "bytes": lambda file: file.read_bytes(),
    "tensor": lambda file: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8),
    "BytesIO": lambda file: io.BytesIO(file.read_bytes()),
    "open file": lambda file: file.open("rb"),
    "unbuffered file": lambda file: file.open("rb", buffering=0),
    "fsspec": lambda file: _remote(file),
    "reader": lambda file: Reader(file.read_bytes()),
}


def _remote(file: Path) -> Any:
    """As of a file system that has no descriptors."""
    system = fsspec.filesystem("memory")
    system.pipe_file(str(file), file.read_bytes())
    return system.open(str(file), "rb")


def source(name: str, file: Path) -> Any:
    """A file in the form of this name."""
    return SOURCES[name](file)


def mappings(file: Path, stream_index: int, *, form: str, count: int, prefix: str) -> Any:
    """Where the first `count` frames of a stream are, as JSON in one of its forms.

    `prefix` is "" or "pkt_", which older versions of ffprobe put before its names.
    """
    frames = [
        {f"{prefix}pts": pts, f"{prefix}duration": duration, "key_frame": is_key}
        for pts, duration, is_key in _frames(str(file), stream_index)[:count]
    ]
    text = json.dumps({"frames": frames})
    return {"str": text, "bytes": text.encode(), "file": io.BytesIO(text.encode())}[form]


@functools.cache
def _frames(file: str, stream_index: int) -> list[tuple[int, int, int]]:
    """The pts, duration and kind of all frames, in the order of the pts, as the container's packets say."""
    command = ["ffprobe", "-v", "quiet", "-select_streams", str(stream_index), "-of", "json", file]
    command += ["-show_entries", "packet=pts,dts,duration,flags"]
    packets = json.loads(subprocess.run(command, capture_output=True, check=False).stdout or "{}")
    return sorted(
        (packet.get("pts", packet.get("dts", 0)), packet.get("duration", 0), int("K" in packet["flags"]))
        for packet in packets.get("packets", [])
        if "D" not in packet["flags"]
    )
