"""Training with torch: what a DataLoader needs for clips, and `ClipLoader`, which needs no workers.

Decoding itself does not live here: this package asks for batches by `reeld.submit`, and needs torch.

Example:
    >>> from reeld.torch import ClipLoader, VideoClips
    >>> dataset = VideoClips([video_path], frames_per_clip=8, step=2, clips_per_video=6)
    >>> for clips in ClipLoader(dataset, batch_size=3):
    ...     print(tuple(clips.data.shape), tuple(clips.pts_seconds.shape))
    (3, 8, 3, 180, 320) (3, 8)
    (3, 8, 3, 180, 320) (3, 8)
"""

from reeld.torch._clip_loader import ClipLoader, SubmittingDataset
from reeld.torch._collate import collate
from reeld.torch._prefetch_sampler import PrefetchingDataset, PrefetchSampler
from reeld.torch._video_clips import PendingSamples, VideoClips

__all__ = [
    "ClipLoader",
    "PendingSamples",
    "PrefetchSampler",
    "PrefetchingDataset",
    "SubmittingDataset",
    "VideoClips",
    "collate",
]
