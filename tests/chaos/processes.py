"""Processes of a chaos run: the daemon under its supervisor, and what /proc tells of any process.

Every process is held by a pidfd, so that a signal never reaches another one that got its number.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
BINARIES = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "release"
_NUMBER = re.compile(r":\[\d+\]$")
# How long something that happens soon may take. Only a failure waits that long.
SOON_SECONDS = 60
SOON_COUNT = 100


class ChaosError(Exception):
    """The run has shown a defect."""


def eventually(condition: Callable[[], bool], words: str | Callable[[], str]) -> None:
    """Waits until `condition` holds: for what the kernel or another process does in its own time."""
    deadline, count = time.monotonic() + SOON_SECONDS, 0
    while not condition():
        count += 1
        # A machine that was paused as a whole has not been waiting.
        if time.monotonic() > deadline and count > SOON_COUNT:
            raise ChaosError(f"not within {SOON_SECONDS} s: {words() if callable(words) else words}")
        time.sleep(0.02)


class Process:
    """Any process that is still there, by its pidfd."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError where there is none."""
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self.is_stopped = False

    def is_alive(self) -> bool:
        """Whether it has not ended; one that was not collected yet has."""
        return not select.select([self._pidfd], [], [], 0)[0]

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, if it still lives."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return
        if number in (signal.SIGSTOP, signal.SIGCONT):
            self.is_stopped = number == signal.SIGSTOP

    def __del__(self) -> None:
        if hasattr(self, "_pidfd"):
            os.close(self._pidfd)


class Daemon:
    """`reeld serve` at a socket, and its successors at the same one."""

    def __init__(self, folder: Path, log: Path, *options: str, environment: dict[str, str]) -> None:
        """Starts the first. `environment` is what they are told beside `options`."""
        self.folder, self.log = folder, log
        self._environment = {**os.environ, **environment}
        self.socket = folder / "reeld.sock"
        self._options = options
        self.start()

    def start(self) -> None:
        """Starts a daemon and waits until it says that it serves."""
        ready, say_ready = os.pipe()
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            str(BINARIES / "reeld"),
            "serve",
            "--socket",
            str(self.socket),
        ]
        command += ["--ready-fd", str(say_ready), *self._options]
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[say_ready],
            )
        os.close(say_ready)
        with os.fdopen(ready, "rb") as pipe:
            said = pipe.read()
        if said != b"ready\n":
            raise ChaosError(f"the daemon did not get ready (exit status {self.popen.wait()})")
        self.process = Process(self.popen.pid)
        # What it must end with, once it was told to end or killed.
        self.end_status: int | None = None

    def engines(self) -> list[Process]:
        """Its engines, as the kernel knows them."""
        found = []
        for pid in children_of(self.popen.pid):
            try:
                engine = Process(pid)
            except ProcessLookupError:
                continue
            # Its number may have become somebody else's before it was held.
            if parent_of(pid) == self.popen.pid:
                found.append(engine)
        return found

    def status(self) -> dict[str, Any]:
        """What `reelctl status --json` says."""
        environment = {**os.environ, "REELD_SOCKET": str(self.socket), "REELD_NO_AUTOSTART": "1"}
        command = [str(BINARIES / "reelctl"), "status", "--json"]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=SOON_SECONDS
        )
        if result.returncode != 0:
            raise ChaosError(f"reelctl status: {result.stderr}")
        return json.loads(result.stdout)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: state, parent, …; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def parent_of(pid: int) -> int | None:
    """The parent of a process, if that is there."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def state_of(pid: int) -> str:
    """`Z` for a zombie; empty where there is no such process."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def children_of(parent: int) -> list[int]:
    """The processes that `parent` has, zombies included."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if parent_of(pid) == parent]


def descriptors_of(pid: int) -> Counter[str]:
    """What a process has open, by kind; files by their path."""
    kinds: Counter[str] = Counter()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{entry}")
        except FileNotFoundError:
            continue
        # Of a socket or a pipe not its number, but "anon_inode:[eventpoll]" is a kind.
        kinds[_NUMBER.sub("", target)] += 1
    return kinds


def memfds_of(pid: int) -> int:
    """How many of them are memory."""
    return sum(count for kind, count in descriptors_of(pid).items() if kind.startswith("/memfd:"))
