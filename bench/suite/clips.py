"""The videos of the benchmark: made by ffmpeg with fixed seeds and arguments, or given by the user.

They are kept in target/bench/clips until their arguments change. Nothing is decoded for a measurement here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
WORK = REPOSITORY / "target" / "bench"
FOLDER = WORK / "clips"
_FFMPEG = ["ffmpeg", "-nostdin", "-v", "error", "-y"]
_HASH_CHUNK_BYTES = 2**20
# Centres of the Mandelbrot set with detail at every scale, so that all videos of a set differ.
_CENTRES = [
    (-0.743643887, -0.131825904),
    (-0.7453, 0.1127),
    (-1.25066, 0.02012),
    (-0.16070135, 1.0375665),
    (0.2549870375, -0.0005679),
]


@dataclass(frozen=True)
class Clip:
    """A video and what is known of it."""

    name: str
    path: Path
    # How it was made; empty for a user's own.
    ffmpeg_arguments: list[str]
    sha256: str
    frame_count: int
    width: int
    height: int
    fps: float
    codec: str

    def facts(self) -> dict[str, Any]:
        """What a result file says of it: nothing of this machine's folders."""
        return {**asdict(self), "path": self.path.name}


@dataclass(frozen=True)
class Recipe:
    """How to make a clip: from a lavfi graph, and perhaps repeated then without coding it again."""

    name: str
    graph: str
    coding: list[str]
    seconds: float
    # Repeats the coded video so often.
    repeat_count: int = 1

    def arguments(self) -> list[str]:
        """What ffmpeg is called with, but for the files' names."""
        return ["-f", "lavfi", "-i", self.graph, "-t", str(self.seconds), *self.coding]


def mandelbrot(width: int, height: int, fps: int, *, centre: int = 0, scale: float = 0.02) -> str:
    """A zoom: everything moves, and no two pictures are alike."""
    x, y = _CENTRES[centre % len(_CENTRES)]
    return f"mandelbrot=size={width}x{height}:rate={fps}:start_x={x}:start_y={y}:end_scale={scale}"


def x264(gop: int) -> list[str]:
    """x264 as most people use it: preset medium, three B-frames; only the length of the GOP is given."""
    return ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-threads", "1", "-g", str(gop)]


def av1() -> list[str]:
    """AV1 as LeRobot records: a keyframe every other picture."""
    return ["-c:v", "libsvtav1", "-pix_fmt", "yuv420p", "-g", "2", "-crf", "30", "-preset", "12"]


def x265(gop: int) -> list[str]:
    """x265 with its defaults, on one thread, so that the result is the same everywhere."""
    parameters = f"log-level=error:pools=1:frame-threads=1:keyint={gop}"
    return ["-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params", parameters]


def recipes(*, quick: bool) -> dict[str, Recipe]:
    """The single clips by the names that scenarios call them."""
    seconds = 2.0 if quick else 10.0
    suffix = f"-{seconds:g}s"
    size = (640, 360) if quick else (1280, 720)
    label = f"{size[1]}p60"
    zoom = mandelbrot(*size, 60)
    return {
        "gop250": Recipe(f"mandelbrot-{label}-gop250{suffix}", zoom, x264(250), seconds),
        "gop600": Recipe(f"mandelbrot-{label}-gop600{suffix}", zoom, x264(600), seconds),
        "testsrc2": Recipe(
            f"testsrc2-{label}-gop240{suffix}",
            f"testsrc2=size={size[0]}x{size[1]}:rate=60",
            x264(240),
            seconds,
        ),
        "hevc": Recipe(
            f"mandelbrot-hevc-1080p30-gop30{suffix}", mandelbrot(1920, 1080, 30), x265(30), seconds
        ),
        "av1": Recipe(f"mandelbrot-av1-480p30-gop2{suffix}", mandelbrot(640, 480, 30), av1(), seconds),
        "long": Recipe(
            f"mandelbrot-360p25-gop250{suffix}-repeated",
            mandelbrot(640, 360, 25),
            x264(250),
            seconds,
            repeat_count=5 if quick else 12,
        ),
        "small": Recipe("testsrc2-224-gop30-2s", "testsrc2=size=224x224:rate=30", x264(30), 2.0),
    }


def clip(recipe: Recipe) -> Clip:
    """The clip of a recipe, made if it is not there."""
    arguments = recipe.arguments()
    if recipe.repeat_count > 1:
        arguments += ["(then)", "-stream_loop", str(recipe.repeat_count - 1), "-c", "copy"]
    known = _known(recipe.name, arguments)
    if known is not None:
        return known[0]
    FOLDER.mkdir(parents=True, exist_ok=True)
    target = FOLDER / f"{recipe.name}.mp4"
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        once = Path(folder) / "once.mp4"
        subprocess.run([*_FFMPEG, *recipe.arguments(), str(once)], check=True)
        if recipe.repeat_count > 1:
            again = Path(folder) / "again.mp4"
            loop = ["-stream_loop", str(recipe.repeat_count - 1), "-i", str(once), "-c", "copy"]
            subprocess.run([*_FFMPEG, *loop, str(again)], check=True)
            once = again
        once.replace(target)
    made = [described(target, recipe.name, arguments)]
    _remember(recipe.name, arguments, made)
    return made[0]


def short_clips(count: int, *, seconds: float, codec: str, progress: Callable[[int], None]) -> list[Clip]:
    """Many short videos that all differ, as a dataset has: pieces of zooms, cut at keyframes.

    Args:
        count: How many.
        seconds: The length of each.
        codec: "h264" for 640x360 at 24 pictures a second, one GOP each; "av1" for 640x480 at 30, GOP 2.
        progress: Told how many there are whenever that changed.
    """
    fps, size, coding = (
        (24, (640, 360), x264(round(24 * seconds))) if codec == "h264" else (30, (640, 480), av1())
    )
    per_zoom = min(10, count)
    name = f"short-{codec}-{size[1]}p-{count}x{seconds:g}s"
    zooms = [
        Recipe(
            f"{name}-zoom{number}",
            # As soft and pale as film: where single pixels differ in colour, scalers that go to RGB before
            # and after scaling give different pictures, and none is wrong.
            mandelbrot(*size, fps, centre=number, scale=0.5 / (1 + number // len(_CENTRES)) ** 2)
            + ",gblur=sigma=1,hue=s=0.5",
            [*coding, "-sc_threshold", "0"] if codec == "h264" else coding,
            min(per_zoom, count - number * per_zoom) * seconds,
        )
        for number in range((count + per_zoom - 1) // per_zoom)
    ]
    frames = round(fps * seconds)
    cut = ["-frames:v", str(frames), "-c", "copy"]
    arguments = [*zooms[0].arguments(), "(then)", "-ss", "(start)", *cut]
    known = _known(name, arguments)
    if known is not None:
        return known
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Clip] = []
    for zoom in zooms:
        whole = clip(zoom)
        for piece in range(min(per_zoom, count - len(made))):
            target = folder / f"{zoom.name}-{piece:02}.mp4"
            start = ["-ss", str(piece * seconds)]
            subprocess.run([*_FFMPEG, *start, "-i", str(whole.path), *cut, str(target)], check=True)
            made.append(described(target, target.stem, [*zoom.arguments(), "(then)", *start, *cut]))
            progress(len(made))
    _remember(name, arguments, made)
    return made


def described(path: Path, name: str, arguments: list[str]) -> Clip:
    """What ffprobe says of a video: all packets are counted, none is decoded."""
    entries = "stream=codec_name,width,height,avg_frame_rate,nb_read_packets"
    command = ["ffprobe", "-v", "error", "-count_packets", "-select_streams", "v:0"]
    command += ["-show_entries", entries, "-of", "json", str(path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    stream = json.loads(said)["streams"][0]
    above, below = (int(part) for part in stream["avg_frame_rate"].split("/"))
    return Clip(
        name=name,
        path=path,
        ffmpeg_arguments=arguments,
        sha256=_sha256(path),
        frame_count=int(stream["nb_read_packets"]),
        width=stream["width"],
        height=stream["height"],
        fps=above / below,
        codec=stream["codec_name"],
    )


@contextmanager
def fresh_copies(paths: list[Path]) -> Iterator[list[Path]]:
    """Copies that no process has seen: whatever is kept of the originals is of no use for them.

    Their bytes are in the page cache, as those of the originals are.
    """
    with tempfile.TemporaryDirectory(dir=WORK, prefix="copies-") as folder:
        copies = []
        for number, path in enumerate(paths):
            copies.append(Path(folder) / f"{number:04}-{path.name}")
            shutil.copyfile(path, copies[-1])
        yield copies


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _known(name: str, arguments: list[str]) -> list[Clip] | None:
    """What was remembered of earlier runs, if it was made in the same way and is still there."""
    try:
        note = json.loads((FOLDER / f"{name}.json").read_text())
        clips = [Clip(**{**facts, "path": FOLDER / facts["path"]}) for facts in note["clips"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_same = note["arguments"] == arguments and all(each.path.exists() for each in clips)
    return clips if is_same else None


def _remember(name: str, arguments: list[str], clips: list[Clip]) -> None:
    facts = [{**asdict(each), "path": str(each.path.relative_to(FOLDER))} for each in clips]
    (FOLDER / f"{name}.json").write_text(json.dumps({"arguments": arguments, "clips": facts}, indent=1))
