"""Average precision of detections as COCO defines it, and VOC 2007's with 11 points of recall."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_area, box_iou

from pixio_pretrain.evaluation.sets.boxes import Objects
from pixio_robot.errors import SettingError

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())
"""Overlaps from which on a detection is right."""

MOST = 100
"""Detections of an image that count, the surest ones, over all classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Detections:
    """What was found in an image.

    Attributes:
        boxes: left, top, right, bottom, in pixels, float32 [k 4].
        labels: Classes, from 0 [k].
        scores: How sure [k].
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]


def average_precision(
    found: Sequence[Detections], truth: Sequence[Objects], *, classes: int, points: int = 101, crowds: bool = True
) -> dict[str, float]:
    """Average precision over classes and overlaps.

    In each image, detections are taken from the surest on; each is matched to the object of its class that it overlaps
    most among those not taken, if by the threshold. Objects to be ignored are matched last, any number of times, and
    such a detection counts as neither right nor wrong. The average precision of a class is the mean, over recalls from
    0 to 1, of the best precision at that recall or more.

    Args:
        found: By image.
        truth: By image, in the same order.
        classes: Number of classes; one without objects is left out.
        points: Recalls: 101 as COCO, 11 as VOC 2007.
        crowds: Objects to be ignored are crowds, as in COCO: a detection overlaps one by the share of itself that lies
            inside. Else overlap means the same for them as for others.

    Returns:
        "ap" (mean over ``THRESHOLDS``), "ap50" and "ap75".

    Raises:
        SettingError: If lengths differ, or there is no object at all.
    """
    if len(found) != len(truth):
        raise SettingError(f"Detections in {len(found)} images, and objects in {len(truth)}.")
    table = [_of_class(found, truth, label, points, crowds=crowds) for label in range(classes)]
    known = np.array([row for row in table if row is not None])
    if not len(known):
        raise SettingError("There is no object in any image, so there is no precision to average.")
    means = known.mean(axis=0)
    return {"ap": float(means.mean()), "ap50": float(means[0]), "ap75": float(means[THRESHOLDS.index(0.75)])}


def _of_class(
    found: Sequence[Detections], truth: Sequence[Objects], label: int, points: int, *, crowds: bool
) -> NDArray[np.float64] | None:
    """Average precision of a class at each threshold; None if there are no objects of it."""
    scores, right, ignored, count = [], [], [], 0
    for detections, objects in zip(found, truth, strict=True):
        sure = np.argsort(-detections.scores, kind="stable")[:MOST]
        mine = sure[detections.labels[sure] == label]
        theirs = objects.labels == label
        count += int((theirs & ~objects.ignored).sum())
        if len(mine):
            matched, passed = _match(detections.boxes[mine], objects.boxes[theirs], objects.ignored[theirs], crowds)
            scores.append(detections.scores[mine])
            right.append(matched)
            ignored.append(passed)
    if not count:
        return None
    if not scores:
        return np.zeros(len(THRESHOLDS))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits, passes = (np.concatenate(parts, axis=1)[:, order] for parts in (right, ignored))
    return np.array([_area(hit[~skip], count, points) for hit, skip in zip(hits, passes, strict=True)])


def _match(
    boxes: NDArray[np.float32], objects: NDArray[np.float32], ignored: NDArray[np.bool_], crowds: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match detections, the surest first, at each threshold: which are right, and which do not count, [t k]."""
    hits = np.zeros((len(THRESHOLDS), len(boxes)), np.bool_)
    passes = hits.copy()
    if not len(objects):
        return hits, passes
    mine, theirs = torch.from_numpy(boxes).double(), torch.from_numpy(objects).double()
    overlap = box_iou(mine, theirs)
    if crowds and ignored.any():
        union = box_area(mine)[:, None] + box_area(theirs)
        inside = overlap * union / (1 + overlap) / box_area(mine)[:, None].clamp(min=1e-9)
        overlap = torch.where(torch.from_numpy(ignored), inside, overlap)
    table = overlap.numpy()
    for level, threshold in enumerate(THRESHOLDS):
        taken = np.zeros(len(objects), np.bool_)
        for number, row in enumerate(table):
            free = np.where(~taken & ~ignored & (row >= threshold), row, -1.0)
            best = int(free.argmax())
            if free[best] >= 0:
                hits[level, number] = taken[best] = True
            else:
                passes[level, number] = (ignored & (row >= threshold)).any()
    return hits, passes


def _area(hits: NDArray[np.bool_], count: int, points: int) -> float:
    """Mean over recalls of the best precision at that recall or more."""
    if not len(hits):
        return 0.0
    right = hits.cumsum()
    recall, precision = right / count, right / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, points), side="left")
    return float(np.append(envelope, 0.0)[places].mean())
