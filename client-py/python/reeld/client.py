"""The process's connection to a daemon: made at first use, shared by all decoders.

Which daemon answers, how a private one is started and how a lost one is found again does not live here but
in the Rust client.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any

from reeld import _native

_lock = threading.Lock()
_client: _native.Client | None = None
# The socket that `connect` was given: decoders take it along when they are pickled.
_socket: str | None = None


def connect(
    socket: str | os.PathLike[str] | None = None,
    *,
    binary: str | os.PathLike[str] | None = None,
    autostart: bool = True,
    reconnect_seconds: float = 10.0,
) -> None:
    """Connects this process to a daemon now, rather than at the first decoder.

    Nobody needs to call this. It is for a socket that is not at one of the usual places, and for finding
    out early that no daemon can be had. Decoders that are open keep the connection they were opened on.

    A daemon that goes away later is waited for: every call that needs it connects anew and asks again, those
    that are waiting already, too. It is looked for at the place where it was found and at no other, so that a
    private daemon never takes the place of the system's. A private daemon is started anew at once.

    Args:
        socket: Path of the daemon's socket, and no other is tried. Default: ``$REELD_SOCKET``, then
            ``/run/reeld/reeld.sock``, then the user's runtime directory.
        binary: The program ``reeld``, for starting a private daemon where none answers. Default:
            ``$REELD_BINARY``, then the one beside this interpreter, then the one on ``PATH``.
        autostart: Whether a private daemon may be started.
        reconnect_seconds: How long a daemon that went away is looked for, counted from the moment when that
            was noticed, before calls raise ``DaemonUnavailableError``. With 0, one look is taken.

    Raises:
        DaemonUnavailableError: No daemon answers and none could be started, or it refuses this user. This
            first connection is not waited for.

    Example:
        >>> import reeld
        >>> reeld.connect()
    """
    global _client, _socket
    client = _native.Client(
        socket=None if socket is None else os.fspath(socket),
        binary=None if binary is None else os.fspath(binary),
        binary_dirs=_binary_dirs(),
        autostart=autostart,
        reconnect_seconds=reconnect_seconds,
    )
    with _lock:
        _client = client
        _socket = None if socket is None else os.path.abspath(socket)


def default_client() -> _native.Client:
    """The process's connection, made now if there is none."""
    global _client
    client = _client
    if client is not None:
        return client
    # Held while connecting: whoever else asks waits for the same connection.
    with _lock:
        if _client is None:
            _client = _native.Client(binary_dirs=_binary_dirs())
        return _client


def status() -> dict[str, Any]:
    """How the daemon does: the same report as ``reelctl status --json``.

    Returns:
        Counts, sizes in bytes (``…_bytes``) and times in seconds (``…_seconds``); ``totals`` counts since
        the daemon's start, ``clients`` and ``engines`` are lists of dicts, ``errors`` counts error replies by
        the names of their codes. Names of clients and labels of files are those of this user's own alone.

    Raises:
        DaemonUnavailableError: No daemon answers.

    Example:
        >>> import reeld
        >>> reeld.status()["client_count"] >= 1
        True
    """
    return default_client().status()


def statistics() -> dict[str, int]:
    """What this process's connection has counted since it was made.

    Returns:
        Counters and gauges by name, such as the frames that were copied out of the daemon's memory because
        this process keeps many.

    Example:
        >>> import reeld
        >>> all(isinstance(count, int) for count in reeld.statistics().values())
        True
    """
    return default_client().statistics()


def _count_copy(byte_count: int) -> None:
    """Counts a copy of pixels made here with those of the native module, which the daemon is told of."""
    client = _client
    if client is not None:
        client.count_copy(byte_count)


def use_socket(socket: str | None) -> None:
    """Connects to the socket that another process was told to use, unless this one is connected."""
    if socket is not None and _client is None:
        connect(socket)


def explicit_socket() -> str | None:
    """The socket that this process was told to use, if any."""
    return _socket


def _binary_dirs() -> list[str]:
    """Where pip puts programs: beside the interpreter as it was started, not where its links lead."""
    folders = [str(Path(sys.executable).parent)] if sys.executable else []
    scripts = sysconfig.get_path("scripts")
    if scripts and scripts not in folders:
        folders.append(scripts)
    return folders


def _after_fork_in_child() -> None:
    """Another thread of the parent may have held the lock, and it is not here to let go of it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
