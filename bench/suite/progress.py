"""The line that tells the person who waits how far it is. On a terminal it is written over and over."""

from __future__ import annotations

import sys
import time

_BAR_COLUMNS = 24
_LINE_COLUMNS = 110


class Progress:
    """How many cells are done, and what is going on."""

    def __init__(self) -> None:
        """Counts the time from now."""
        self.cell_count = 0
        self._done = 0
        self._began = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._cell = ""

    def say(self, words: str) -> None:
        """What is going on now."""
        seconds = int(time.monotonic() - self._began)
        if not self._is_terminal:
            # A log gets a line a cell, not one a round.
            cell = words.rsplit(" · ", 2)[0]
            if cell != self._cell:
                print(f"{seconds // 60:3}:{seconds % 60:02} {cell}", file=sys.stderr, flush=True)
            self._cell = cell
            return
        share = self._done / self.cell_count if self.cell_count else 0.0
        full = round(_BAR_COLUMNS * share)
        bar = "█" * full + "░" * (_BAR_COLUMNS - full)
        line = f"{bar} {self._done}/{self.cell_count} {seconds // 60}:{seconds % 60:02} {words}"
        print(f"\r{line[:_LINE_COLUMNS]:{_LINE_COLUMNS}}", end="", file=sys.stderr, flush=True)

    def cell_done(self) -> None:
        """One cell further."""
        self._done += 1

    def end(self) -> None:
        """Leaves the line."""
        if self._is_terminal:
            print(file=sys.stderr)
