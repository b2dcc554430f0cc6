"""The clips that chaos reads, and what TorchCodec says is in them, made before anything is killed.

Run as a program it writes the references of all clips into a folder: TorchCodec stays out of the processes
that fork. Nothing of reeld is used here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
MEDIA = REPOSITORY / "target" / "test-media"

# Every codec, open GOPs, a rotation, odd sizes, uneven times; small, so that a second checks hundreds.
CLIPS = [
    ("h264_bframes.mp4", "uint8"),
    ("h264_open_gop.mp4", "uint8"),
    ("h264_one_gop.mp4", "uint8"),
    ("h264_444_odd.mp4", "uint8"),
    ("hevc_8bit.mp4", "uint8"),
    ("hevc_10bit.mp4", "uint8"),
    ("av1.mp4", "uint8"),
    ("av1.mp4", "float32"),
    ("vp9.webm", "uint8"),
    ("mpeg4.mp4", "uint8"),
    ("odd_both.webm", "uint8"),
    ("rotated_90.mp4", "uint8"),
    ("variable_rate.mp4", "uint8"),
    ("bench_224.mp4", "uint8"),
]
# Decoding to its end takes seconds: for requests that are given up on their way.
SLOW = "slow.mp4"
# They cannot be opened, or no frame of them can be decoded.
BROKEN = ["broken_text.mp4", "broken_noise.mp4", "broken_no_moov.mp4", "broken_all_garbage.mp4"]


@dataclass(frozen=True)
class Clip:
    """A video and all that must come out of it."""

    name: str
    dtype: str
    path: Path
    reference: Path
    pixels: np.ndarray[Any, Any]
    """(N, H, W, C), a view of a file."""
    pts_seconds: list[float]
    duration_seconds: list[float]

    def __len__(self) -> int:
        return len(self.pts_seconds)

    @property
    def has_durations(self) -> bool:
        """Whether each frame is shown for a time; else a time does not lead to one frame."""
        return min(self.duration_seconds) > 0


def make(folder: Path) -> list[Clip]:
    """Makes the media files and, in `folder`, the references; returns all clips."""
    names = sorted({name for name, _ in CLIPS} | {SLOW, *BROKEN})
    generate = REPOSITORY / "tests" / "media" / "generate"
    subprocess.run([generate, MEDIA, "--only", *names], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, __file__, folder], check=True)
    return [_load(folder, name, dtype) for name, dtype in CLIPS]


def _load(folder: Path, name: str, dtype: str) -> Clip:
    reference = folder / f"{name}.{dtype}"
    facts = json.loads(reference.with_suffix(f".{dtype}.json").read_text())
    pixels = np.memmap(reference, dtype=dtype, mode="r", shape=tuple(facts["shape"]))
    return Clip(name, dtype, MEDIA / name, reference, pixels, facts["pts_seconds"], facts["duration_seconds"])


def _write_references(folder: Path) -> None:
    import torch
    from torchcodec.decoders import VideoDecoder

    for name, dtype in CLIPS:
        decoder = VideoDecoder(
            MEDIA / name,
            dimension_order="NHWC",
            output_dtype=torch.float32 if dtype == "float32" else torch.uint8,
        )
        batch = decoder.get_frames_at(range(len(decoder)))  # pyright: ignore[reportArgumentType] # takes ranges
        reference = folder / f"{name}.{dtype}"
        reference.write_bytes(batch.data.contiguous().numpy().tobytes())
        facts = {
            "shape": list(batch.data.shape),
            "pts_seconds": batch.pts_seconds.tolist(),
            "duration_seconds": batch.duration_seconds.tolist(),
        }
        reference.with_suffix(f".{dtype}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    _write_references(Path(sys.argv[1]))
