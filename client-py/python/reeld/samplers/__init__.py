"""Samplers with TorchCodec's names, arguments, results and exceptions: clips of one video, by one request.

A clip is a few frames that follow each other at equal distances. Where clips begin is drawn at random or
spread regularly, over the whole video or a part of it.

Random clips are drawn from torch's generator, in the same order as TorchCodec draws them: after
``torch.manual_seed`` both libraries give the same clips. Where torch is not installed they are drawn from
numpy's global generator, which ``numpy.random.seed`` makes repeatable; these are other clips than torch's.

Example:
    >>> from reeld.decoders import VideoDecoder
    >>> from reeld.samplers import clips_at_regular_indices
    >>> clips = clips_at_regular_indices(VideoDecoder(video_path), num_clips=2, num_frames_per_clip=3)
    >>> clips.data.shape[:3] == (2, 3, 3)
    True
"""

from reeld.samplers._by_index import clips_at_random_indices, clips_at_regular_indices
from reeld.samplers._by_time import clips_at_random_timestamps, clips_at_regular_timestamps

__all__ = [
    "clips_at_random_indices",
    "clips_at_random_timestamps",
    "clips_at_regular_indices",
    "clips_at_regular_timestamps",
]
