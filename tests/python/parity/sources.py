"""One file in each form that a decoder takes. Each decoder gets an object of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCES: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "Path": lambda file: file,
    "relative": os.path.relpath,
    "file:": lambda file: f"file:{file}",
    "bytes": lambda file: file.read_bytes(),
}


def source(name: str, file: Path) -> Any:
    """A file in the form of this name."""
    return SOURCES[name](file)
