"""What must be left when all clients have gone: nothing.

Nothing is killed here. Each check waits for the event, and says what was still there when it did not come.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from processes import (
    SOON_SECONDS,
    ChaosError,
    Daemon,
    children_of,
    descriptors_of,
    eventually,
    memfds_of,
    state_of,
)

# `reelctl` itself is a client while it asks.
NOTHING = {
    "client_count": 1,
    "lease_count": 0,
    "leased_bytes": 0,
    "filling_count": 0,
    "quarantined_count": 0,
    "arena_bytes": 0,
    "queued_run_count": 0,
    "request_count": 0,
}


def check(daemon: Daemon, fresh: Counter[str]) -> dict[str, Any]:
    """All accounts of a daemon without clients; `fresh` is what another one has open that has served once."""
    status = _await_rest(daemon)
    _check_descriptors(daemon, fresh)
    _check_engines(daemon)
    found = sorted(path.name for path in daemon.folder.iterdir())
    _require(found == ["reeld.sock", "reeld.sock.lock"], f"files beside the socket: {found}")
    return {
        "left": {key: status[key] for key in NOTHING},
        "sources_kept": status["source_count"],
        "engines_kept": len(status["engines"]),
        "totals": status["totals"],
    }


def fresh_descriptors(daemon: Daemon) -> Counter[str]:
    """What a daemon at rest has open for itself: neither for an engine nor for a file that it keeps."""
    _await_rest(daemon)
    # The last one who asked may still be on its way out.
    eventually(lambda: own_descriptors(daemon)["socket"] == own_descriptors(daemon)["socket"], "counts agree")
    return own_descriptors(daemon)


def own_descriptors(daemon: Daemon) -> Counter[str]:
    """What the daemon has open, less a socket and a pidfd for each engine, and less media files."""
    kinds = descriptors_of(daemon.popen.pid)
    engines = len(children_of(daemon.popen.pid))
    kinds["socket"] -= engines
    # Named by its kind before Linux 6.9, and since then as a file of its own file system.
    kinds["anon_inode:[pidfd]" if "anon_inode:[pidfd]" in kinds else "pidfd"] -= engines
    own = {"/dev/null", str(daemon.log), f"{daemon.socket}.lock"}
    names = {str(daemon.log): "the log", f"{daemon.socket}.lock": "the lock"}
    return Counter(
        {
            names.get(kind, kind): count
            for kind, count in kinds.items()
            if count and (not kind.startswith("/") or kind in own or kind.startswith("/memfd:"))
        }
    )


def end(daemon: Daemon) -> None:
    """The daemon obeys a SIGTERM, and takes its engines with it."""
    engines = daemon.engines()
    daemon.process.send(signal.SIGTERM)
    try:
        status = daemon.popen.wait(timeout=SOON_SECONDS)
    except subprocess.TimeoutExpired:
        raise ChaosError("the daemon does not end on SIGTERM") from None
    _require(status == 0, f"the daemon ended with {status} on SIGTERM")
    for engine in engines:
        eventually(lambda engine=engine: not engine.is_alive(), f"engine {engine.pid} ends with its daemon")
    found = sorted(path.name for path in daemon.folder.iterdir())
    _require(found == ["reeld.sock.lock"], f"files left beside the socket: {found}")


def _await_rest(daemon: Daemon) -> dict[str, Any]:
    status: dict[str, Any] = {}

    def is_at_rest() -> bool:
        status.update(daemon.status())
        is_idle = not any(engine["is_busy"] for engine in status["engines"])
        return is_idle and all(status[key] == value for key, value in NOTHING.items())

    eventually(
        is_at_rest,
        lambda: f"accounts at rest: { {key: status[key] for key in NOTHING} }, engines {status['engines']}",
    )
    return status


def _check_descriptors(daemon: Daemon, fresh: Counter[str]) -> None:
    def difference() -> str:
        ours = own_descriptors(daemon)
        return f"too many: {dict(ours - fresh)}, missing: {dict(fresh - ours)}"

    eventually(
        lambda: own_descriptors(daemon) == fresh, lambda: f"descriptors as of a fresh daemon: {difference()}"
    )
    # Files that nobody has open are kept for a minute, each once.
    kinds = descriptors_of(daemon.popen.pid)
    files = {
        kind: count for kind, count in kinds.items() if kind.startswith("/") and kind not in ("/dev/null",)
    }
    twice = {kind: count for kind, count in files.items() if count > 1 and Path(kind) != daemon.log}
    _require(not twice, f"files that the daemon has open more than once: {twice}")


def _check_engines(daemon: Daemon) -> None:
    def told() -> list[int]:
        return sorted(engine["pid"] for engine in daemon.status()["engines"])

    eventually(
        lambda: sorted(children_of(daemon.popen.pid)) == told(),
        lambda: f"children of the daemon, {children_of(daemon.popen.pid)}, are its engines, {told()}",
    )
    pids = children_of(daemon.popen.pid)
    zombies = [pid for pid in pids if state_of(pid) == "Z"]
    _require(not zombies, f"zombies: {zombies}")
    for pid in pids:
        eventually(
            lambda pid=pid: memfds_of(pid) == 0,
            lambda pid=pid: f"engine {pid} lets go of all memory: {dict(descriptors_of(pid))}",
        )
    _require(not os.path.exists(f"{daemon.socket}.tmp"), "a half-made socket")


def _require(condition: bool, words: str) -> None:
    if not condition:
        raise ChaosError(words)
