"""The demonstration: one job for a PyTorch DataLoader, first with reeld, then with TorchCodec in each worker.

While reeld's half runs, a Rust client reads from the same daemon. The frames of both halves are compared.
Prints a table and writes demo-out/contact-sheet.png. Figures that are meant to be quoted come from
script/bench, not from here: this runs once, on whatever else the machine does.
"""

from __future__ import annotations

import argparse
import importlib
import math
import multiprocessing
import random
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from own_daemon import REPOSITORY, OwnDaemon, percentile, program
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Dataset

WORKER_COUNT = 8
# A sample is what training on video asks for: some consecutive frames from anywhere.
SAMPLE_COUNT = 160
FRAMES_PER_SAMPLE = 8
# What a worker hands on is cut to this, as training does; also, a result of 4K would measure the DataLoader.
CROP_PIXELS = 224
# Each half stops here, however slow the video is to decode.
SECONDS_MAX = 60
LOOK_SECONDS = 0.3
THUMBNAIL_PIXELS = 240
THUMBNAILS = 20
OUTPUT = REPOSITORY / "demo-out"


@dataclass(frozen=True)
class Sample:
    """Which frames of which video."""

    video: str
    start: int


@dataclass(frozen=True)
class Answer:
    """What a worker gives back for a sample."""

    number: int
    worker: int
    checksum: int
    latency_seconds: float
    decoder_count: int
    frames: torch.Tensor
    thumbnail: torch.Tensor


class Clips(Dataset[Answer]):
    """The samples as a DataLoader wants them. Each worker opens a video once and keeps it open."""

    def __init__(self, module: str, samples: list[Sample]) -> None:
        """`module` is where `VideoDecoder` comes from: the import is all that differs between the halves."""
        self.module = module
        self.samples = samples
        self.decoders: dict[str, Any] = {}

    def __len__(self) -> int:
        """As many as there are samples."""
        return len(self.samples)

    def decoder(self, video: str) -> Any:  # noqa: ANN401 # of one of two classes that are not related
        """The decoder of this process for `video`."""
        if video not in self.decoders:
            self.decoders[video] = importlib.import_module(self.module).VideoDecoder(video)
        return self.decoders[video]

    def __getitem__(self, number: int) -> Answer:
        """Decodes one sample; only the call for the frames is timed, opening is not."""
        sample = self.samples[number]
        decoder = self.decoder(sample.video)
        started = time.perf_counter()
        frames = decoder.get_frames_in_range(sample.start, sample.start + FRAMES_PER_SAMPLE).data
        latency = time.perf_counter() - started
        top, left = (max(0, (length - CROP_PIXELS) // 2) for length in frames.shape[-2:])
        cropped = frames[:, :, top : top + CROP_PIXELS, left : left + CROP_PIXELS].contiguous()
        information = torch.utils.data.get_worker_info()
        step = max(1, math.ceil(frames.shape[-1] / THUMBNAIL_PIXELS))
        return Answer(
            number=number,
            worker=information.id if information else 0,
            checksum=zlib.crc32(cropped.numpy().tobytes()),
            latency_seconds=latency,
            decoder_count=len(self.decoders),
            frames=cropped,
            thumbnail=frames[0, :, ::step, ::step].contiguous(),
        )


def memory_bytes(pid: int) -> int:
    """PSS of a process: memory that n processes share counts for each of them with its nth part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        # It has ended meanwhile.
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@dataclass
class Half:
    """What one half of the demonstration came to."""

    title: str
    seconds: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    # The most that was seen while it ran.
    decoder_count: int = 0
    daemon_bytes: int = 0
    worker_bytes: int = 0

    def look(self, daemon: OwnDaemon | None) -> None:
        """Notes what is there now; the workers are the children that multiprocessing has started."""
        workers = [memory_bytes(child.pid) for child in multiprocessing.active_children() if child.pid]
        self.worker_bytes = max(self.worker_bytes, sum(workers) // max(1, len(workers)))
        if daemon is not None:
            engines = daemon.status()["engines"]
            ids = [daemon.process.pid, *(engine["pid"] for engine in engines)]
            self.daemon_bytes = max(self.daemon_bytes, sum(memory_bytes(pid) for pid in ids))
            self.decoder_count = max(self.decoder_count, sum(engine["session_count"] for engine in engines))

    @property
    def frames_per_second(self) -> float:
        """Frames that arrived in the training process."""
        return len(self.answers) * FRAMES_PER_SAMPLE / self.seconds

    def latency_milliseconds(self, share: float) -> float:
        """How long a worker waited for one sample."""
        return 1000 * percentile([answer.latency_seconds for answer in self.answers], share)


class RustClient:
    """`reelctl frames` again and again in a thread, as another program on the node would ask."""

    def __init__(self, video: str, folder: Path) -> None:
        """Starts at once; the PNG files of the last call lie in `folder`."""
        self.call_seconds: list[float] = []
        self.folder = folder
        self._command = [program("reelctl"), "frames", video, "--at", "0,10,-1", "--out", str(folder)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rust-client")
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            started = time.perf_counter()
            result = subprocess.run(self._command, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                print(f"\nreelctl: {result.stderr}", file=sys.stderr)
                return
            self.call_seconds.append(time.perf_counter() - started)

    def stop(self) -> None:
        """Waits for the call that runs."""
        self._over.set()
        self._thread.join()


def progress(title: str, done: int, count: int, seconds: float) -> None:
    """One line that is written over and over."""
    bar = "█" * (30 * done // count)
    rate = done * FRAMES_PER_SAMPLE / seconds if seconds else 0.0
    print(f"\r{title:28} {bar:30} {done}/{count} samples, {rate:6.0f} frames/s", end="", flush=True)


def run_half(title: str, module: str, samples: list[Sample], daemon: OwnDaemon | None) -> Half:
    """Goes through the samples with eight workers; `daemon` is the one whose memory counts, if any."""
    half = Half(title)
    # Eight workers are the point of it, also where there are fewer cores.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    # No batching and no shuffling: the samples are random already, and videos may differ in size.
    loader = DataLoader(Clips(module, samples), batch_size=None, num_workers=WORKER_COUNT, prefetch_factor=2)
    decoders_of_worker: dict[int, int] = {}
    started = looked = time.perf_counter()
    for answer in loader:
        # The frames are not needed any more, and the thumbnail's own copy frees a file descriptor.
        kept = replace(answer, frames=torch.empty(0), thumbnail=answer.thumbnail.clone())
        half.answers.append(kept)
        decoders_of_worker[answer.worker] = answer.decoder_count
        now = time.perf_counter()
        if now - looked > LOOK_SECONDS:
            half.look(daemon)
            looked = now
        progress(title, len(half.answers), len(samples), now - started)
        if now - started > SECONDS_MAX:
            break
    half.seconds = time.perf_counter() - started
    half.decoder_count = half.decoder_count or sum(decoders_of_worker.values())
    print()
    return half


def make_clip(target: Path) -> Path:
    """A video for those who gave none: 20 seconds that move, a keyframe every two seconds, B-frames."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial.mp4")
        picture = ["-f", "lavfi", "-i", "mandelbrot=size=854x480:rate=30:end_scale=0.02", "-t", "20"]
        coding = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-g", "60", "-bf", "3"]
        subprocess.run(
            ["ffmpeg", "-nostdin", "-v", "error", "-y", *picture, *coding, str(partial)], check=True
        )
        partial.rename(target)
    return target


def choose_samples(videos: list[Path]) -> list[Sample]:
    """The job: the same one for both halves, and the same one each time."""
    from reeld.decoders import VideoDecoder

    choice = random.Random(1)
    lengths = {str(video): len(VideoDecoder(str(video))) for video in videos}
    samples = []
    for _ in range(SAMPLE_COUNT):
        video = choice.choice(list(lengths))
        samples.append(Sample(video, choice.randrange(max(1, lengths[video] - FRAMES_PER_SAMPLE))))
    return samples


def contact_sheet(half: Half, samples: list[Sample], rust_frames: list[Path]) -> Path:
    """The first frames of some samples in the order of their times, then what the Rust client got."""
    chosen = sorted(
        half.answers, key=lambda answer: (samples[answer.number].video, samples[answer.number].start)
    )
    chosen = chosen[:: max(1, len(chosen) // THUMBNAILS)][:THUMBNAILS]
    pictures = [
        (Image.fromarray(answer.thumbnail.permute(1, 2, 0).numpy()), f"frame {samples[answer.number].start}")
        for answer in chosen
    ]
    pictures += [(Image.open(path).convert("RGB"), f"Rust: {path.stem}") for path in rust_frames[:5]]
    width, height, columns, caption = THUMBNAIL_PIXELS, THUMBNAIL_PIXELS * 9 // 16, 5, 16
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (width + 4), rows * (height + caption + 4)), "black")
    draw = ImageDraw.Draw(sheet)
    for position, (picture, words) in enumerate(pictures):
        left, top = position % columns * (width + 4) + 2, position // columns * (height + caption + 4) + 2
        picture.thumbnail((width, height))
        sheet.paste(picture, (left + (width - picture.width) // 2, top))
        draw.text((left, top + height + 2), words, fill="white")
    OUTPUT.mkdir(exist_ok=True)
    target = OUTPUT / "contact-sheet.png"
    sheet.save(target)
    return target


def mebibytes(count: int) -> str:
    """A size for people."""
    return f"{count / 2**20:.0f} MiB" if count else "-"


def print_table(ours: Half, theirs: Half) -> None:
    """Both halves side by side."""

    def row(name: str, value: Callable[[Half], str]) -> None:
        print(f"{name:38}{value(ours):>16}{value(theirs):>16}")

    print(f"\n{f'{WORKER_COUNT} DataLoader workers':38}{ours.title:>16}{theirs.title:>16}")
    row("frames per second", lambda half: f"{half.frames_per_second:.0f}")
    row(f"wait for {FRAMES_PER_SAMPLE} frames, p50", lambda half: f"{half.latency_milliseconds(0.5):.1f} ms")
    row(f"wait for {FRAMES_PER_SAMPLE} frames, p99", lambda half: f"{half.latency_milliseconds(0.99):.1f} ms")
    row("decoders open", lambda half: str(half.decoder_count))
    row("memory of the daemon and its engines", lambda half: mebibytes(half.daemon_bytes))
    row("memory of a worker", lambda half: mebibytes(half.worker_bytes))
    row(
        "memory of all of these",
        lambda half: mebibytes(half.daemon_bytes + WORKER_COUNT * half.worker_bytes),
    )
    print("Memory is PSS (shared memory divided among those who share it), the most that was seen.")


def print_rust(rust: RustClient) -> None:
    """What the Rust client did meanwhile."""
    count = len(rust.call_seconds)
    middle = 1000 * percentile(rust.call_seconds, 0.5) if count else math.nan
    print(f"Meanwhile the Rust client made {count} calls of 3 frames to PNG files, p50 {middle:.0f} ms each.")


def same_frames(ours: Half, theirs: Half) -> str:
    """How many samples both halves have, and whether they are equal."""
    reference = {answer.number: answer.checksum for answer in theirs.answers}
    both = [answer for answer in ours.answers if answer.number in reference]
    equal = sum(answer.checksum == reference[answer.number] for answer in both)
    return f"Frames equal to TorchCodec's: {equal} of {len(both)} samples."


def main() -> None:
    """Both halves, the table, the sheet."""
    parser = argparse.ArgumentParser(description="Eight DataLoader workers and a Rust client on one daemon.")
    parser.add_argument(
        "videos", nargs="*", type=Path, metavar="VIDEO", help="default: a clip that ffmpeg makes"
    )
    videos = parser.parse_args().videos or [make_clip(REPOSITORY / "target" / "demo" / "clip.mp4")]
    with OwnDaemon() as daemon, tempfile.TemporaryDirectory() as folder:
        samples = choose_samples(videos)
        names = ", ".join(str(video) for video in videos)
        print(f"{SAMPLE_COUNT} samples of {FRAMES_PER_SAMPLE} frames from {names}")
        rust = RustClient(str(videos[0]), Path(folder))
        ours = run_half("reeld", "reeld.decoders", samples, daemon)
        rust.stop()
        sheet = contact_sheet(ours, samples, sorted(rust.folder.glob("*.png")))
    theirs = run_half("TorchCodec", "torchcodec.decoders", samples, None)
    print_table(ours, theirs)
    print_rust(rust)
    print(same_frames(ours, theirs))
    print(f"Contact sheet: {sheet}")


if __name__ == "__main__":
    main()
