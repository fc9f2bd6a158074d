"""What an encoder can be trained on: a registry of objectives behind one small interface.

A row here and a file beside it are all that a new objective needs; its config names every setting it has.

- ``base`` is the interface.
- ``masked`` (Pixio) and ``mae`` rebuild hidden ``patches``; ``masking`` hides them.
- ``pixpro`` and ``pixcontrast`` share ``pixelwise``: two ``branches`` of ``backbones`` look at two views, whose
  ``cells`` meet; ``propagation`` is PixPro's, ``matches`` draws.
- ``descriptors`` knows points of things again in other looks.
- ``distill`` learns from a teacher.
"""

from dataclasses import fields
from typing import Any

import torch

from pixio_pretrain.objectives.base import Objective, ObjectiveConfig
from pixio_pretrain.objectives.descriptors import DescriptorsConfig
from pixio_pretrain.objectives.distill import DistillConfig
from pixio_pretrain.objectives.mae import MaeConfig
from pixio_pretrain.objectives.masked import PixioConfig
from pixio_pretrain.objectives.pixcontrast import PixContrastConfig
from pixio_pretrain.objectives.pixpro import PixProConfig
from pixio_robot.errors import UnknownNameError

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "descriptors": DescriptorsConfig,
    "distill": DistillConfig,
    "mae": MaeConfig,
    "pixcontrast": PixContrastConfig,
    "pixio": PixioConfig,
    "pixpro": PixProConfig,
}


def create_objective(name: str, *, seed: int | None = None, **settings: Any) -> Objective:
    """Build an objective with random weights.

    Args:
        name: A row of ``OBJECTIVES``.
        seed: Makes the weights reproducible.
        **settings: Fields of that row's config.

    Raises:
        UnknownNameError: If there is no such objective, encoder or setting; it carries the nearest name.
        SettingError: If the settings do not fit together.
    """
    if name not in OBJECTIVES:
        raise UnknownNameError("objective", name, OBJECTIVES)
    known = {field.name for field in fields(OBJECTIVES[name])} - {"name"}
    for key in settings:
        if key not in known:
            raise UnknownNameError(f"setting of objective {name!r}", key, known)
    objective = OBJECTIVES[name](**settings).build()
    if seed is not None:
        objective.initialize(torch.Generator().manual_seed(seed))
    return objective


__all__ = ["OBJECTIVES", "Objective", "ObjectiveConfig", "create_objective"]
