"""A daemon for one measurement, on a socket of its own, and what this machine is.

Nothing is measured here.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
# From the start to the first answer it takes some ten milliseconds; only a failure waits that long.
READY_SECONDS = 30


def program(name: str) -> str:
    """The path of a program of this build; script/setup puts it beside the interpreter."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        sys.exit(f"There is no {path}: run script/setup.")
    return str(path)


class OwnDaemon:
    """`reeld serve` as a context manager. This process and its children talk to it while it lives."""

    def __init__(self, *options: str) -> None:
        """Starts the daemon with `options` and waits until it answers."""
        self._folder = tempfile.TemporaryDirectory(prefix="reeld-")
        socket = str(Path(self._folder.name) / "reeld.sock")
        self._log = Path(self._folder.name) / "daemon.log"
        with self._log.open("wb") as log:
            # Whoever kills the measurement takes the daemon with it.
            command = ["setpriv", "--pdeathsig", "TERM", program("reeld"), "serve"]
            command += ["--socket", socket, *options]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        os.environ["REELD_SOCKET"] = socket
        os.environ["REELD_NO_AUTOSTART"] = "1"
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while self._reelctl().returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"The daemon does not answer. Its log:\n{self._log.read_text()}")
            time.sleep(0.02)

    def _reelctl(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program("reelctl"), "status", "--json"], capture_output=True, text=True, check=False
        )

    def status(self) -> dict[str, Any]:
        """What `reelctl status --json` says."""
        return json.loads(self._reelctl().stdout)

    def __enter__(self) -> OwnDaemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=READY_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def commit() -> str:
    """The commit that is measured, marked where the working tree differs from it."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "none"


def machine() -> dict[str, Any]:
    """What a reader needs to know to compare: processor, memory, kernel. No names."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
    }
