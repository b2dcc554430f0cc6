"""Frames that another process handed over and that are lost: what stands in their place.

How they get lost does not live here but in `_tickets.py` and the daemon.
"""

from __future__ import annotations

from typing import NoReturn

from reeld.errors import ReeldError
from reeld.frames import Frame, FrameBatch

_FIELDS = ("data", "pts_seconds", "duration_seconds")


class _Lost:
    """Raises the error that tells why, wherever one of the fields is needed.

    Not sooner: an exception in the middle of a queue's ``get`` would leave whoever reads the queue, such as
    torch's loader, without its count of what is still to come.
    """

    def __init__(self, error: ReeldError) -> None:
        self._error = error

    def __getattr__(self, name: str) -> NoReturn:
        # Asked for only what the object does not have, and half-made ones have nothing.
        if name in _FIELDS and "_error" in self.__dict__:
            # It may be raised more than once: each time with the place where it was raised this time.
            raise self._error.with_traceback(None)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self._error}\n"


class LostFrame(_Lost, Frame):
    """A frame whose ticket could not be redeemed."""


class LostFrameBatch(_Lost, FrameBatch):
    """A batch whose ticket could not be redeemed."""
