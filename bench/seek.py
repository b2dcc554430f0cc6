"""What a seek costs beside a picture: whether it ever pays to decode on to a keyframe instead.

Every picture of the clip is a keyframe. Reading 150 of them in order takes no seek, reading every second of
300 takes one for each, and both decode 150 pictures; what the second takes longer is that of 149 seeks. One
engine, no picture cache. Prints a table and writes bench/results/seek.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from own_daemon import REPOSITORY, OwnDaemon, commit, machine

FRAME_COUNT = 150
CLIP = ["-f", "lavfi", "-i", "mandelbrot=size=640x480:rate=30", "-frames:v", str(2 * FRAME_COUNT)]
CODING = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-threads", "1", "-g", "1"]
FORMATS = ["mp4", "mkv", "ts"]
FFMPEG = ["ffmpeg", "-nostdin", "-v", "error", "-y"]
RESULTS = REPOSITORY / "bench" / "results"


def measure(clip: Path, rounds: int) -> dict[str, Any]:
    """Both ways through a clip, in turn."""
    import reeld
    from reeld.decoders import VideoDecoder

    decoder = VideoDecoder(clip)
    ways = {"in_order": range(FRAME_COUNT), "every_second": range(0, 2 * FRAME_COUNT, 2)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    before = reeld.status()["totals"]["pictures_decoded"]
    for number in range(rounds + 1):
        for name, indices in ways.items():
            begin = time.perf_counter()
            decoder.get_frames_at(list(indices))
            # The first round warms up.
            if number > 0:
                seconds[name].append(time.perf_counter() - begin)
    decoded = reeld.status()["totals"]["pictures_decoded"] - before
    pairs = zip(seconds["every_second"], seconds["in_order"], strict=True)
    return {
        "format": clip.suffix[1:],
        "wall_seconds": seconds,
        "pictures_decoded_per_way": decoded / (2 * (rounds + 1)),
        "picture_us": round(median(seconds["in_order"]) / FRAME_COUNT * 1e6, 1),
        "seek_us": round(median(more - less for more, less in pairs) / (FRAME_COUNT - 1) * 1e6, 1),
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=15, help="rounds (default: %(default)s)")
    rounds: int = parser.parse_args().count
    options = ["--engine-count-max", "1", "--engine-cache-mib", "0"]
    with tempfile.TemporaryDirectory() as folder, OwnDaemon(*options):
        first = Path(folder) / f"clip.{FORMATS[0]}"
        subprocess.run([*FFMPEG, *CLIP, *CODING, str(first)], check=True)
        results = []
        for format_name in FORMATS:
            clip = first.with_suffix(f".{format_name}")
            if clip != first:
                subprocess.run([*FFMPEG, "-i", str(first), "-c", "copy", str(clip)], check=True)
            results.append(measure(clip, rounds))
    report = {
        "bench": "seek",
        "command": " ".join(["script/bench", "seek", *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(),
        "clip": CLIP + CODING,
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / "seek.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{'format':10}{'a picture':>14}{'a seek':>14}")
    for result in results:
        print(f"{result['format']:10}{result['picture_us']:>11} us{result['seek_us']:>11} us")
    print(f"written: {target.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
