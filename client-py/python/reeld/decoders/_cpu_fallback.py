"""`CpuFallbackStatus`: whether a decoder works on the CPU although another device was asked for.

Where a device is chosen does not live here. As long as the CPU is the only one, nothing ever falls back.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CpuFallbackStatus:
    """Whether a decoder had to fall back to the CPU: true in a condition if it had to.

    Example:
        >>> from reeld.decoders import VideoDecoder
        >>> print(VideoDecoder(video_path).cpu_fallback)
        [CPU] Fallback status: No fallback required
    """

    status_known: bool = True
    """Whether it is settled already."""

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return "[CPU] Fallback status: No fallback required"
