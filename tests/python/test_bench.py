"""The benchmark's own arithmetic: CPU time and memory of process trees, bounds, comparisons, goals, tables.

What it measures is not checked here, and no time is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "bench"))

from suite import goals, measuring, report
from suite.contest import Row
from suite.peers.base import Frames
from suite.runner import compared

_BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
_STAY = "import sys\nprint('ready', flush=True)\nsys.stdin.read()\n"
# CPU time of processes that have ended is counted in ticks.
_TICK_SECONDS = 0.01


def _cpu_seconds_of(command: list[str]) -> float:
    meter = measuring.CpuMeter()
    meter.start()
    subprocess.run(command, check=True)
    return meter.stop(time.process_time())


def test_cpu_of_a_child_that_has_ended_is_counted() -> None:
    assert _cpu_seconds_of([sys.executable, "-c", _BURN]) >= 0.3 - _TICK_SECONDS


def test_cpu_of_a_grandchild_that_has_ended_is_counted() -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_BURN!r}], check=True)"
    assert _cpu_seconds_of([sys.executable, "-c", code]) >= 0.3 - _TICK_SECONDS


def test_cpu_of_a_child_that_lives_is_counted() -> None:
    meter = measuring.CpuMeter()
    meter.start()
    command = [sys.executable, "-c", _BURN + _STAY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        seconds = meter.stop(time.process_time())
        assert child.pid in measuring.descendants(os.getpid())
    assert seconds >= 0.3


def test_memory_of_a_child_is_seen() -> None:
    code = "block = bytearray(b'x' * 50_000_000)\n" + _STAY
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with measuring.MemorySampler(child.pid, 10) as memory:
            pass
        assert measuring.open_file_count(child.pid) >= 3
    assert memory.peak_bytes >= 50_000_000


def test_ended_process_has_no_memory_and_no_files() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert measuring.tree_pss_bytes(child.pid) == 0
    assert measuring.open_file_count(child.pid) == 0


def test_bounds_of_equal_values_are_that_value() -> None:
    assert measuring.bootstrap_bounds([2.0] * 5) == (2.0, 2.0)


def test_bounds_enclose_the_median_and_are_the_same_each_time() -> None:
    values = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2]
    low, high = measuring.bootstrap_bounds(values)
    assert low < measuring.median(values) < high
    assert measuring.bootstrap_bounds(values) == (low, high)
    wider_low, wider_high = measuring.bootstrap_bounds(values, 0.999)
    assert wider_low <= low
    assert high <= wider_high


def test_ratios_are_of_the_same_round() -> None:
    assert measuring.pair_ratios([2.0, 9.0, 4.0], [1.0, 3.0]) == [2.0, 3.0]


def test_spread_is_a_share_of_the_median() -> None:
    assert measuring.spread([8.0, 9.0, 10.0, 11.0, 12.0]) == pytest.approx(0.1)
    assert measuring.spread([1.0, 2.0]) == 0.0


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference.npz"
    pixels = np.full((2, 4, 6, 3), 100, dtype=np.uint8)
    np.savez(path, pixels=pixels, pts_seconds=np.array([0.0, 0.5]))
    return path


def test_equal_frames_in_either_layout_are_equal(reference: Path) -> None:
    channels_first = np.full((2, 3, 4, 6), 100, dtype=np.uint8)
    assert compared(Frames(channels_first, [0.0, 0.5]), reference)["is_equal"]
    pictures = [np.full((4, 6, 3), 100, dtype=np.uint8)] * 2
    assert compared(Frames(pictures, [0.0, 0.5]), reference)["is_equal"]


@pytest.mark.parametrize(("value", "is_close"), [(97, True), (96, False), (104, False)])
def test_mean_difference_decides_what_is_close(reference: Path, value: int, is_close: bool) -> None:
    found = compared(Frames(np.full((2, 4, 6, 3), value, dtype=np.uint8), None), reference)
    assert not found["is_equal"]
    assert found["is_close"] == is_close
    assert found["mean_difference"] == abs(value - 100)


def test_frames_of_other_times_or_sizes_are_not_close(reference: Path) -> None:
    same = np.full((2, 4, 6, 3), 100, dtype=np.uint8)
    assert not compared(Frames(same, [0.0, 0.6]), reference)["is_close"]
    assert "[1, 4, 6, 3]" in compared(Frames(same[:1], [0.0]), reference)["reason"]


def _row(tool: str, peer: str, seconds: list[float]) -> Row:
    return Row(
        "single",
        "first 100",
        "mandelbrot-gop250",
        tool,
        peer,
        {"threads": 1},
        wall_seconds=seconds,
        cpu_seconds=seconds,
        frames_delivered=100,
        pictures_decoded=100,
        verified="equal",
    )


def _verdict(rows: list[Row], goal: str) -> goals.Verdict:
    return next(verdict for verdict in goals.verdicts(rows) if verdict.goal == goal)


def test_goal_is_held_against_the_best_peer() -> None:
    ours = _row("reeld, index cold", "reeld", [1.0] * 5)
    rows = [ours, _row("PyAV", "PyAV", [2.0] * 5), _row("TorchCodec", "TorchCodec", [1.5] * 5)]
    verdict = _verdict(rows, "first 100, index cold")
    assert (verdict.against, verdict.value, verdict.is_met) == ("TorchCodec", 1.5, True)
    verdict = _verdict(rows, "first 100, CPU, index cold")
    assert verdict.value == pytest.approx(2 / 3)
    assert verdict.is_met


def test_goal_is_not_met_where_only_the_median_passes() -> None:
    ours = _row("reeld, index cold", "reeld", [1.0] * 5)
    theirs = _row("TorchCodec", "TorchCodec", [0.5, 0.6, 1.1, 1.2, 1.3])
    verdict = _verdict([ours, theirs], "first 100, index cold")
    assert verdict.value > 1.0
    assert verdict.bound < 1.0
    assert not verdict.is_met


def test_goals_without_a_measurement_are_left_out() -> None:
    assert goals.verdicts([]) == []


def test_table_says_who_cannot_and_whose_frames_differ() -> None:
    cannot = Row("single", "first 100", "clip", "decord", "decord", cannot="cannot find video stream")
    differs = Row("single", "first 100", "clip", "OpenCV", "OpenCV", verified="failed")
    differs.difference = {"mean_difference": 7.5, "pts_difference_seconds": 0.0}
    timed = _row("reeld, index cold", "reeld", [0.0105, 0.0100, 0.0110])
    timed.clip = "clip"
    facts = {
        "command": "script/bench single",
        "bench": "single",
        "is_quick": False,
        "seconds": 60,
        "commit": "0123456789ab",
        "versions": {"python": "3.11"},
        "machine": {"processor": "some", "cores": 2, "memory_bytes": 2**30, "kernel": "6"},
    }
    page = report.markdown(facts, [cannot, differs, timed], [], ["single.png"])
    assert "| decord | cannot: cannot find video stream |" in page
    assert "| OpenCV | not timed: NO (7.5, times 0.0) |" in page
    assert "| reeld, index cold | 10.5 ms ± 2% | 10.5 ms ± 2% |" in page
    assert "![single](single.png)" in page
