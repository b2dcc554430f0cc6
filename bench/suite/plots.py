"""The plots: bars for each cell, memory against workers, and the goals at a glance.

matplotlib is imported late, since only the benchmark's own environment has it.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suite.contest import Row
from suite.goals import Verdict, figures
from suite.measuring import median, percentile

_OURS, _YARDSTICK, _OTHERS, _MUTED = "#d1495b", "#30638e", "#9aa5b1", "#5c6770"
_COLUMNS = 3
_DPI = 150
_SUFFIXES = {"loader": "epoch_1_seconds", "shared": "work_seconds"}


def draw(folder: Path, name: str, rows: Sequence[Row], found: Sequence[Verdict]) -> list[Path]:
    """Draws what there is something to draw of; returns the files."""
    os.environ.setdefault("MPLCONFIGDIR", str(folder.parents[1] / "target" / "bench" / "matplotlib"))
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "white"}
    )
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    made = []

    def save(figure: Any, suffix: str) -> None:  # noqa: ANN401 # matplotlib's
        path = folder / f"{name}-{suffix}.png"
        figure.savefig(path, dpi=_DPI, bbox_inches="tight")
        pyplot.close(figure)
        made.append(path)

    ratios = [verdict for verdict in found if verdict.wanted.endswith("x")]
    if ratios:
        save(_goals(pyplot, ratios), "goals")
    for scenario in dict.fromkeys(row.scenario for row in rows):
        chosen = [row for row in rows if row.scenario == scenario and row.is_timed]
        if scenario == "worker":
            memory = [row for row in chosen if row.values.get("memory_bytes")]
            if memory:
                save(_memory(pyplot, memory), "worker-memory")
            chosen = [row for row in chosen if row not in memory]
        if chosen:
            save(_bars(pyplot, scenario, chosen), scenario)
    return made


def _colour(row: Row) -> str:
    if row.peer == "reeld":
        return _OURS
    return _YARDSTICK if row.peer == "TorchCodec" else _OTHERS


def _bars(pyplot: Any, scenario: str, rows: Sequence[Row]) -> Any:  # noqa: ANN401 # matplotlib's
    """A panel for each cell, the fastest on top."""
    figure_name = "p50_seconds" if scenario == "hit" else _SUFFIXES.get(scenario, "wall_seconds")
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        panels.setdefault((row.workload, row.clip), []).append(row)
    columns = min(_COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    tallest = max(map(len, panels.values()))
    size = (5.2 * columns, (0.9 + 0.34 * tallest) * lines)
    figure, axes = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for place, axis in enumerate(axes.flat):
        if place >= len(panels):
            axis.set_axis_off()
            continue
        (workload, clip), cell = list(panels.items())[place]
        _panel(axis, cell, figure_name)
        axis.set_title(f"{workload}\n{clip}", fontsize=9, loc="left")
    what = {"wall_seconds": "time of a run", "p50_seconds": "time of a call, p50"}.get(figure_name, "time")
    figure.suptitle(f"{scenario}: {what}, less is better", x=0.01, ha="left", fontweight="bold")
    return figure


def _panel(axis: Any, cell: Sequence[Row], figure_name: str) -> None:  # noqa: ANN401 # matplotlib's
    def values(row: Row) -> list[float]:
        return figures(row, figure_name) or row.wall_seconds

    ordered = sorted(cell, key=lambda row: -median(values(row)))
    middles = [median(values(row)) for row in ordered]
    low = [middle - percentile(values(row), 0.25) for middle, row in zip(middles, ordered, strict=True)]
    high = [percentile(values(row), 0.75) - middle for middle, row in zip(middles, ordered, strict=True)]
    whiskers = [[max(0.0, each) for each in side] for side in (low, high)]
    axis.barh(
        [row.tool for row in ordered],
        middles,
        xerr=whiskers,
        height=0.7,
        ecolor=_MUTED,
        color=[_colour(row) for row in ordered],
        error_kw={"linewidth": 1},
    )
    largest = max(middles)
    for place, (middle, reach) in enumerate(zip(middles, whiskers[1], strict=True)):
        axis.text(
            middle + reach + largest * 0.02, place, _time(middle), va="center", fontsize=8, color=_MUTED
        )
    axis.set_xlim(0, largest * 1.3)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(axis="y", length=0, labelsize=8)


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def _memory(pyplot: Any, rows: Sequence[Row]) -> Any:  # noqa: ANN401 # matplotlib's
    """Memory of all processes against the number of workers, each holding the most videos."""
    figure, axis = pyplot.subplots(figsize=(6.5, 4), layout="constrained")
    points: dict[str, dict[int, float]] = {}
    most = max(int(row.workload.split()[-2]) for row in rows)
    for row in rows:
        workers, videos = int(row.workload.split()[0]), int(row.workload.split()[-2])
        if videos == most:
            points.setdefault(row.tool, {})[workers] = median(row.values["memory_bytes"]) / 1e9
    styles = {"reeld": (_OURS, "-"), "TorchCodec": (_YARDSTICK, "-")}
    for tool, line in points.items():
        colour, style = styles.get(tool, (_OTHERS, "--"))
        counts = sorted(line)
        axis.plot(counts, [line[count] for count in counts], style, color=colour, marker="o", label=tool)
    axis.set_xlabel("workers")
    axis.set_ylabel("GB (PSS of all processes)")
    axis.set_ylim(bottom=0)
    axis.set_title(f"worker: memory with {most} videos open, less is better", loc="left", fontweight="bold")
    axis.legend(frameon=False)
    return figure


def _goals(pyplot: Any, ratios: Sequence[Verdict]) -> Any:  # noqa: ANN401 # matplotlib's
    """The ratios with their bounds, and what was wanted, on a logarithmic axis."""
    figure, axis = pyplot.subplots(figsize=(8.5, 0.8 + 0.3 * len(ratios)), layout="constrained")
    for place, each in enumerate(reversed(ratios)):
        colour = _YARDSTICK if each.is_met else _OURS
        axis.plot([each.bound, each.value], [place, place], color=colour, linewidth=2)
        axis.plot(each.value, place, "o", color=colour)
        axis.plot(each.limit, place, marker=4 if each.sign == "≤" else 5, color="black", markersize=7)
        axis.text(
            1.01,
            place,
            "met" if each.is_met else "not met",
            transform=axis.get_yaxis_transform(),
            va="center",
            fontsize=8,
            color=colour,
        )
    axis.axvline(1, color=_OTHERS, linewidth=1, zorder=0)
    axis.set_xscale("log")
    for part in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        part(lambda value, _: f"{value:g}")
    axis.set_yticks(
        range(len(ratios)), [f"{each.goal} ({each.sign})" for each in reversed(ratios)], fontsize=8
    )
    axis.set_xlabel("ratio to the best peer; line: from the 95 % bound to the median; triangle: the goal")
    axis.set_title("Goals", loc="left", fontweight="bold")
    return figure
