"""Boxes: what comes after a detector. How many are left depends on their values, so this runs eagerly only."""

from __future__ import annotations

import numpy as np

from .table import Call, operator


@operator("NonMaxSuppression", known=(0, 1, 2, 3, 4))
def non_max_suppression(c: Call) -> np.ndarray:
    """(kept, 3) of batch, class and box numbers: for each class the best boxes, less those that overlap a better one."""
    boxes, scores = c.known(0), c.known(1)
    most, overlap, least = int(c.number(2, 0)), float(c.number(3, 0.0)), c.number(4)
    if c.attr("center_point_box", 0):
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        boxes = np.concatenate([centre - half, centre + half], -1)
    low, high = np.minimum(boxes[..., :2], boxes[..., 2:]), np.maximum(boxes[..., :2], boxes[..., 2:])
    kept = []
    for image, kind in np.ndindex(*scores.shape[:2]):
        values = scores[image, kind]
        order = np.argsort(-values, kind="stable")
        order = order if least is None else order[values[order] > least]
        found: list[int] = []
        for box in order.tolist():
            if len(found) == most:
                break
            if not found or (_overlap(low[image], high[image], box, found) <= overlap).all():
                found.append(box)
        kept += [(image, kind, box) for box in found]
    return np.array(kept, np.int64).reshape(-1, 3)


def _overlap(low: np.ndarray, high: np.ndarray, box: int, others: list[int]) -> np.ndarray:
    """Intersection over union of a box with each of some others."""
    shared = np.prod(np.maximum(np.minimum(high[box], high[others]) - np.maximum(low[box], low[others]), 0), -1)
    area = np.prod(high - low, -1)
    union = area[box] + area[others] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0)
