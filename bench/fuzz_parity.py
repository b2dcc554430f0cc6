"""Random programs of decoder calls on TorchCodec and on this package: `script/bench fuzz-parity`.

Every answer must be equal, pixels with tolerance 0, or an exception of TorchCodec's class. What a program is
and how two answers are compared does not live here but in `tests/python/parity`. A program that shows a
difference is printed as JSON, shortened; `--program FILE` runs it again.

Writes bench/results/fuzz-parity.json and fails where there is a difference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from own_daemon import REPOSITORY, OwnDaemon, commit, machine

sys.path.insert(0, str(REPOSITORY / "tests" / "python"))
if TYPE_CHECKING:
    from parity import pool

COUNT = 10_000
RESULTS = REPOSITORY / "bench" / "results"
LOG = REPOSITORY / "target" / "logs" / "fuzz-parity.log"
# A line of progress as often as this where the output is no terminal.
QUIET_SECONDS = 30


class Progress:
    """Differences as they are found, and how many programs are done.

    The latter in one line that is written over, or a line now and then in a log.
    """

    def __init__(self, count: int) -> None:
        """Begins at 0 of `count`."""
        self._count = count
        self._started = self._told = time.monotonic()
        self._difference_count = 0

    def __call__(self, report: pool.Report) -> None:
        """Tells what there is to be told."""
        for found in report.differences[self._difference_count :]:
            print(f"\n{found['words']}\n    {found.get('shortest', found['program'])}", flush=True)
        self._difference_count = len(report.differences)
        now, done = time.monotonic(), report.program_count
        is_terminal = sys.stderr.isatty()
        if done < self._count and now - self._told < (0.2 if is_terminal else QUIET_SECONDS):
            return
        self._told = now
        left = (now - self._started) / done * (self._count - done)
        bar = "#" * (40 * done // self._count)
        again = "\r" if is_terminal else ""
        print(
            f"{again}[{bar:<40}] {done} of {self._count} programs, {left:.0f} s left ",
            end="" if is_terminal and done < self._count else "\n",
            file=sys.stderr,
            flush=True,
        )


def versions() -> dict[str, str]:
    """Of what the answers depend on."""
    import numpy as np
    import reeld
    import torch
    import torchcodec
    import torchvision

    modules = {
        "reeld": reeld,
        "numpy": np,
        "torch": torch,
        "torchcodec": torchcodec,
        "torchvision": torchvision,
    }
    ffmpeg = subprocess.run(
        ["ffmpeg", "-version"], capture_output=True, text=True, check=True
    ).stdout.split()[2]
    return {**{name: str(module.__version__) for name, module in modules.items()}, "ffmpeg": ffmpeg}


def run_one(file: Path) -> None:
    """Runs the program in a file here and prints how each answer compares."""
    from parity import runner
    from parity.programs import Program

    program = Program.from_json(file.read_text())
    findings = runner.run(program)
    for finding in findings:
        call = (
            "opening" if finding.position == runner.OPENING else json.dumps(program.calls[finding.position])
        )
        print(f"{finding.verdict:10} {call} {finding.words}")
    if any(finding.verdict == runner.DIFFERENT for finding in findings):
        sys.exit(1)


def run_many(count: int, seed: int, process_count: int) -> dict[str, Any]:
    """Runs the programs 0 to `count` of a seed."""
    from parity import generator, pool

    LOG.parent.mkdir(parents=True, exist_ok=True)
    LOG.write_bytes(b"")
    started = time.monotonic()
    report = pool.run_all(
        (generator.program(seed, number) for number in range(count)),
        process_count=process_count,
        log=LOG,
        progress=Progress(count),
    )
    return {
        "program_count": report.program_count,
        "seed": seed,
        "seconds": round(time.monotonic() - started),
        "call_count": report.calls.total(),
        "difference_count": len(report.differences),
        "verdicts": dict(report.verdicts.most_common()),
        "known_differences": dict(sorted(report.known.items())),
        "calls": dict(report.calls.most_common()),
        "clips": dict(sorted(report.clips.items())),
        "differences": report.differences,
    }


def main() -> None:
    """Reads the command line, runs the programs and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=COUNT, help=f"programs to run, usually {COUNT}")
    parser.add_argument("--seed", type=int, default=0, help="which programs, usually those of seed 0")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--program", type=Path, metavar="FILE", help="run the program in this file alone")
    parser.add_argument("--no-result", action="store_true", help="leave bench/results as it is")
    options = parser.parse_args()
    subprocess.run([REPOSITORY / "tests" / "media" / "generate"], check=True, stdout=subprocess.DEVNULL)
    # Programs ask for results of more than the usual quota, which TorchCodec has not.
    with OwnDaemon("--client-memory-mib", "4096"):
        if options.program is not None:
            run_one(options.program)
            return
        result = {
            "name": "fuzz-parity",
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
            "extra_media": sorted(file.name for file in _extra_files()),
            **run_many(options.count, options.seed, options.processes),
        }
    if not options.no_result:
        (RESULTS / "fuzz-parity.json").write_text(json.dumps(result, indent=2) + "\n")
    words = f"{result['program_count']} programs with {result['call_count']} calls in {result['seconds']} s"
    print(f"{words}: {result['difference_count']} differences. {json.dumps(result['verdicts'])}")
    if result["difference_count"]:
        sys.exit(1)


def _extra_files() -> list[Path]:
    from support import extra_files

    return extra_files()


if __name__ == "__main__":
    main()
