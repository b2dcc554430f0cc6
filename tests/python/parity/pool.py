"""Many programs in several processes. A program that crashes or hangs one is a finding like any other."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from parity.programs import Program
from parity.shrink import shrunk

# Far more than any program takes; whoever waits longer waits for ever.
GIVE_UP_SECONDS = 300
CRASHED = "crashed"
HUNG = "hung"
REFERENCE_CRASHED = "TorchCodec crashed"


@dataclass
class Report:
    """What came of many programs."""

    program_count: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    """Calls and openings by how their answers compare."""
    clips: Counter[str] = field(default_factory=Counter)
    """Programs by the file that they are about."""
    calls: Counter[str] = field(default_factory=Counter)
    """Calls by name."""
    known: Counter[str] = field(default_factory=Counter)
    """Known differences by their rule and the file."""
    differences: list[dict[str, Any]] = field(default_factory=list)
    """Each the shortest program that shows it, and in what the answers differ."""


def run_all(
    programs: Iterable[Program],
    *,
    process_count: int,
    log: Path,
    progress: Callable[[Report], None] | None = None,
) -> Report:
    """Runs each program once and reports; `progress` is shown the report after each."""
    report, waiting = Report(), iter(programs)
    workers = [_Worker(log) for _ in range(process_count)]
    try:
        busy = [worker for worker in workers if worker.begin(next(waiting, None))]
        while busy:
            for worker in _ready(busy):
                program, findings = worker.finish()
                _add(report, program, findings, worker)
                if progress is not None:
                    progress(report)
                if not worker.begin(next(waiting, None)):
                    busy.remove(worker)
    finally:
        for worker in workers:
            worker.end()
    return report


def _ready(busy: list[_Worker]) -> Iterator[_Worker]:
    """The workers that have an answer, have died, or have been waited for too long."""
    soonest = min(worker.deadline for worker in busy)
    ready = multiprocessing.connection.wait(
        [worker.connection for worker in busy], timeout=max(soonest - time.monotonic(), 0)
    )
    for worker in list(busy):
        if worker.connection in ready or worker.deadline <= time.monotonic():
            yield worker


def _add(report: Report, program: Program, findings: list[dict[str, Any]], worker: _Worker) -> None:
    report.program_count += 1
    report.clips[program.clip] += 1
    for finding in findings:
        verdict = finding["verdict"]
        report.verdicts[verdict] += 1
        if finding["position"] >= 0:
            report.calls[program.calls[finding["position"]][0]] += 1
        if verdict in ("different", CRASHED, HUNG):
            found = {"program": program.to_json(), **finding}
            if verdict == "different":
                short = shrunk(program, lambda shorter: _differs(worker, shorter))
                found["shortest"] = short.to_json()
            report.differences.append(found)
        elif verdict != "same":
            report.known[f"{verdict}: {program.clip}"] += 1


def _differs(worker: _Worker, program: Program) -> bool:
    worker.begin(program)
    _, findings = worker.finish()
    return any(finding["verdict"] == "different" for finding in findings)


class _Worker:
    """A process that runs one program after the other; a new one where it died."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._program: Program | None = None
        self._start()

    def _start(self) -> None:
        # Spawned, because torch has threads here already.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, str(self._log)), daemon=True)
        self._process.start()
        theirs.close()
        self.deadline = 0.0

    def begin(self, program: Program | None, *, is_only_ours: bool = False) -> bool:
        """Sends a program on its way, if there is one."""
        if program is None:
            return False
        self._program = program
        self.connection.send((program, is_only_ours))
        self.deadline = time.monotonic() + GIVE_UP_SECONDS
        return True

    def finish(self) -> tuple[Program, list[dict[str, Any]]]:
        """The program that was begun, and the findings. It may be waited for."""
        assert self._program is not None
        program = self._program
        findings, verdict, words = self._received()
        if findings is not None:
            return program, findings
        # The one at fault is told by this package without TorchCodec beside it.
        self.begin(program, is_only_ours=True)
        findings_alone, _, words_alone = self._received()
        if findings_alone is not None and verdict == CRASHED:
            verdict = REFERENCE_CRASHED
        words = f"the process {words}; with this package alone it {words_alone}"
        return program, [{"position": -1, "verdict": verdict, "words": words}]

    def _received(self) -> tuple[list[dict[str, Any]] | None, str, str]:
        """The findings; or None, what became of the process, and that in words. Another one is here then."""
        try:
            if self.connection.poll(max(self.deadline - time.monotonic(), 0)):
                return self.connection.recv(), "", "came to its end"
            verdict = words = HUNG
        except (EOFError, ConnectionResetError):
            # Its end of the pipe is closed, so it is about to end by itself.
            self._process.join()
            code = self._process.exitcode or 0
            verdict = CRASHED
            # SIGKILL is no crash of a library: somebody else ended it, such as the kernel for want of memory.
            words = (
                f"{CRASHED} by {signal.Signals(-code).name}" if code < 0 else f"{CRASHED} with code {code}"
            )
        self.end()
        self._start()
        return None, verdict, words

    def end(self) -> None:
        """Ends the process."""
        self.connection.close()
        self._process.kill()
        self._process.join()


def _serve(connection: Any, log: str) -> None:
    # TorchCodec's library writes the stack of each error that it raises.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    import torch

    from parity import runner

    torch.set_num_threads(1)
    while True:
        try:
            program, is_only_ours = connection.recv()
        except EOFError:
            return
        reference = runner.OURS if is_only_ours else runner.REFERENCE
        connection.send([asdict(finding) for finding in runner.run(program, reference=reference)])
