"""How soon things are over that must not last: dead clients, interrupted calls, outages.

Measured in one run, each some times over:

- from `kill -9` of a client that holds frames and waits for more until the daemon reports nothing of it;
- from Ctrl-C to `KeyboardInterrupt` in a call that waits for frames of a slow decode, for a daemon that was
  stopped by SIGSTOP, and for a daemon that is gone;
- from `kill -9` of a daemon that is started again at once to the first right frame of a client that goes on;
- from the first line of `VideoDecoder(...)` to the first frame where a private daemon has to be started.

Prints a table and writes bench/results/limits.json. How fast frames come otherwise is not measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from own_daemon import REPOSITORY, OwnDaemon, commit, machine, percentile, program

# Enough for a median and a maximum that mean something, in about two minutes.
COUNT = 20
# Only a failure waits that long.
GIVE_UP_SECONDS = 60
RESULTS = REPOSITORY / "bench" / "results"

# The client of each measurement: it says when it is ready, does what it is told to, and says when that ended.
# Times are of the monotonic clock, which is the same for all processes of a machine.
CLIENT = """
import hashlib, sys, time
import reeld, torch
from reeld.decoders import VideoDecoder
def say(*words):
    print(*words, flush=True)
def digest(frame):
    return hashlib.sha1(frame.contiguous().numpy().tobytes()).hexdigest()
"""
HOLD = """
decoder = VideoDecoder(sys.argv[1])
held = [decoder[index] for index in range(4)]
slow = VideoDecoder(sys.argv[2])
pending = [reeld.submit([reeld.Clip(slow, indices=[-1 - index])]) for index in range(4)]
say("ready")
sys.stdin.read()
"""
WAIT = """
decoder = VideoDecoder(sys.argv[1])
say("ready")
sys.stdin.readline()
try:
    say("waiting")
    decoder.get_frames_at([-1])
    say("finished")
except KeyboardInterrupt:
    say(time.monotonic_ns())
"""
GO_ON = """
decoder = VideoDecoder(sys.argv[1])
expected = [digest(decoder[index]) for index in range(8)]
say("ready")
for line in sys.stdin:
    killed_at = int(line)
    index = killed_at % 8
    right = digest(decoder[index]) == expected[index]
    say(time.monotonic_ns() if right else "WRONG")
"""
START = """
begin = time.monotonic_ns()
frame = VideoDecoder(sys.argv[1])[0]
say((time.monotonic_ns() - begin) / 1e6, reeld.status()["pid"])
"""


class Client:
    """A Python process that runs one of the programs above."""

    def __init__(self, code: str, *arguments: Path, **environment: str) -> None:
        """Starts it."""
        command = [sys.executable, "-c", CLIENT + code, *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            sys.exit("A client of this measurement ended early.")
        return line

    def tell(self, line: object) -> None:
        """Writes a line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Ends it, if it has not ended by itself."""
        self.process.kill()
        self.process.communicate()


class Supervised:
    """A daemon that is started again as soon as it ends, as a service manager does without a pause."""

    def __init__(self, socket: Path) -> None:
        """Starts the first one."""
        self._command = ["setpriv", "--pdeathsig", "TERM", program("reeld"), "serve"]
        self._command += ["--socket", str(socket), "--ready-fd", "1"]
        self._is_over = False
        self._daemon = self._start()
        self._thread = threading.Thread(target=self._supervise, name="supervisor")
        self._thread.start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def _supervise(self) -> None:
        while True:
            self._daemon.wait()
            if self._is_over:
                return
            self._daemon = self._start()

    def ready(self) -> None:
        """Waits until the daemon of this moment listens."""
        assert self._daemon.stdout is not None
        if self._daemon.stdout.read(6) != b"ready\n":
            sys.exit("The daemon did not get ready.")

    def kill(self) -> int:
        """Kills it, and says when."""
        daemon = self._daemon
        killed_at = time.monotonic_ns()
        os.kill(daemon.pid, signal.SIGKILL)
        eventually(lambda: self._daemon is not daemon, "the daemon is started again")
        return killed_at

    def end(self) -> None:
        """Ends it for good."""
        self._is_over = True
        self._daemon.terminate()
        self._thread.join()


def eventually(is_so: Callable[[], bool], what: str) -> None:
    """Asks until it is so."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            sys.exit(f"Not within {GIVE_UP_SECONDS} s: {what}.")
        # Lets others run; far below what is measured.
        time.sleep(0.0002)


def result(name: str, times_ms: list[float]) -> dict[str, Any]:
    """The distribution of times in milliseconds."""
    return {
        "name": name,
        "unit": "ms",
        "count": len(times_ms),
        "min": round(min(times_ms), 2),
        "p50": round(percentile(times_ms, 0.5), 2),
        "p90": round(percentile(times_ms, 0.9), 2),
        "max": round(max(times_ms), 2),
    }


def accounts_cleared(fast: Path, slow: Path, count: int) -> dict[str, Any]:
    """From a client's death until another client's status shows that nothing of it is left."""
    import reeld

    def is_clear() -> bool:
        status = reeld.status()
        held = ("lease_count", "request_count", "filling_count")
        return status["client_count"] == 1 and not any(status[key] for key in held)

    times_ms = []
    for _ in range(count):
        eventually(is_clear, "nothing is held before the measurement")
        client = Client(HOLD, fast, slow)
        assert client.line() == "ready"
        if reeld.status()["lease_count"] < 4:
            sys.exit("The client does not hold what it should.")
        killed_at = time.monotonic_ns()
        client.process.kill()
        eventually(is_clear, "the dead client's account is cleared")
        times_ms.append((time.monotonic_ns() - killed_at) / 1e6)
        client.end()
    return result("account cleared after kill -9 of a client", times_ms)


def interrupt(client: Client) -> float:
    """Sends Ctrl-C to a client that waits, and says after how many milliseconds it raised."""
    # Some time after it said that it begins, and not always the same after its last look for signals.
    time.sleep(0.2 + (time.monotonic_ns() % 50) / 1000)
    sent_at = time.monotonic_ns()
    os.kill(client.process.pid, signal.SIGINT)
    answer = client.line()
    if not answer.isdigit():
        sys.exit("The call was over before it was interrupted.")
    return (int(answer) - sent_at) / 1e6


def interrupts(slow: Path, count: int) -> Iterator[dict[str, Any]]:
    """From Ctrl-C to KeyboardInterrupt, in three kinds of wait."""
    times_ms = []
    for _ in range(count):
        # A new one each time: it would go on where it was interrupted, and soon be at the end.
        with OwnDaemon("--engine-cache-mib", "0"):
            client = Client(WAIT, slow)
            assert client.line() == "ready"
            client.tell("go")
            assert client.line() == "waiting"
            times_ms.append(interrupt(client))
            client.end()
    yield result("Ctrl-C while a slow decode is waited for", times_ms)
    times_ms = []
    with OwnDaemon() as daemon:
        for _ in range(count):
            client = Client(WAIT, slow)
            assert client.line() == "ready"
            daemon.process.send_signal(signal.SIGSTOP)
            client.tell("go")
            assert client.line() == "waiting"
            times_ms.append(interrupt(client))
            client.end()
            daemon.process.send_signal(signal.SIGCONT)
    yield result("Ctrl-C while the daemon is stopped by SIGSTOP", times_ms)
    times_ms = []
    for _ in range(count):
        with OwnDaemon() as daemon:
            client = Client(WAIT, slow)
            assert client.line() == "ready"
            daemon.process.kill()
            daemon.process.wait()
            client.tell("go")
            assert client.line() == "waiting"
            times_ms.append(interrupt(client))
            client.end()
    yield result("Ctrl-C while the daemon is gone", times_ms)


def reconnections(fast: Path, count: int) -> dict[str, Any]:
    """From the death of a daemon that is started again at once to a client's next frame."""
    times_ms = []
    with tempfile.TemporaryDirectory(prefix="reeld-") as folder:
        socket = Path(folder) / "reeld.sock"
        daemon = Supervised(socket)
        daemon.ready()
        client = Client(GO_ON, fast, REELD_SOCKET=str(socket), REELD_NO_AUTOSTART="1")
        assert client.line() == "ready"
        for _ in range(count):
            killed_at = daemon.kill()
            client.tell(killed_at)
            answer = client.line()
            if not answer.isdigit():
                sys.exit("A frame was wrong after the daemon's restart.")
            times_ms.append((int(answer) - killed_at) / 1e6)
        client.end()
        daemon.end()
    return result("daemon killed and started again: next right frame", times_ms)


@contextmanager
def without_a_daemon() -> Iterator[dict[str, str]]:
    """An environment in which no daemon is found."""
    hidden = {
        name: os.environ.pop(name) for name in ("REELD_SOCKET", "REELD_NO_AUTOSTART") if name in os.environ
    }
    folder = tempfile.mkdtemp(prefix="reeld-")
    try:
        yield {"XDG_RUNTIME_DIR": folder, "REELD_BINARY": program("reeld")}
    finally:
        os.environ.update(hidden)
        shutil.rmtree(folder)


def cold_starts(fast: Path, count: int) -> dict[str, Any]:
    """From opening a decoder to its first frame, where a private daemon has to be started for it."""
    times_ms = []
    with without_a_daemon() as environment:
        for _ in range(count):
            client = Client(START, fast, **environment)
            milliseconds, pid = client.line().split()
            times_ms.append(float(milliseconds))
            client.end()
            eventually(lambda pid=pid: not Path(f"/proc/{pid}/exe").exists(), "the private daemon ends")
    return result("private daemon started: first frame", times_ms)


def measure(count: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All figures, and the daemon's status for its versions."""
    names = ["bench_224.mp4", "slow.mp4"]
    generate = [str(REPOSITORY / "tests" / "media" / "generate"), "--only", *names]
    media = subprocess.run(generate, check=True, capture_output=True, text=True).stdout.strip()
    fast, slow = (Path(media) / name for name in names)
    with OwnDaemon("--engine-cache-mib", "0") as daemon:
        status = daemon.status()
        results = [accounts_cleared(fast, slow, count)]
    results += [*interrupts(slow, count), reconnections(fast, count), cold_starts(fast, count)]
    return results, status


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=COUNT, help="times of each (default: %(default)s)")
    arguments = parser.parse_args()
    results, status = measure(arguments.count)
    report = {
        "bench": "limits",
        "command": " ".join(["script/bench", "limits", *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(),
        "versions": {
            "reeld": status["version"],
            "python": sys.version.split()[0],
            "ffmpeg": status["ffmpeg_versions"],
        },
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / "limits.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{'':52}{'p50':>9}{'max':>9}   of {arguments.count}")
    for each in results:
        print(f"{each['name']:52}{each['p50']:>6.1f} ms{each['max']:>6.1f} ms")
    print(f"written: {target.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
