"""What passes between data and objectives."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Sample = dict[str, NDArray[Any]]
"""What an objective makes of one image; the arrays of a batch are stacked by key."""

Batch = dict[str, Tensor]
"""Stacked samples: the arguments of an objective's forward. Every objective has "images"."""

SampleMaker = Callable[[Image.Image, np.random.Generator], Sample]
"""Crops, augments and draws noise; all chance comes from the generator. Those of objectives that take pairs of images
have the second one as a third argument; see ``data.companions``."""

BatchMaker = Callable[..., Batch]
"""The same for a batch of images of one size, uint8 [b 3 h w], on whatever device they are, a generator and, as a third
argument, the second ones of pairs."""
