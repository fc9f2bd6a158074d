"""Two augmented views of one image, and where in it each of them lies; all chance comes from a generator.

The recipe is BYOL's (arXiv 2006.07733, appendix B), as PixPro uses it. Views are augmented as torchvision augments PIL
images, but by PIL alone, so that workers need not load torchvision. Boxes run between the outer edges of pixels, which
is exact; PixPro's own code measures between the centres of the outermost ones, up to half a pixel off.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from pixio_pretrain.data.crops import draw_box
from pixio_pretrain.data.samples import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewRecipe:
    """What may happen to a view once it is cut out, in the order of the attributes.

    Attributes:
        flip: Chance of a horizontal flip.
        jitter: Chance that the colours change at all.
        brightness: Largest relative change of brightness.
        contrast: Largest relative change of contrast.
        saturation: Largest relative change of saturation.
        hue: Largest turn of the hue, as a share of the colour circle.
        grey: Chance of losing all colour.
        blur: Chance of a Gaussian blur.
        blur_radius: Smallest and largest deviation of the blur in pixels.
        solarize: Chance of inverting all values from 128 up.
    """

    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.0
    blur_radius: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0


PairRecipe = tuple[ViewRecipe, ViewRecipe]

BYOL: PairRecipe = (ViewRecipe(blur=1.0), ViewRecipe(blur=0.1, solarize=0.2))


def make_pair(
    image: Image.Image, random: np.random.Generator, *, side: int, crop_scale: float, recipes: PairRecipe = BYOL
) -> Sample:
    """Cut two views out of an image and augment each one by its own recipe.

    Args:
        image: RGB, any size.
        random: Source of chance.
        side: Side of the views in pixels.
        crop_scale: Smallest area of a view as a share of the image. At 1 both views are its largest centred square.
        recipes: What happens to the first and to the second view.

    Returns:
        "images": uint8 [2 3 side side]. "boxes": float32 [2 4], where the left, top, right and bottom edge of each view
        lie in the image, as shares of its width and height; left and right are swapped where the view is flipped, so
        that a point (u, v) of the view, in [0, 1], is always (x0 + u * (x1 - x0), y0 + v * (y1 - y0)) of the image.
    """
    width, height = image.size
    views: list[NDArray[np.uint8]] = []
    boxes: list[tuple[float, float, float, float]] = []
    for recipe in recipes:
        left, top, right, bottom = box = draw_box(image.size, crop_scale, random)
        view = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
        if random.random() < recipe.flip:
            view, left, right = ImageOps.mirror(view), right, left
        views.append(np.asarray(recolor(view, recipe, random)).transpose(2, 0, 1))
        boxes.append((left / width, top / height, right / width, bottom / height))
    return {"images": np.stack(views), "boxes": np.asarray(boxes, dtype=np.float32)}


def recolor(view: Image.Image, recipe: ViewRecipe, random: np.random.Generator) -> Image.Image:
    """Jitter, grey, blur and solarise a view; nothing in it moves."""
    if random.random() < recipe.jitter:
        changes = _jitters(recipe, random)
        for index in random.permutation(len(changes)):
            view = changes[index](view)
    if random.random() < recipe.grey:
        view = view.convert("L").convert("RGB")
    if random.random() < recipe.blur:
        view = view.filter(ImageFilter.GaussianBlur(random.uniform(*recipe.blur_radius)))
    if random.random() < recipe.solarize:
        view = ImageOps.solarize(view)
    return view


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Turn every hue by a share of the colour circle, in [-0.5, 0.5]."""
    hue, saturation, value = image.convert("HSV").split()
    steps = int(turn * 255)
    hue = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _jitters(recipe: ViewRecipe, random: np.random.Generator) -> list[Callable[[Image.Image], Image.Image]]:
    """Draw the four changes of a colour jitter (torchvision's ColorJitter)."""
    brightness, contrast, saturation = (
        random.uniform(1 - change, 1 + change) for change in (recipe.brightness, recipe.contrast, recipe.saturation)
    )
    turn = random.uniform(-recipe.hue, recipe.hue)
    return [
        lambda view: ImageEnhance.Brightness(view).enhance(brightness),
        lambda view: ImageEnhance.Contrast(view).enhance(contrast),
        lambda view: ImageEnhance.Color(view).enhance(saturation),
        lambda view: turn_hue(view, turn),
    ]
