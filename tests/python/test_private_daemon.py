"""Where no daemon answers, the first client starts a private one, and it ends after its last client."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import eventually, reference_digests

READ_AND_WAIT = """
import sys
import hashlib
import torch
from reeld.decoders import VideoDecoder
decoder = VideoDecoder(sys.argv[1])
print(hashlib.sha1(decoder[7].contiguous().numpy().tobytes()).hexdigest()[:16], flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(
    Path("/run/reeld/reeld.sock").exists(), reason="this machine has a daemon of its own, which comes first"
)


def daemons_of(runtime: Path) -> list[int]:
    """Process ids of the brokers that were started in this runtime directory."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"serve" in command and f"XDG_RUNTIME_DIR={runtime}".encode() in environment:
            found.append(int(folder.name))
    return found


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """A runtime directory as a login gives it. After the test no daemon may be left in it."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    yield folder
    eventually(lambda: daemons_of(folder) == [], "the private daemon ends after its last client")


def client(file: Path, runtime: Path) -> subprocess.Popen[str]:
    """A process that reads a frame and stays until its input is closed."""
    hidden = ("REELD_SOCKET", "REELD_NO_AUTOSTART", "REELD_BINARY")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["XDG_RUNTIME_DIR"] = environment["XDG_CACHE_HOME"] = str(runtime)
    return subprocess.Popen(
        [sys.executable, "-c", READ_AND_WAIT, str(file)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_several_clients_share_one_private_daemon(media: Path, runtime: Path) -> None:
    file = media / "h264_bframes.mp4"
    clients = [client(file, runtime) for _ in range(3)]
    answers = [process.stdout.readline().strip() for process in clients if process.stdout]
    assert answers == [reference_digests(file)[7]] * 3
    assert len(daemons_of(runtime)) == 1
    for process in clients:
        process.communicate(timeout=100)
        assert process.returncode == 0


def test_a_second_generation_gets_a_new_daemon(media: Path, runtime: Path) -> None:
    file = media / "h264_bframes.mp4"
    for _ in range(2):
        process = client(file, runtime)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == reference_digests(file)[7]
        process.communicate(timeout=100)
        assert process.returncode == 0
        eventually(lambda: daemons_of(runtime) == [], "the private daemon ends after its last client")


def test_without_autostart_a_missing_daemon_is_an_error_that_helps(media: Path, runtime: Path) -> None:
    code = """
import sys, reeld
from reeld.decoders import VideoDecoder
try:
    VideoDecoder(sys.argv[1])
except ConnectionError as error:
    assert isinstance(error, reeld.DaemonUnavailableError)
    print(error)
"""
    environment = {name: value for name, value in os.environ.items() if name != "REELD_SOCKET"}
    environment |= {"XDG_RUNTIME_DIR": str(runtime), "REELD_NO_AUTOSTART": "1"}
    command = [sys.executable, "-c", code, str(media / "h264_bframes.mp4")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    assert "reeld" in result.stdout
