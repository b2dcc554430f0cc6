"""What reeld wants to reach against the best peer, and whether it did: when the bound passes the limit.

The bound is of the rounds' ratios: each of our runs against the peer's run of the same round, see
`measuring`. What was measured does not live here; see `scenarios/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from suite.contest import Row
from suite.measuring import bootstrap_bounds, median, pair_ratios

_MEGABYTE = 1e6


class Results:
    """The rows of a run, by what they are about."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Takes all."""
        self.rows = rows

    def cell(self, scenario: str, workload: str, clip: str = "") -> list[Row]:
        """The timed rows of a cell. Of its workload the beginning is enough, of its clip a part."""
        return [
            row
            for row in self.rows
            if row.scenario == scenario
            and row.workload.startswith(workload)
            and clip in row.clip
            and row.is_timed
        ]

    def series(self, cell: list[Row], tool: str, figure: str) -> list[float]:
        """A figure of a tool, a value a round; empty if there is none."""
        return next((figures(row, figure) for row in cell if row.tool == tool), [])

    def best_peer(self, cell: list[Row], figure: str) -> Row | None:
        """The one with the lowest median."""
        peers = [row for row in cell if row.peer != "reeld" and figures(row, figure)]
        return min(peers, key=lambda row: median(figures(row, figure)), default=None)


def figures(row: Row, figure: str) -> list[float]:
    """The values of a figure, a value a round."""
    if figure in ("wall_seconds", "cpu_seconds"):
        return getattr(row, figure)
    return row.values.get(figure, [])


@dataclass
class Outcome:
    """Values a round that a limit is set for, and against whom they were measured."""

    values: list[float]
    against: str = ""


@dataclass(frozen=True)
class Goal:
    """A limit, and what is to be held against it."""

    words: str
    measure: Callable[[Results], Outcome | None]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "x"

    def verdict(self, results: Results) -> Verdict | None:
        """None where the run has nothing to say about it."""
        outcome = self.measure(results)
        if outcome is None or not outcome.values:
            return None
        low, high = bootstrap_bounds(outcome.values)
        if self.at_least is not None:
            bound, is_met, limit = low, low >= self.at_least, self.at_least
        else:
            assert self.at_most is not None
            bound, is_met, limit = high, high <= self.at_most, self.at_most
        sign = "≥" if self.at_least is not None else "≤"
        value = median(outcome.values)
        count = len(outcome.values)
        return Verdict(
            self.words,
            f"{sign} {limit:g} {self.unit}",
            value,
            bound,
            is_met,
            outcome.against,
            count,
            limit,
            sign,
        )


@dataclass(frozen=True)
class Verdict:
    """How it came out."""

    goal: str
    wanted: str
    value: float
    # The bound with a confidence of 95 %: the lower one where more is better.
    bound: float
    is_met: bool
    against: str
    round_count: int
    limit: float
    sign: str

    def facts(self) -> dict[str, Any]:
        """For the result file."""
        return asdict(self)


def _faster(
    scenario: str, workload: str, tool: str, *, clip: str = "", figure: str = "wall_seconds"
) -> Callable[[Results], Outcome | None]:
    """How many times as fast as the best peer."""

    def measure(results: Results) -> Outcome | None:
        cell = results.cell(scenario, workload, clip)
        ours, best = results.series(cell, tool, figure), results.best_peer(cell, figure)
        if not ours or best is None:
            return None
        return Outcome(pair_ratios(figures(best, figure), ours), best.tool)

    return measure


def _cpu(scenario: str, workload: str, tool: str, *, clip: str = "") -> Callable[[Results], Outcome | None]:
    """Which share of the CPU seconds of the peer that is the fastest by the clock."""

    def measure(results: Results) -> Outcome | None:
        cell = results.cell(scenario, workload, clip)
        ours, best = results.series(cell, tool, "cpu_seconds"), results.best_peer(cell, "wall_seconds")
        if not ours or best is None:
            return None
        return Outcome(pair_ratios(ours, best.cpu_seconds), best.tool)

    return measure


def _between(tool: str, workload: str, other: str, figure: str) -> Callable[[Results], Outcome | None]:
    """One of our cells of `shared` against another."""

    def measure(results: Results) -> Outcome | None:
        first = results.series(results.cell("shared", workload), tool, figure)
        second = results.series(results.cell("shared", other), tool, figure)
        return Outcome(pair_ratios(first, second), other) if first and second else None

    return measure


def _pictures(tool: str, workload: str, other: str) -> Callable[[Results], Outcome | None]:
    def measure(results: Results) -> Outcome | None:
        counts = [
            row.pictures_decoded
            for each in (workload, other)
            for row in results.cell("shared", each)
            if row.tool == tool and row.pictures_decoded
        ]
        return Outcome([counts[0] / counts[1]], other) if len(counts) == 2 and counts[1] else None

    return measure


def _value(
    scenario: str, workload: str, tool: str, figure: str, scale: float
) -> Callable[[Results], Outcome | None]:
    def measure(results: Results) -> Outcome | None:
        values = results.series(results.cell(scenario, workload), tool, figure)
        return Outcome([value * scale for value in values]) if values else None

    return measure


def _above_conversion(results: Results) -> Outcome | None:
    cell = results.cell("hit", "large")
    hits = results.series(cell, "reeld", "p50_seconds")
    alone = results.series(cell, "conversion alone (PyAV)", "p50_seconds")
    values = [(hit - other) * 1e6 for hit, other in zip(hits, alone, strict=False)]
    return Outcome(values, "conversion alone (PyAV)") if values else None


def _memory(results: Results, worker_count: int, tool: str) -> float:
    """The memory of all processes with so many workers and the most videos; NaN if it was not measured."""
    cells = [row for row in results.cell("worker", f"{worker_count} workers hold") if row.tool == tool]
    largest = max(cells, key=lambda row: row.frames_delivered, default=None)
    # Workers that hold nothing deliver nothing; they are the same with however many videos.
    return median(figures(largest, "memory_bytes")) if largest else math.nan


def _added_worker(results: Results) -> Outcome | None:
    """Megabytes of each worker from the ninth to the 16th, beyond those of one that holds nothing."""
    ours = _memory(results, 16, "reeld") - _memory(results, 8, "reeld")
    bare = "python alone, with a daemon"
    python = _memory(results, 16, bare) - _memory(results, 8, bare)
    value = (ours - python) / 8 / _MEGABYTE
    return None if math.isnan(value) else Outcome([value], bare)


def _total_memory(results: Results) -> Outcome | None:
    ratio = _memory(results, 16, "TorchCodec") / _memory(results, 16, "reeld")
    return None if math.isnan(ratio) else Outcome([ratio], "TorchCodec")


def _all() -> list[Goal]:
    goals = []
    gop250 = "gop250"
    for index in ("cold", "warm"):
        tool = f"reeld, index {index}"
        note = f"index {index}"
        goals += [
            Goal(f"first 100, {note}", _faster("single", "first", tool, clip=gop250), at_least=1.0),
            Goal(f"first 100, CPU, {note}", _cpu("single", "first", tool, clip=gop250), at_most=1.1),
        ]
        for kind in ("10 uniform", "10 random"):
            goals += [
                Goal(f"{kind}, {note}", _faster("single", kind, tool, clip=gop250), at_least=1.5),
                Goal(f"{kind}, CPU, {note}", _cpu("single", kind, tool, clip=gop250), at_most=0.75),
            ]
        goals += [
            Goal(f"loader-like, {note}", _faster("single", "loader-like", tool), at_least=1.3),
            Goal(f"tutorial, {note}", _faster("tutorial", "", tool), at_least=1.3),
        ]
    for tool in ("reeld, ClipLoader", "reeld, dataset"):
        way = tool.removeprefix("reeld, ")
        new, same = "new clips, 8", "same clips, 8"
        goals += [
            Goal(
                f"loader, epoch 1, {way}",
                _faster("loader", new, tool, figure="epoch_1_seconds"),
                at_least=1.3,
            ),
            Goal(
                f"loader, epoch 3 of the same clips, {way}",
                _faster("loader", same, tool, figure="epoch_3_seconds"),
                at_least=5.0,
            ),
            Goal(f"robot, 8 workers, {way}", _faster("robot", "windows of 6, 8", tool), at_least=1.5),
            Goal(f"robot, 1 worker, {way}", _faster("robot", "windows of 6, 1", tool), at_least=0.95),
        ]
    off, four, one = "reeld, picture cache off", "four identical jobs", "one job"
    return [
        *goals,
        Goal("four identical jobs, pictures decoded", _pictures(off, four, one), at_most=1.2),
        Goal("four identical jobs, time", _between(off, four, one, "work_seconds"), at_most=1.3),
        Goal("memory of an added worker", _added_worker, at_most=25, unit="MB"),
        Goal("memory of 16 workers with all videos, below TorchCodec's", _total_memory, at_least=5),
        Goal(
            "opening an indexed file, p50",
            _value("worker", "opening", "reeld, index warm", "p50_seconds", 1e3),
            at_most=0.3,
            unit="ms",
        ),
        Goal("the same frame again", _faster("again", "frame", "reeld, all caches warm"), at_least=50),
        Goal("one frame back", _faster("again", "2 frames", "reeld, all caches warm"), at_least=10),
        Goal(
            "hit at 224x224, p50",
            _value("hit", "224x224", "reeld", "p50_seconds", 1e6),
            at_most=60,
            unit="µs",
        ),
        Goal(
            "hit at 224x224, p99",
            _value("hit", "224x224", "reeld", "p99_seconds", 1e6),
            at_most=300,
            unit="µs",
        ),
        Goal("hit of a large frame, above its conversion, p50", _above_conversion, at_most=60, unit="µs"),
    ]


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Of all goals that these rows say something about."""
    results = Results(rows)
    found = [goal.verdict(results) for goal in _all()]
    return [verdict for verdict in found if verdict is not None]
