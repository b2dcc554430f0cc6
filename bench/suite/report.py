"""What a run leaves behind: a JSON file with all figures, a Markdown table for people, and plots.

The plots are drawn in `plots`; what was to be reached is in `goals`.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from own_daemon import commit, machine

from suite.clips import REPOSITORY, Clip
from suite.contest import Row
from suite.goals import Verdict, verdicts
from suite.measuring import median, spread

# Of the JSON file. It grows by one whenever a reader of the former would read it wrongly.
SCHEMA_VERSION = 1
RESULTS = REPOSITORY / "bench" / "results"


def write(
    name: str,
    rows: Sequence[Row],
    clips: Sequence[Clip],
    versions: dict[str, str],
    *,
    quick: bool,
    seconds: float,
) -> list[Path]:
    """Writes all of it; returns the files."""
    from suite import plots

    RESULTS.mkdir(exist_ok=True)
    found = verdicts(rows)
    facts = {
        "schema_version": SCHEMA_VERSION,
        "bench": name,
        "command": " ".join(["script/bench", *sys.argv[1:]]),
        "is_quick": quick,
        "seconds": round(seconds),
        "commit": commit(),
        "machine": machine(),
        "versions": _versions(versions),
        "clips": [clip.facts() for clip in clips],
        "goals": [verdict.facts() for verdict in found],
        "runs": [row.facts() for row in rows],
    }
    files = [RESULTS / f"{name}.json", RESULTS / f"{name}.md"]
    files[0].write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    pictures = plots.draw(RESULTS, name, rows, found)
    files[1].write_text(markdown(facts, rows, found, [path.name for path in pictures]))
    return [*files, *pictures]


def _versions(peers: dict[str, str]) -> dict[str, str]:
    said = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=False).stdout.split()
    ffmpeg = said[2] if len(said) > 2 else "none"
    return {"python": platform.python_version(), "ffmpeg": ffmpeg, **dict(sorted(peers.items()))}


def markdown(
    facts: dict[str, Any], rows: Sequence[Row], found: Sequence[Verdict], pictures: Sequence[str]
) -> str:
    """The page for people: goals first, then a table for each cell."""
    computer = facts["machine"]
    memory = f"{computer['memory_bytes'] / 2**30:.0f} GiB"
    lines = [
        f"<!-- Made by `{facts['command']}`. -->",
        "",
        f"# Benchmark: {facts['bench']}",
        "",
        f"{computer['processor']}, {computer['cores']} cores, {memory}, Linux {computer['kernel']}; "
        f"commit {facts['commit']}; {facts['seconds'] // 60} minutes.",
        "",
        ", ".join(f"{name} {version}" for name, version in facts["versions"].items()) + ".",
        "",
    ]
    if facts["is_quick"]:
        lines += [
            "A quick run: small clips and few rounds. It shows that all works, not how fast anything is.",
            "",
        ]
    lines += [
        "Times are medians of interleaved rounds, ± half of the distance between the quartiles. CPU time is "
        "that of all processes, the daemon and its engines included; so is memory (PSS), which is the most "
        "that was seen.",
        "",
    ]
    lines += _goal_table(found)
    lines += [line for picture in pictures for line in (f"![{Path(picture).stem}]({picture})", "")]
    for title, cell in cells(rows):
        lines += [f"## {title}", "", *_cell_table(cell), ""]
    return "\n".join(lines)


def cells(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows by cell, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        title = " · ".join(part for part in (row.scenario, row.workload, row.clip) if part)
        found.setdefault(title, []).append(row)
    yield from found.items()


def _goal_table(found: Sequence[Verdict]) -> list[str]:
    if not found:
        return []
    lines = [
        "## Goals",
        "",
        "The bound has a confidence of 95 % over the rounds; a goal is met when the bound passes it.",
        "",
        "| goal | wanted | measured | bound | met | against |",
        "|---|---|---|---|---|---|",
    ]
    for each in found:
        met, against = "yes" if each.is_met else "no", each.against or "-"
        figures = f"{each.wanted} | {each.value:.3g} | {each.bound:.3g}"
        lines.append(f"| {each.goal} | {figures} | {met} | {against} |")
    return [*lines, ""]


def _cell_table(cell: Sequence[Row]) -> list[str]:
    names = list(dict.fromkeys(name for row in cell for name in row.values))
    head = [
        "tool",
        "wall",
        "CPU",
        "memory",
        "pictures / frames",
        "frames equal TorchCodec's",
        *map(_heading, names),
        "setting",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in cell:
        if not row.is_timed:
            why = f"cannot: {row.cannot}" if row.cannot else f"not timed: {_difference(row)}"
            lines.append(f"| {row.tool} | {why.replace('|', '/')} |" + " |" * (len(head) - 2))
            continue
        parts = [
            row.tool,
            _seconds(row.wall_seconds),
            _seconds(row.cpu_seconds),
            f"{row.pss_peak_bytes / 1e6:.0f} MB" if row.pss_peak_bytes else "-",
            f"{'?' if row.pictures_decoded is None else row.pictures_decoded} / {row.frames_delivered}",
            _difference(row),
            *(_figure(name, row.values.get(name, [])) for name in names),
            ", ".join(f"{key}={value}" for key, value in row.setting.items()),
        ]
        lines.append(f"| {' | '.join(parts)} |")
    return lines


def _difference(row: Row) -> str:
    mean = row.difference.get("mean_difference")
    match row.verified:
        case "equal":
            return "yes"
        case "close":
            return f"nearly ({mean:g})"
        case "failed":
            what = (
                row.difference.get("reason") or f"{mean:g}, times {row.difference['pts_difference_seconds']}"
            )
            return f"NO ({what})"
        case other:
            return other


def _heading(name: str) -> str:
    return name.removesuffix("_seconds").removesuffix("_bytes").replace("_", " ")


def _figure(name: str, values: Sequence[float]) -> str:
    if not values:
        return "-"
    if name.endswith("_seconds"):
        return _seconds(values)
    if name.endswith("_bytes"):
        return f"{median(values) / 1e6:.0f} MB"
    return f"{median(values):g}"


def _seconds(values: Sequence[float]) -> str:
    middle = median(values)
    scale, unit = (1, "s") if middle >= 1 else (1e3, "ms") if middle >= 1e-3 else (1e6, "µs")
    text = f"{middle * scale:.3g} {unit}"
    return f"{text} ± {spread(values):.0%}" if len(values) >= 3 else text
