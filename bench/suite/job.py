"""A job: what one measurement does, in the process of one library.

The jobs themselves are in `scenarios/`. When which one runs does not live here; see `contest`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from suite.peers.base import Frames, Peer, Setting


@dataclass
class Delivered:
    """What one run came to, besides its time."""

    frame_count: int
    # None where the library does not tell.
    picture_count: int | None = None
    # Further figures of the run by name, with the unit at its end.
    values: dict[str, float] = field(default_factory=dict)


class Job(ABC):
    """Something that is run again and again, and timed.

    The arguments must be JSON: they come from another process.
    """

    def __init__(self, peer: Peer, setting: Setting, arguments: dict[str, Any]) -> None:
        """Nothing is opened yet."""
        self.peer = peer
        self.setting = setting
        self.arguments = arguments

    def before(self) -> None:  # noqa: B027 # most need none
        """Before each run; not timed."""

    @abstractmethod
    def run(self) -> Any:  # noqa: ANN401 # each job's own
        """What is timed. What it returns is given to `after`, and freed there."""

    @abstractmethod
    def after(self, result: Any) -> Delivered:  # noqa: ANN401 # each job's own
        """After each run; not timed."""

    @abstractmethod
    def outputs(self) -> Frames:
        """The frames of a run, or some of them: they are compared with the reference before it is timed."""

    def end(self) -> None:  # noqa: B027 # most need none
        """Gives back what is held."""


@dataclass(frozen=True)
class JobOrder:
    """Which job is to be done by whom: what a measuring process is told."""

    # "single:FramesJob" for the class of this name in suite.scenarios.single.
    job: str
    peer: str
    setting: Setting
    arguments: dict[str, Any]

    def make(self, peer: Peer) -> Job:
        """The job, for this peer's library."""
        module, name = self.job.split(":")
        maker = getattr(importlib.import_module(f"suite.scenarios.{module}"), name)
        return maker(peer, self.setting, self.arguments)
