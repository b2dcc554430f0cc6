"""Ctrl-C ends a call that waits, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from support import Daemon, eventually, run_python

WAIT_FOR_THE_LAST_FRAME = """
import sys
from reeld.decoders import VideoDecoder
decoder = VideoDecoder(sys.argv[1])
try:
    # From here on an interrupt is caught below.
    print("asking", flush=True)
    decoder.get_frames_at([399, 398, 390])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    # The connection is still good for the next call.
    print(decoder.get_frame_at(0).pts_seconds, flush=True)
else:
    print("finished", flush=True)
"""


def test_ctrl_c_while_a_long_decode_is_waited_for(media: Path, daemon: Daemon) -> None:
    command = [sys.executable, "-c", WAIT_FOR_THE_LAST_FRAME, str(media / "slow.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "asking\n"
        eventually(
            lambda: daemon.status()["request_count"] > 0 or child.poll() is not None,
            "the request is on its way",
        )
        os.kill(child.pid, signal.SIGINT)
        output, errors = child.communicate(timeout=100)
    assert output.split() == ["interrupted", "0.0"], errors
    assert child.returncode == 0
    eventually(lambda: daemon.status()["request_count"] == 0, "the interrupted request is over")
    eventually(lambda: daemon.lease_count() == 0, "its result is given back")


def test_the_interpreter_runs_other_threads_while_a_call_waits(media: Path) -> None:
    code = """
import sys, threading
from reeld.decoders import VideoDecoder
decoder = VideoDecoder(sys.argv[1])
ticks, over = 0, threading.Event()
def tick():
    global ticks
    while not over.is_set():
        ticks += 1
thread = threading.Thread(target=tick, name="ticker")
thread.start()
before = ticks
decoder.get_frames_at([120])
waited = ticks - before
over.set()
thread.join()
print(waited)
"""
    result = run_python(code, str(media / "slow.mp4"))
    assert result.returncode == 0, result.stderr
    # With the lock held there would be none; a thread that shares the lock counts to some millions a second.
    assert int(result.stdout) > 10_000
