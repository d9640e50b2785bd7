"""Numbers of the objects in the frames of a video, by ByteTrack of the package trackers."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch

from mmgcvit.errors import UsageError

# trackers requires opencv-python, which would replace the files of opencv-python-headless.
INSTALL = "pip install supervision && pip install --no-deps trackers"
NONE = -1  # number of an object without a track


def require_trackers() -> None:
    """Raise a UsageError if the package trackers, or what it needs, is not installed."""
    missing = [name for name in ("trackers", "supervision") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"--track-objects needs the package {' and '.join(missing)}; run `{INSTALL}`")


class ObjectTracker:
    """ByteTrack over the objects of one video, whatever their classes.

    An object is followed if its boxes in two frames overlap, as far as its motion can be predicted. It gets a number in
    the second frame in which it is found, and keeps it if it is lost for less than a second.

    Args:
        rate: frames per second.
        score_thr: a track begins with a box of at least this score; boxes with a lower one can only continue a track.

    Raises:
        UsageError: the package trackers is not installed.
    """

    def __init__(self, rate: float, score_thr: float) -> None:
        require_trackers()
        from trackers import ByteTrackTracker

        self.tracker = ByteTrackTracker(
            frame_rate=rate,
            track_activation_threshold=score_thr,
            high_conf_det_threshold=score_thr,
            minimum_consecutive_frames=1,
        )

    def __call__(self, instances: Any) -> Any:
        """Add ``track_ids`` to the instances of the next frame, from 0; :data:`NONE` for those without a track."""
        import supervision

        count = len(instances)
        found = supervision.Detections(
            xyxy=instances.bboxes.float().numpy().reshape(count, 4),
            confidence=instances.scores.float().numpy(),
            data={"index": np.arange(count)},
        )
        tracked = self.tracker.update(found)  # in another order
        ids = np.full(count, NONE, np.int64)
        if len(tracked):
            ids[tracked.data["index"]] = tracked.tracker_id
        instances.track_ids = torch.from_numpy(ids)
        return instances
