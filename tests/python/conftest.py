"""Fixtures of the Python tests: clips made by ffmpeg, and one daemon that serves the whole session."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import MEDIA, REPOSITORY, SUBJECT, Daemon


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full` runs what takes too long for each change."""
    parser.addoption("--full", action="store_true", help="also run the tests marked `full`")


def pytest_configure() -> None:
    """Lets programs that tests start hear Ctrl-C, also where a shell runs the tests in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `--full`, the tests marked so are left out rather than skipped: they are many."""
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture(scope="session", autouse=True)
def media() -> Path:
    """The folder with all clips of tests/media/generate."""
    subprocess.run(
        [REPOSITORY / "tests" / "media" / "generate", MEDIA], check=True, stdout=subprocess.DEVNULL
    )
    return MEDIA


@pytest.fixture(scope="session", autouse=True)
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon | None]:
    """The daemon that this process and its children talk to; None where TorchCodec stands in for us."""
    if SUBJECT == "torchcodec":
        yield None
        return
    daemon = Daemon(tmp_path_factory.mktemp("daemon"))
    os.environ["REELD_SOCKET"] = str(daemon.socket)
    os.environ["REELD_NO_AUTOSTART"] = "1"
    yield daemon
    totals = daemon.status()["totals"]
    daemon.stop()
    # All that the tests have thrown at it: no engine has died of it, and no lease was given back twice.
    assert totals["engine_crashes"] == 0
    assert totals["stray_releases"] == 0


@pytest.fixture
def start_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Daemon]]:
    """Starts a further daemon with options of its own. Processes started later talk to that one."""
    started: list[Daemon] = []

    def start(*options: str) -> Daemon:
        daemon = Daemon(tmp_path, *options)
        started.append(daemon)
        monkeypatch.setenv("REELD_SOCKET", str(daemon.socket))
        return daemon

    yield start
    for daemon in started:
        daemon.stop()
