"""The clips that the scenarios share, made when a scenario first asks for them.

How they are made does not live here; see `clips`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from suite import clips
from suite.clips import Clip


class Library:
    """All clips of a run."""

    def __init__(self, own: list[Path], *, quick: bool, say: Callable[[str], None]) -> None:
        """`own` are the user's videos."""
        self.is_quick = quick
        # Names of the user's own clips.
        self.own = [path.name for path in own]
        self.used: list[Clip] = []
        self._own = {path.name: path for path in own}
        self._say = say

    def clip(self, name: str) -> Clip:
        """A clip of `clips.recipes`, or one of the user's by its file's name."""
        self._say(f"clip {name}")
        if name in self._own:
            made = clips.described(self._own[name], name, [])
        else:
            made = clips.clip(clips.recipes(quick=self.is_quick)[name])
        return self._noted([made])[0]

    def short_h264(self, count: int) -> list[Clip]:
        """Videos of 640x360 with one GOP of three seconds each."""
        return self._short(count, 200, "h264")

    def short_av1(self, count: int) -> list[Clip]:
        """Videos of 640x480 as LeRobot records them."""
        return self._short(count, 8, "av1")

    def _short(self, count: int, full_count: int, codec: str) -> list[Clip]:
        # One set for all scenarios, of which each takes what it needs.
        set_count = min(12, full_count) if self.is_quick else full_count
        seconds = 3.0 if codec == "h264" else (4.0 if self.is_quick else 20.0)
        self._say(f"{set_count} short clips, {codec}")
        made = clips.short_clips(
            set_count,
            seconds=seconds,
            codec=codec,
            progress=lambda done: self._say(f"short clips, {codec}: {done} of {set_count}"),
        )
        return self._noted(made[:count])

    def _noted(self, made: list[Clip]) -> list[Clip]:
        known = {each.name for each in self.used}
        self.used += [each for each in made if each.name not in known]
        return made
