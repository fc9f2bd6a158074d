"""Two warped views of one scene, and points that both of them show."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pixio_pretrain.data.samples import Sample

_LEAST = 4  # pixels of a thing that counts as one
_SHIFT = 0.1  # of the picture's side, at most
_GROWN = 3  # pixels, exclusive, by which what is cut out is widened at most


def make_warped_pair(
    image: Image.Image,
    random: np.random.Generator,
    second: Image.Image | None = None,
    moving: NDArray[np.bool_] | None = None,
    stranger: Image.Image | None = None,
    *,
    side: int,
    crop_scale: float,
    turn: float,
    points: int,
    share: float,
    paste: float,
) -> Sample:
    """Turn, zoom and shift two pictures of one scene, each by chance, and draw points to compare.

    What moves in the picture is taken apart into things, and each of them has the same chance of a point, however small
    it is. What does not may be another picture's, so that things are to be known before any background.

    Args:
        image: RGB, square of ``side``.
        random: Source of chance.
        second: The scene in another look; the same picture unless given.
        moving: bool [side side], what to draw most points from; everything unless given.
        stranger: Whose pixels may stand in for what does not move.
        side: Pixels of a side.
        crop_scale: Least area that a view shows, as a share of the picture; at 1 nothing is warped.
        turn: Degrees that a view turns at most.
        points: How many points p.
        share: Of the points, on what moves.
        paste: Chance of a view to have another background.

    Returns:
        "images": uint8 [2 3 side side]. "points": float32 [2 p 2], where they are in the views, to the right and down
        from -1 to 1. "places": float32 [p 2], the same in the picture. "things": bool [p], whether on what moves.
    """
    resized = [one.resize((side, side), Image.Resampling.BILINEAR) for one in (image, second or image)]
    pictures = [np.asarray(one) for one in resized]
    things = np.ones((side, side), bool) if moving is None else moving
    chosen, on_things, cut = _draw(things, random, points, share)
    if stranger is not None:
        other = np.asarray(stranger.resize((side, side), Image.Resampling.BILINEAR))
        kept = ndimage.binary_dilation(cut, iterations=grown) if (grown := int(random.integers(_GROWN))) else cut
        for number in range(2):
            flips = tuple(slice(None, None, int(sign)) for sign in random.choice((-1, 1), 2))
            if random.random() < paste:
                pictures[number] = np.where(kept[..., None], pictures[number], other[flips])
    down, right = np.divmod(chosen, side)
    places = (2 * np.stack([right, down], axis=1) + 1) / side - 1
    views, seen = zip(*(_warp(one, places, random, crop_scale, turn) for one in pictures), strict=True)
    return {
        "images": np.stack(views).transpose(0, 3, 1, 2),
        "points": np.stack(seen).astype(np.float32),
        "places": places.astype(np.float32),
        "things": on_things,
    }


def _draw(
    moving: NDArray[np.bool_], random: np.random.Generator, points: int, share: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Draw pixels [p]; say which of them are on things, and what the things are [h w]."""
    labels = np.zeros(moving.shape, np.int32)
    ndimage.label(moving, output=labels)
    flat = labels.ravel()
    sizes = np.bincount(flat)
    large = np.flatnonzero(sizes >= _LEAST)
    large = large[large > 0]
    cut = np.isin(labels, large)
    count = round(share * points) if len(large) else 0
    rest = np.flatnonzero(~cut.ravel())
    others = random.choice(rest, points - count) if len(rest) else random.integers(moving.size, size=points - count)
    order, start = np.argsort(flat, kind="stable"), np.r_[0, np.cumsum(sizes)]
    which = random.choice(large, count) if count else np.zeros(0, np.int64)
    inside = order[start[which] + (random.random(count) * sizes[which]).astype(np.int64)]
    return np.concatenate([inside, others]), np.arange(points) < count, cut


def _warp(
    picture: NDArray[np.uint8], places: NDArray[np.float64], random: np.random.Generator, crop_scale: float, turn: float
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Warp a picture [s s 3], mirrored beyond its edges, and say where its places [p 2] come to lie."""
    if crop_scale == 1:
        return picture, places
    zoom = -math.log(crop_scale) / 2
    angle = math.radians(random.uniform(-turn, turn))
    scale, shift = math.exp(random.uniform(-zoom, zoom)), random.uniform(-2 * _SHIFT, 2 * _SHIFT, 2)
    side = picture.shape[0]
    rotation = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    margin = side // 2
    padded = Image.fromarray(np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="reflect"))
    middle = margin + side / 2
    offset = middle + shift * side / 2 - rotation @ np.full(2, side / 2)  # PIL: from pixels of the view to those within
    matrix = np.column_stack([rotation, offset]).ravel().tolist()
    view = padded.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(view), (places - shift) @ np.linalg.inv(rotation).T
