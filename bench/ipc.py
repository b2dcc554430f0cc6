"""How long the way to the daemon and back takes, as a Python program sees it.

Three round trips: one byte over a bare socket to a process that sends it back, which is what the kernel and
the machine cost; a status request; and a converted frame of 224x224 that is in the daemon's cache. A frame's
time is that of the whole call, from the arguments to a tensor, and the lease of the frame before is given
back within it. It passes three processes, and so four wake-ups where the bare one has two. Prints a table
and writes bench/results/ipc.json, or ipc-one-processor.json.

What a worker does besides is not measured here; script/demo shows a whole job.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from own_daemon import REPOSITORY, OwnDaemon, commit, machine, percentile

# Enough for a p99 that rests on 200 values, in about two seconds.
COUNT = 20_000
WARM_UP_COUNT = 2_000
# The frames asked for in turn: one GOP of the clip, so that all of them are in the cache.
FRAME_COUNT = 30
RESULTS = REPOSITORY / "bench" / "results"


def measured(name: str, call: Callable[[int], object], count: int) -> dict[str, Any]:
    """Runs `call` with 0, 1, 2, … and gives the distribution of its times in microseconds."""
    for number in range(WARM_UP_COUNT):
        call(number)
    gc.collect()
    gc.disable()
    times_us = []
    for number in range(count):
        start = time.perf_counter_ns()
        call(number)
        times_us.append((time.perf_counter_ns() - start) / 1000)
    gc.enable()
    return {
        "name": name,
        "unit": "us",
        "count": count,
        "min": round(min(times_us), 1),
        "p50": round(percentile(times_us, 0.5), 1),
        "p90": round(percentile(times_us, 0.9), 1),
        "p99": round(percentile(times_us, 0.99), 1),
        "max": round(max(times_us), 1),
    }


def lies_in_the_arena(address: int) -> bool:
    """Whether the kernel knows the memory at `address` as the daemon's arena: nothing was copied."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return "memfd:reeld-arena" in line
    return False


def bare_round_trip(count: int) -> dict[str, Any]:
    """One byte to another process and back, with nothing of reeld in between."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        while byte := theirs.recv(1):
            theirs.send(byte)
        os._exit(0)
    theirs.close()

    def ping(_: int) -> None:
        ours.send(b"x")
        ours.recv(1)

    result = measured("bare socket", ping, count)
    ours.close()
    os.waitpid(pid, 0)
    return result


def measure(clip: Path, count: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All figures, and the facts that belong to them."""
    import reeld
    from reeld.decoders import VideoDecoder

    decoder = VideoDecoder(clip)
    held: list[Any] = [None]

    def frame(number: int) -> None:
        held[0] = decoder.get_frame_at(number % FRAME_COUNT).data

    for number in range(FRAME_COUNT):
        frame(number)
    before = reeld.status()["totals"]
    results = [
        measured("status", lambda _: reeld.status(), count),
        measured("cached frame 224x224", frame, count),
    ]
    after = reeld.status()["totals"]
    facts = {
        "frame_is_in_arena": lies_in_the_arena(held[0].data_ptr()),
        "pictures_decoded": after["pictures_decoded"] - before["pictures_decoded"],
    }
    return results, facts


def versions(status: dict[str, Any]) -> dict[str, Any]:
    """The versions of all that takes part."""
    import torch

    return {
        "reeld": status["version"],
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "ffmpeg": status["ffmpeg_versions"],
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=COUNT, help="calls of each kind (default: %(default)s)")
    parser.add_argument(
        "--one-processor",
        action="store_true",
        help="keep all processes on one processor: no wake-up has to cross to another one",
    )
    arguments = parser.parse_args()
    count: int = arguments.count
    name = "ipc"
    if arguments.one_processor:
        # Inherited by the daemon and its engines.
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        name = "ipc-one-processor"
    generate = [str(REPOSITORY / "tests" / "media" / "generate"), "--only", "bench_224.mp4"]
    media = subprocess.run(generate, check=True, capture_output=True, text=True).stdout.strip()
    with OwnDaemon() as daemon:
        bare = bare_round_trip(count)
        results, facts = measure(Path(media) / "bench_224.mp4", count)
        report = {
            "bench": "ipc",
            "command": " ".join(["script/bench", "ipc", *sys.argv[1:]]),
            "commit": commit(),
            "machine": machine(),
            "versions": versions(daemon.status()),
            "results": [bare, *results],
            **facts,
        }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{name}.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{'round trip':24}{'p50':>10}{'p90':>10}{'p99':>10}   of {count} calls")
    for result in report["results"]:
        print(f"{result['name']:24}" + "".join(f"{result[key]:>7.1f} us" for key in ("p50", "p90", "p99")))
    print(f"frame in the arena, not copied: {'yes' if facts['frame_is_in_arena'] else 'NO'}")
    print(f"written: {target.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
