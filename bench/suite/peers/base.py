"""What a library has to offer to be measured: `Peer`, `Video` and `Frames`.

How often and in which order it is called does not live here; see `contest`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

# How a library is used in one measurement, such as its number of threads. It is written into the results.
Setting = dict[str, Any]
# Of these, the ones that `Peer.begin` heeds: for the rest of its life they are its process's.
BEGIN_SETTINGS = frozenset({"cache", "cache_mib", "index_folder"})


class CannotError(Exception):
    """The library cannot do this at all; what it says goes into the cell of the table."""


@dataclass
class Frames:
    """Frames in the library's own form, so that no conversion of ours is timed."""

    # A tensor or array (N, C, H, W) or (N, H, W, C), or a list of (H, W, C).
    pixels: Any
    # Seconds; None where the library does not tell.
    pts_seconds: Sequence[float] | None
    # Pictures that were decoded for them; None where the library does not tell.
    picture_count: int | None = None

    def as_array(self) -> npt.NDArray[np.uint8]:
        """(N, H, W, C) of 8 bits."""
        pixels = self.pixels
        array = (
            np.stack([np.asarray(each) for each in pixels])
            if isinstance(pixels, list)
            else np.asarray(pixels)
        )
        if array.ndim == 4 and array.shape[1] == 3 and array.shape[3] != 3:
            array = array.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(array)

    def __len__(self) -> int:
        return len(self.pixels)


class Video(ABC):
    """An open video."""

    @abstractmethod
    def frames_at(self, indices: Sequence[int]) -> Frames:
        """These frames, in this order."""

    def first(self, count: int) -> Frames:
        """The first frames."""
        return self.frames_at(range(count))

    def close(self) -> None:  # noqa: B027 # most need none
        """Gives back what it holds."""


class Peer(ABC):
    """A library that decodes videos."""

    # As tables call it.
    name: ClassVar[str]
    # What `importlib` has to find.
    module: ClassVar[str]

    def __init__(self) -> None:
        """Imports the library: in the process that measures it, and in no other."""
        try:
            self.library: Any = importlib.import_module(self.module)
        except Exception as error:
            raise CannotError(f"import: {error}") from error

    def version(self) -> str:
        """The version, as its package says."""
        return str(getattr(self.library, "__version__", "?"))

    @abstractmethod
    def open(self, path: str, setting: Setting, size: tuple[int, int] | None = None) -> Video:
        """Opens a video.

        Args:
            path: The file.
            setting: How.
            size: Height and width that frames shall have. Default: as they are.
        """

    def begin(self, setting: Setting) -> None:  # noqa: B027 # most need none
        """Called once in the process of a measurement before anything is opened; not timed."""

    def settle(self) -> None:  # noqa: B027 # most need none
        """Called after each measured run: waits until nothing works any more; its CPU time counts."""

    def picture_count(self) -> int | None:
        """Pictures decoded since `begin`, where the library counts them itself."""
        return None

    def counters(self) -> dict[str, float]:
        """What else the library counts since `begin`, by name with the unit at its end."""
        return {}

    def end(self) -> None:  # noqa: B027 # most need none
        """Called at the end of the process."""


def thread_choices(setting_name: str = "threads") -> list[Setting]:
    """Candidates for the best number of codec threads: one, and as many as the library likes."""
    return [{setting_name: 1}, {setting_name: 0}]
