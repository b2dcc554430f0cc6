#!/usr/bin/env python3
"""Trains a small network to tell which way a picture moves, with a ClipLoader or with a DataLoader.

Usage: examples/train.py [--workers N] [--epochs N] [--seed N] [--folder FOLDER]

Needs reeld, torch and ffmpeg, and no GPU: the videos are made first, into FOLDER or a temporary one. It
prints the loss, the accuracy and the frames per second of each epoch, decoding and training together.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from reeld.torch import ClipLoader, VideoClips, collate
from torch import nn
from torch.utils.data import DataLoader

VIDEOS_PER_CLASS = 8
FRAMES_PER_CLIP = 8
BATCH_SIZE = 8
# Videos whose pictures move to the left, and to the right: so much of their width from frame to frame.
SPEEDS = (-0.03, 0.03)


def make_videos(folder: Path) -> tuple[list[str], list[int]]:
    """Short videos of every class, in colours that tell nothing; their paths and labels."""
    paths, labels = [], []
    for label, speed in enumerate(SPEEDS):
        for number in range(VIDEOS_PER_CLASS):
            path = folder / f"{label}_{number}.mp4"
            source = f"testsrc2=size=32x32:rate=25:duration=1.6,scroll=horizontal={speed},hue=h={number * 45}"
            command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-y", "-f", "lavfi", "-i", source]
            subprocess.run([*command, "-c:v", "libx264", "-g", "12", "-pix_fmt", "yuv420p", path], check=True)
            paths.append(str(path))
            labels.append(label)
    return paths, labels


class Network(nn.Module):
    """Two convolutions over time and space, and a decision."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(3, 8, kernel_size=(3, 5, 5), stride=(1, 2, 2)),
            nn.ReLU(),
            nn.Conv3d(8, 16, kernel_size=3, stride=(1, 2, 2)),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(16, len(SPEEDS)),
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Takes (B, N, C, H, W) of uint8, gives (B, classes)."""
        # Convolutions want (B, C, N, H, W), and numbers around zero.
        return self.layers(frames.movedim(2, 1).float() / 127.5 - 1)


def make_loader(dataset: VideoClips, worker_count: int) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of clips and labels, of either kind of loader."""
    if worker_count == 0:
        return ClipLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, window=4)
    return DataLoader(
        dataset,
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=worker_count,
        persistent_workers=True,
        collate_fn=collate,
    )


def main() -> None:
    """Reads the command line, makes the videos and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 for a ClipLoader")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the videos are made and kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        train(*make_videos(folder), options)


def train(paths: list[str], labels: list[int], options: argparse.Namespace) -> None:
    """The loop."""
    torch.manual_seed(options.seed)
    dataset = VideoClips(
        paths,
        frames_per_clip=FRAMES_PER_CLIP,
        clips_per_video=4,
        sampling="random",
        seed=options.seed,
        targets=labels,
    )
    loader = make_loader(dataset, options.workers)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for epoch in range(options.epochs):
        # Other clips of the same videos than in the epoch before.
        dataset.set_epoch(epoch)
        started, loss_sum, right_count = time.perf_counter(), 0.0, 0
        for clips, classes in loader:
            decisions = network(clips.data)
            loss = nn.functional.cross_entropy(decisions, classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(classes)
            right_count += int((decisions.argmax(dim=1) == classes).sum())
        seconds = time.perf_counter() - started
        print(
            f"epoch {epoch}: loss {loss_sum / len(dataset):.3f}, accuracy {right_count / len(dataset):.0%}, "
            f"{len(dataset) * FRAMES_PER_CLIP / seconds:.0f} frames/s"
        )


if __name__ == "__main__":
    main()
