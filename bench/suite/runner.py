"""One measuring process: the parent's handle `Runner`, and the program that runs in it.

A library is measured in a process of its own, so that libraries do not disturb each other and each one's CPU
time and memory can be told. What is measured does not live here; see `job`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from suite.job import Job, JobOrder
from suite.measuring import CpuMeter
from suite.peers import load
from suite.peers.base import CannotError, Frames, Peer

_BENCH = Path(__file__).resolve().parents[1]
# Far above what any run takes: whoever needs longer hangs.
ANSWER_SECONDS = 900
# Other FFmpeg builds convert and scale a little differently: the largest mean difference of 8-bit values that
# counts as the same picture.
CLOSE_MEAN_DIFFERENCE = 3.0
# As of times that were rounded to microseconds or milliseconds on their way.
CLOSE_PTS_SECONDS = 0.002


class RunnerError(Exception):
    """The measuring process could not do it: what it said, or how it ended."""


class Runner:
    """A measuring process, as its parent sees it."""

    def __init__(self, order: JobOrder, log: Path) -> None:
        """Starts it; `log` gets all that it prints."""
        ours, theirs = socket.socketpair()
        ours.settimeout(ANSWER_SECONDS)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            # Whoever kills the benchmark takes its processes along.
            command = [
                "setpriv",
                "--pdeathsig",
                "KILL",
                sys.executable,
                "-m",
                "suite.runner",
                str(theirs.fileno()),
            ]
            self._process = subprocess.Popen(
                command,
                cwd=_BENCH,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        self.pid = self._process.pid
        self._socket = ours
        self._answers = ours.makefile("r")
        try:
            self.begin(order)
        except RunnerError:
            self.end()
            raise

    def begin(self, order: JobOrder) -> None:
        """Goes over to another job of the same peer with the same setting."""
        self.facts = self._ask({"do": "begin", "order": asdict(order)})

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            self._socket.sendall((json.dumps(question) + "\n").encode())
            line = self._answers.readline()
        except TimeoutError:
            self._process.kill()
            raise RunnerError(f"no answer within {ANSWER_SECONDS} s") from None
        except OSError:
            line = ""
        if not line:
            raise RunnerError(self._end_in_words())
        answer = json.loads(line)
        if "cannot" in answer:
            raise RunnerError(answer["cannot"])
        return answer

    def _end_in_words(self) -> str:
        status = self._process.wait()
        return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def reference(self, path: Path) -> None:
        """Writes the frames of a run to a file, for the others to be compared with."""
        self._ask({"do": "reference", "path": str(path)})

    def verify(self, path: Path) -> dict[str, Any]:
        """Compares the frames of a run with the reference; see `compared`."""
        return self._ask({"do": "verify", "path": str(path)})

    def measure(self) -> dict[str, Any]:
        """One run: `wall_seconds`, `cpu_seconds`, `frame_count`, `picture_count`, `values`."""
        return self._ask({"do": "measure"})

    def leave(self) -> None:
        """Tells it to end."""
        # It may have ended by itself.
        with contextlib.suppress(OSError):
            self._socket.sendall(b'{"do": "end"}\n')

    def end(self) -> None:
        """Ends it; the daemon that it started goes with it."""
        self.leave()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._socket.close()


def compared(frames: Frames, path: Path) -> dict[str, Any]:
    """How frames differ from the reference: `is_equal`, `is_close`, and by how much, or why not at all."""
    reference = np.load(path)
    pixels, pts = frames.as_array(), frames.pts_seconds
    expected = reference["pixels"]
    if pixels.shape != expected.shape:
        shapes = f"{list(pixels.shape)} instead of {list(expected.shape)}"
        return {"is_equal": False, "is_close": False, "reason": f"shape {shapes}"}
    has_same_pixels = np.array_equal(pixels, expected)
    # Frame by frame: together they may be gigabytes.
    differences = [] if has_same_pixels else zip(pixels, expected, strict=True)
    difference = sum(float(np.abs(a.astype(np.int16) - b).mean()) for a, b in differences) / len(expected)
    late = None if pts is None else float(np.abs(np.asarray(pts) - reference["pts_seconds"]).max())
    return {
        "is_equal": has_same_pixels and (late is None or late == 0),
        "is_close": difference <= CLOSE_MEAN_DIFFERENCE and (late is None or late <= CLOSE_PTS_SECONDS),
        "mean_difference": round(difference, 3),
        "pts_difference_seconds": late,
    }


def _measured(job: Job) -> dict[str, Any]:
    job.before()
    gc.collect()
    gc.disable()
    counted, counters = job.peer.picture_count(), job.peer.counters()
    meter = CpuMeter()
    meter.start()
    start = time.perf_counter()
    result = job.run()
    wall = time.perf_counter() - start
    own = time.process_time()
    job.peer.settle()
    cpu = meter.stop(own)
    gc.enable()
    spent = job.peer.counters()
    delivered = job.after(result)
    del result
    if counted is not None:
        delivered.picture_count = (job.peer.picture_count() or 0) - counted
    return {
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "frame_count": delivered.frame_count,
        "picture_count": delivered.picture_count,
        "values": delivered.values | {name: value - counters[name] for name, value in spent.items()},
    }


def _answer(job: Job, question: dict[str, Any]) -> dict[str, Any]:
    match question["do"]:
        case "measure":
            return _measured(job)
        case "verify":
            job.before()
            return compared(job.outputs(), Path(question["path"]))
        case "reference":
            job.before()
            frames = job.outputs()
            np.savez(question["path"], pixels=frames.as_array(), pts_seconds=np.asarray(frames.pts_seconds))
            return {}
        case unknown:
            raise ValueError(unknown)


class _Desk:
    """Where the questions are answered: holds the peer, and the job that is at hand."""

    def __init__(self) -> None:
        self.peer: Peer | None = None
        self.job: Job | None = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        if question["do"] == "begin":
            return self._begin(JobOrder(**question["order"]))
        assert self.job is not None
        return _answer(self.job, question)

    def _begin(self, order: JobOrder) -> dict[str, Any]:
        if self.job is not None:
            self.job.end()
            self.job = None
        if self.peer is None:
            self.peer = load(order.peer)
            self.peer.begin(order.setting)
        self.job = order.make(self.peer)
        return {"version": self.peer.version()}

    def end(self) -> None:
        if self.job is not None:
            self.job.end()
        if self.peer is not None:
            self.peer.end()


def _in_words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"


def main() -> None:
    """Answers the parent's questions, a line each, until it says `end` or goes away."""
    desk = _Desk()
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rw") as lines:
        # Workers that the job starts by exec shall not keep it open.
        connection.set_inheritable(False)
        for line in lines:
            question = json.loads(line)
            if question["do"] == "end":
                break
            try:
                answer = desk.answer(question)
            except CannotError as error:
                answer = {"cannot": str(error)}
            except Exception as error:  # of whichever library it is; the parent decides
                traceback.print_exc()
                answer = {"cannot": _in_words(error)}
            lines.write(json.dumps(answer) + "\n")
            lines.flush()
        desk.end()


if __name__ == "__main__":
    main()
