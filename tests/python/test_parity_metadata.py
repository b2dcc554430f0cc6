"""What a decoder tells about its file equals what TorchCodec tells, field by field and as printed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from support import CLIPS, TWENTY, UNSEEKABLE, Reference, VideoDecoder


@pytest.mark.parametrize("seek_mode", ["exact", "approximate"])
@pytest.mark.parametrize("clip", [*CLIPS, *UNSEEKABLE, *TWENTY[:2]])
def test_metadata_equals(media: Path, clip: str, seek_mode: str) -> None:
    ours = VideoDecoder(str(media / clip), seek_mode=seek_mode)
    reference = Reference(str(media / clip), seek_mode=seek_mode)
    assert asdict(ours.metadata) == asdict(reference.metadata)
    assert repr(ours.metadata) == repr(reference.metadata)
    assert len(ours) == len(reference)
    assert ours.stream_index == reference.stream_index


def test_metadata_is_mutable_as_torchcodecs(media: Path) -> None:
    ours = VideoDecoder(str(media / "h264_bframes.mp4"))
    ours.metadata.codec = "something else"
    assert ours.metadata.codec == "something else"


def test_the_processor_needs_no_fallback(media: Path) -> None:
    ours = VideoDecoder(str(media / "h264_bframes.mp4"))
    reference = Reference(str(media / "h264_bframes.mp4"))
    assert str(ours.cpu_fallback) == str(reference.cpu_fallback)
    assert bool(ours.cpu_fallback) == bool(reference.cpu_fallback)
