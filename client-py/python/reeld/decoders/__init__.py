"""Decoders with TorchCodec's names, arguments, results and exceptions.

Example:
    >>> from reeld.decoders import VideoDecoder
    >>> decoder = VideoDecoder(video_path)
    >>> decoder[0].shape == decoder.get_frame_at(0).data.shape
    True
"""

from reeld.decoders._cpu_fallback import CpuFallbackStatus
from reeld.decoders._spool import on_spool_progress, set_spool_limit
from reeld.decoders._video_decoder import VideoDecoder

__all__ = ["CpuFallbackStatus", "VideoDecoder", "on_spool_progress", "set_spool_limit"]
