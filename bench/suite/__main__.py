"""The command line of the benchmark: `script/bench [SCENARIO…] [--quick] [--clip VIDEO…] [--name NAME]`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from suite import report
from suite.clips import REPOSITORY, WORK
from suite.contest import FULL, QUICK, Contest, Row
from suite.progress import Progress
from suite.scenarios.library import Library

SCENARIOS = ["single", "tutorial", "loader", "robot", "shared", "worker", "again", "hit"]


def arguments() -> argparse.Namespace:
    """What the user wants."""
    parser = argparse.ArgumentParser(
        prog="script/bench",
        description="reeld and its peers on the same clips, in turn, in one run.",
        epilog="script/bench ipc and script/bench limits are measurements of their own.",
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help=f"default: all of {', '.join(SCENARIOS)}"
    )
    parser.add_argument("--quick", action="store_true", help="small clips, few rounds: shows that all works")
    parser.add_argument(
        "--clip", nargs="+", type=Path, default=[], metavar="VIDEO", help="measure `single` on these, too"
    )
    parser.add_argument("--name", help="of the result files (default: full, quick or the scenarios' names)")
    chosen = parser.parse_args()
    unknown = set(chosen.scenarios) - set(SCENARIOS)
    if unknown:
        parser.error(f"unknown scenario: {', '.join(sorted(unknown))}")
    for path in chosen.clip:
        if not path.is_file():
            parser.error(f"there is no {path}")
    return chosen


def main() -> None:
    """Runs the scenarios and writes what came out, also if it is interrupted."""
    chosen = arguments()
    names = chosen.scenarios or SCENARIOS
    name = chosen.name or "-".join(chosen.scenarios or ["full"]) + ("-quick" if chosen.quick else "")
    WORK.mkdir(parents=True, exist_ok=True)
    # A daemon of the user's must not answer in the place of the one that is measured.
    os.environ.pop("REELD_SOCKET", None)
    began = time.monotonic()
    progress = Progress()
    library = Library([path.resolve() for path in chosen.clip], quick=chosen.quick, say=progress.say)
    contest = Contest(QUICK if chosen.quick else FULL, progress.say)
    rows: list[Row] = []
    interrupted = False

    def write() -> list[Path]:
        seconds, versions = time.monotonic() - began, contest.pool.versions
        return report.write(name, rows, library.used, versions, quick=chosen.quick, seconds=seconds)

    try:
        progress.say("clips")
        cells = []
        for scenario in names:
            cells += importlib.import_module(f"suite.scenarios.{scenario}").cells(library)
        progress.cell_count = len(cells)
        scenario = ""
        for cell in cells:
            # Those of before would count as memory. To start them anew takes most of a quick run.
            if cell.scenario != scenario and not chosen.quick:
                contest.pool.end()
                # Whatever happens to the rest.
                if scenario:
                    write()
                scenario = cell.scenario
            rows += contest.run(cell)
            progress.cell_done()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        contest.pool.end()
        progress.end()
    files = write()
    print(files[1].read_text().partition("## Goals")[2].partition("![")[0])
    print(
        f"{(time.monotonic() - began) / 60:.1f} minutes; written:",
        *(str(each.relative_to(REPOSITORY)) for each in files),
    )
    sys.exit(130 if interrupted else 0)


if __name__ == "__main__":
    main()
