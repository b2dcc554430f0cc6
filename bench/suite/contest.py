"""The contest: outputs verified, the best setting of each found, all measured in interleaved rounds.

What is measured does not live here (`scenarios/`), nor what the figures mean (`goals`, `report`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from suite.clips import WORK
from suite.job import JobOrder
from suite.measuring import MemorySampler
from suite.peers.base import BEGIN_SETTINGS, Setting
from suite.runner import Runner, RunnerError

# Short runs: a look at a process tree takes some milliseconds, in a run of its own that is not timed.
_SHORT_LOOK_SECONDS = 0.03
# Long ones are looked at while they are timed.
_LONG_LOOK_SECONDS = 0.5
# Whoever takes longer than this many times the fastest peer is measured fewer times.
_STRAGGLER_FACTOR = 2
_STRAGGLER_ROUNDS = 3


@dataclass(frozen=True)
class Plan:
    """How much time there is."""

    is_quick: bool
    rounds_min: int
    rounds_max: int
    # What the rounds of one cell may take together, if that is more than the fewest rounds.
    cell_seconds: float


FULL = Plan(is_quick=False, rounds_min=5, rounds_max=5, cell_seconds=30)
QUICK = Plan(is_quick=True, rounds_min=1, rounds_max=1, cell_seconds=1)


@dataclass(frozen=True)
class Contestant:
    """A library, or a way of using it, in one cell."""

    # As tables call it.
    tool: str
    peer: str
    # What may be its best setting; all are tried.
    candidates: list[Setting]
    job: str
    arguments: dict[str, Any]
    # Which of the cell's references its frames are compared with, by setting.
    reference: Callable[[Setting], str] = field(default=lambda _: "plain")
    must_equal: bool = False
    # For finding the best setting, where that needs less than the whole run.
    trial_arguments: dict[str, Any] | None = None
    # Where a run is long and nobody expects it to be the best.
    rounds_max: int | None = None

    def trial_order(self, setting: Setting) -> JobOrder:
        """What a measuring process is told when settings are tried."""
        return JobOrder(self.job, self.peer, setting, self.trial_arguments or self.arguments)

    def order(self, setting: Setting) -> JobOrder:
        """What a measuring process is told."""
        return JobOrder(self.job, self.peer, setting, self.arguments)


@dataclass(frozen=True)
class Cell:
    """One workload on one clip, and who competes in it."""

    scenario: str
    workload: str
    clip: str
    contestants: list[Contestant]
    # TorchCodec's orders whose frames are right by definition.
    references: dict[str, JobOrder] = field(default_factory=dict)
    # A new process for each run: for long runs whose memory counts.
    is_fresh: bool = False
    # Of fresh processes, a run that does not count comes first.
    has_warm_up: bool = True
    # Rounds that it needs at least, where a goal depends on it.
    rounds_min: int | None = None
    rounds_max: int | None = None
    # Cells of the same name here have the same outputs: a setting is verified in the first of them.
    common_outputs: str = ""

    @property
    def title(self) -> str:
        """For the progress bar."""
        return " · ".join(part for part in (self.scenario, self.workload, self.clip) if part)


@dataclass
class Row:
    """What came out for one contestant in one cell: a `run` of the result file."""

    scenario: str
    workload: str
    clip: str
    tool: str
    peer: str
    setting: Setting = field(default_factory=dict)
    wall_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    pss_peak_bytes: int = 0
    pictures_decoded: int | None = None
    frames_delivered: int = 0
    # "equal", "close", "failed", "reference", or "not compared" with the reason in `note`.
    verified: str = "not compared"
    difference: dict[str, Any] = field(default_factory=dict)
    # Further figures, a value a round.
    values: dict[str, list[float]] = field(default_factory=dict)
    # The median of the trial of each setting.
    trials: list[dict[str, Any]] = field(default_factory=list)
    # Why there is no time.
    cannot: str | None = None

    @property
    def is_timed(self) -> bool:
        """Whether it has times."""
        return bool(self.wall_seconds)

    def facts(self) -> dict[str, Any]:
        """For the result file."""
        return asdict(self)


class Pool:
    """The measuring processes of a scenario: one for each library and setting, kept from cell to cell.

    If they are `shared`, one does for all settings that its library need not begin with: to start them takes
    most of a quick run.
    """

    def __init__(self, *, shared: bool) -> None:
        """None yet."""
        self._is_shared = shared
        self._runners: dict[str, Runner] = {}
        # Why a process could not be started: it will not be the next time.
        self._cannot: dict[str, RunnerError] = {}
        self.versions: dict[str, str] = {}

    def _key(self, order: JobOrder) -> str:
        setting = order.setting
        if self._is_shared:
            setting = {name: value for name, value in setting.items() if name in BEGIN_SETTINGS}
        return json.dumps([order.peer, setting], sort_keys=True)

    def runner(self, order: JobOrder) -> Runner:
        """The process for this order, which is the job that it has at hand then.

        Raises:
            RunnerError: It cannot do it.
        """
        key = self._key(order)
        runner = self._runners.get(key)
        if runner is None:
            if key in self._cannot:
                raise self._cannot[key]
            try:
                runner = self.fresh(order)
            except RunnerError as error:
                self._cannot[key] = error
                raise
            self._runners[key] = runner
        else:
            try:
                runner.begin(order)
            except RunnerError:
                self._drop(runner)
                raise
        return runner

    def fresh(self, order: JobOrder) -> Runner:
        """A new process, which the caller has to end."""
        runner = Runner(order, WORK / "logs" / f"{order.peer}.log")
        self.versions[order.peer] = runner.facts["version"]
        return runner

    def _drop(self, runner: Runner) -> None:
        self._runners = {key: each for key, each in self._runners.items() if each is not runner}
        runner.end()

    def drop(self, order: JobOrder) -> None:
        """Ends the process of an order that will not be needed any more, or that failed."""
        runner = self._runners.pop(self._key(order), None)
        if runner is not None:
            runner.end()

    def end(self) -> None:
        """Ends all."""
        for runner in self._runners.values():
            runner.leave()
        for runner in self._runners.values():
            runner.end()
        self._runners.clear()


class _References:
    """The frames that are right by definition. Each is made when it is first needed."""

    def __init__(self, folder: Path, make: Callable[[str, Path], None]) -> None:
        self._folder = folder
        self._make = make

    def __getitem__(self, name: str) -> Path:
        path = self._folder / f"{name}.npz"
        if not path.exists():
            self._make(name, path)
        return path


class Contest:
    """Runs cells one after the other."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        """`say` is told what is going on."""
        self._plan = plan
        self._say = say
        self.pool = Pool(shared=plan.is_quick)
        # By what the cells have in common, and by the setting: verdict and difference.
        self._verified: dict[str, tuple[str, dict[str, Any]]] = {}

    def run(self, cell: Cell) -> list[Row]:
        """Verifies, chooses settings, measures."""
        with tempfile.TemporaryDirectory(dir=WORK, prefix="references-") as folder:
            references = _References(Path(folder), partial(self._make_reference, cell))
            rows = [self._entered(cell, contestant, references) for contestant in cell.contestants]
        ready = [
            (contestant, row)
            for contestant, row in zip(cell.contestants, rows, strict=True)
            if row.cannot is None and row.verified != "failed"
        ]
        if ready:
            self._rounds(cell, ready)
        return rows

    @contextmanager
    def _runner(self, cell: Cell, order: JobOrder, *, alone: bool = False) -> Iterator[Runner]:
        """A process for this order. It stays for later, unless the cell wants new ones and there is time."""
        if self._plan.is_quick or not (cell.is_fresh or alone):
            yield self.pool.runner(order)
            return
        runner = self.pool.fresh(order)
        try:
            yield runner
        finally:
            runner.end()

    def _make_reference(self, cell: Cell, name: str, path: Path) -> None:
        self._say(f"{cell.title} · reference")
        # In a process of its own: its memory shall not count for anyone.
        with self._runner(cell, cell.references[name], alone=True) as runner:
            runner.reference(path)

    def _entered(self, cell: Cell, contestant: Contestant, references: _References) -> Row:
        """Verifies and tries each setting; the row has the best one, or says why there is none."""
        row = Row(cell.scenario, cell.workload, cell.clip, contestant.tool, contestant.peer)
        best: dict[str, Any] | None = None
        for setting in contestant.candidates:
            if self._plan.is_quick and best is not None:
                # The first that works will do.
                break
            self._say(f"{cell.title} · {contestant.tool} · trial")
            trial = self._tried(cell, contestant, setting, references)
            row.trials.append(trial)
            is_first = best is None and row.verified != "failed"
            if trial["verified"] in ("cannot", "failed"):
                if is_first:
                    row.setting = setting
                    row.cannot = trial["cannot"]
                    row.verified = "failed" if trial["verified"] == "failed" else row.verified
                    row.difference = trial["difference"]
            elif best is None or trial["wall_seconds"] < best["wall_seconds"]:
                best = trial
                row.setting, row.cannot = setting, None
                row.verified, row.difference = trial["verified"], trial["difference"]
        return row

    def _tried(
        self, cell: Cell, contestant: Contestant, setting: Setting, references: _References
    ) -> dict[str, Any]:
        """`verified` as in a row, or "cannot"; and how long it took, where there is something to choose."""
        trial: dict[str, Any] = {"setting": setting, "wall_seconds": 0.0, "difference": {}, "cannot": None}
        order = contestant.trial_order(setting)
        name = contestant.reference(setting)
        is_choice = len(contestant.candidates) > 1 and not self._plan.is_quick
        key = json.dumps([cell.common_outputs, order.peer, setting], sort_keys=True)
        if cell.common_outputs and key in self._verified and not is_choice:
            trial["verified"], trial["difference"] = self._verified[key]
            return trial
        try:
            with self._runner(cell, order) as runner:
                trial["verified"] = "not compared"
                if name in cell.references:
                    trial["difference"] = runner.verify(references[name])
                    trial["verified"] = _verdict(trial["difference"], must_equal=contestant.must_equal)
                    self._verified[key] = trial["verified"], trial["difference"]
                if trial["verified"] != "failed" and is_choice:
                    trial["wall_seconds"] = runner.measure()["wall_seconds"]
        except RunnerError as error:
            self.pool.drop(order)
            trial |= {"verified": "cannot", "cannot": str(error)}
        return trial

    def _rounds(self, cell: Cell, ready: list[tuple[Contestant, Row]]) -> None:
        costs = [self._cost(cell, contestant, row) for contestant, row in ready]
        is_peer = [contestant.peer != "reeld" for contestant, _ in ready]
        fastest = min((cost for cost, peer in zip(costs, is_peer, strict=True) if peer), default=min(costs))
        is_slow = [
            peer and cost > _STRAGGLER_FACTOR * fastest for cost, peer in zip(costs, is_peer, strict=True)
        ]
        round_seconds = sum(cost for cost, slow in zip(costs, is_slow, strict=True) if not slow)
        count = self._round_count(cell, round_seconds)
        for number in range(count):
            # Each round begins with another one, so that none always runs after the same.
            for place in range(len(ready)):
                position = (place + number) % len(ready)
                contestant, row = ready[position]
                most = _STRAGGLER_ROUNDS if is_slow[position] else contestant.rounds_max
                if most is not None and number >= most:
                    continue
                self._say(f"{cell.title} · {contestant.tool} · round {number + 1} of {count}")
                self._measure(cell, contestant, row)

    def _round_count(self, cell: Cell, round_seconds: float) -> int:
        most = min(cell.rounds_max or self._plan.rounds_max, self._plan.rounds_max)
        least = min(most, cell.rounds_min or self._plan.rounds_min)
        return max(least, min(most, int(self._plan.cell_seconds / max(round_seconds, 1e-3))))

    def _cost(self, cell: Cell, contestant: Contestant, row: Row) -> float:
        """What a run takes, from one that does not count: it warms up, and short ones show their memory."""
        if cell.is_fresh and not cell.has_warm_up:
            return 0.0
        self._say(f"{cell.title} · {contestant.tool} · warm-up")
        try:
            with (
                self._runner(cell, contestant.order(row.setting)) as runner,
                MemorySampler(runner.pid, _SHORT_LOOK_SECONDS) as memory,
            ):
                seconds = runner.measure()["wall_seconds"]
        except RunnerError as error:
            row.cannot = str(error)
            return 0.0
        row.pss_peak_bytes = memory.peak_bytes
        trial = next(trial for trial in row.trials if trial["setting"] == row.setting)
        # Looking at the memory made it slower, so that the trial tells better, if there was one.
        return trial["wall_seconds"] or seconds

    def _measure(self, cell: Cell, contestant: Contestant, row: Row) -> None:
        if row.cannot:
            return
        order = contestant.order(row.setting)
        try:
            with self._runner(cell, order) as runner:
                if cell.is_fresh:
                    with MemorySampler(runner.pid, _LONG_LOOK_SECONDS) as memory:
                        answer = runner.measure()
                    row.pss_peak_bytes = max(row.pss_peak_bytes, memory.peak_bytes)
                else:
                    answer = runner.measure()
        except RunnerError as error:
            row.cannot = str(error)
            self.pool.drop(order)
            return
        row.wall_seconds.append(answer["wall_seconds"])
        row.cpu_seconds.append(answer["cpu_seconds"])
        row.frames_delivered = answer["frame_count"]
        row.pictures_decoded = answer["picture_count"]
        for name, value in answer["values"].items():
            row.values.setdefault(name, []).append(value)


def _verdict(difference: dict[str, Any], *, must_equal: bool) -> str:
    if difference["is_equal"]:
        return "equal"
    return "close" if difference["is_close"] and not must_equal else "failed"
