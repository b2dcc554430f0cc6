"""A program as users write it, with the types that they see: pyright checks it, and it runs.

`script/check` has pyright go through this file; each `assert_type` fails there where the package says another
type than the one that comes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import assert_type

import numpy as np
import pytest
import reeld
import torch
from reeld.decoders import CpuFallbackStatus, VideoDecoder
from reeld.metadata import VideoStreamMetadata
from reeld.transforms import CenterCrop, DecoderTransform, RandomCrop, Resize

CLIP = "h264_bframes.mp4"


def test_a_decoder(media: Path) -> None:
    decoder = VideoDecoder(media / CLIP, dimension_order="NHWC", seek_mode="exact", num_ffmpeg_threads=1)
    assert_type(decoder.metadata, VideoStreamMetadata)
    assert_type(decoder.stream_index, int)
    assert_type(decoder.cpu_fallback, CpuFallbackStatus)
    assert_type(len(decoder), int)
    assert_type(decoder[0], torch.Tensor)
    assert_type(decoder[np.int64(2)], torch.Tensor)
    assert_type(decoder[2:9:3], torch.Tensor)
    frame = decoder.get_frame_at(-1)
    assert_type(frame, reeld.Frame)
    assert_type(frame.data, torch.Tensor)
    assert_type(frame.pts_seconds, float)
    assert isinstance(frame.duration_seconds, float)
    for indices in ([0, 3, -1], range(4), np.array([1, 2]), torch.tensor([1, 2])):
        batch = decoder.get_frames_at(indices)
        assert_type(batch, reeld.FrameBatch)
        assert_type(batch.pts_seconds, torch.Tensor)
        assert_type(batch[0], reeld.FrameBatch)
        assert len(batch) == len(indices)
    assert_type(decoder.get_frames_in_range(0, 10, 2), reeld.FrameBatch)
    assert_type(decoder.get_frame_played_at(0.5), reeld.Frame)
    assert_type(decoder.get_frames_played_at([0.5, 1]), reeld.FrameBatch)
    assert_type(decoder.get_frames_played_in_range(0.5, 1.5, fps=10), reeld.FrameBatch)
    assert_type(decoder.get_all_frames(), reeld.FrameBatch)
    assert sum(picture.ndim for picture in decoder) == 3 * len(decoder)


def test_sources_and_options(media: Path) -> None:
    content = (media / CLIP).read_bytes()
    array = np.frombuffer(content, dtype=np.uint8)
    sources = (
        str(media / CLIP),
        content,
        bytearray(content),
        io.BytesIO(content),
        array,
        torch.from_numpy(array.copy()),
    )
    for source in sources:
        assert len(VideoDecoder(source)) > 0
    for dtype in (torch.float32, np.float32, np.dtype("float32"), "float32"):
        assert VideoDecoder(content, output_dtype=dtype)[0].dtype == torch.float32
    transforms: list[DecoderTransform] = [Resize((90, 160)), CenterCrop((64, 64)), RandomCrop((32, 32))]
    assert VideoDecoder(content, transforms=transforms, output_dtype="auto")[0].shape == (3, 32, 32)


def test_submitting(media: Path) -> None:
    decoder = VideoDecoder(str(media / CLIP))
    clips = [reeld.Clip(decoder, indices=range(0, 8, 2)), reeld.Clip(media / CLIP, seconds=[0.1, 0.2])]
    pending = reeld.submit(clips, priority=1, timeout_seconds=60)
    assert_type(pending, reeld.PendingFrames)
    assert_type(pending.result(timeout=60), list[reeld.FrameBatch])
    assert_type(pending.done(), bool)


def test_errors_are_what_existing_clauses_catch(media: Path) -> None:
    decoder = VideoDecoder(str(media / CLIP))
    with pytest.raises(IndexError) as past_end:
        decoder.get_frame_at(10**6)
    assert isinstance(past_end.value, reeld.FrameIndexError)
    with pytest.raises(reeld.ReeldError) as missing:
        VideoDecoder("no such file.mp4")
    assert isinstance(missing.value, RuntimeError)
