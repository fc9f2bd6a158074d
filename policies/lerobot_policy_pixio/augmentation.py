"""Image augmentation for the variants of a feature cache: LeRobot's transforms, drawn from a generator of their own."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from lerobot.transforms import ImageTransformConfig, ImageTransforms, ImageTransformsConfig
from torch import Generator, Tensor

from pixio_robot.errors import SettingError

BILINEAR = 2  # torchvision's number for it, as a configuration can hold it


def robot_transforms() -> ImageTransformsConfig:
    """What a robot's camera meets: other light and colours, and a mount that was nudged. Every image gets both.

    There is no mirror: it would swap left and right in the image, and not in the actions.
    """
    light = {"brightness": (0.7, 1.3), "contrast": (0.75, 1.25), "saturation": (0.6, 1.4), "hue": (-0.07, 0.07)}
    nudge = {"degrees": (-3.5, 3.5), "translate": (0.03, 0.03), "scale": (0.95, 1.08), "interpolation": BILINEAR}
    return ImageTransformsConfig(
        enable=True,
        max_num_transforms=2,
        tfs={
            "light": ImageTransformConfig(type="ColorJitter", kwargs=light),
            "nudge": ImageTransformConfig(type="RandomAffine", kwargs=nudge),
        },
    )


class ImageAugmentation:
    """LeRobot's image transforms as the ``Augmentation`` of a feature cache.

    Args:
        transforms: As for ``--dataset.image_transforms``; ``robot_transforms`` when absent.

    Attributes:
        description: The transforms, in JSON's types.

    Raises:
        SettingError: If the transforms change nothing.
    """

    def __init__(self, transforms: ImageTransformsConfig | None = None) -> None:
        config = transforms or robot_transforms()
        if not config.enable or not config.tfs or config.max_num_transforms < 1:
            raise SettingError("These image transforms change nothing: set enable=True and name transforms in tfs.")
        self.description: Mapping[str, Any] = json.loads(json.dumps(asdict(config)))
        self._transform = ImageTransforms(config)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "ImageAugmentation":
        """Make the augmentation that a cache's attributes describe."""
        known = dict(description)
        known["tfs"] = {name: ImageTransformConfig(**transform) for name, transform in known["tfs"].items()}
        return cls(ImageTransformsConfig(**known))

    def __call__(self, frames: Tensor, generator: Generator, /) -> Tensor:
        """Change uint8 [n 3 h w] to uint8 [n 3 h w], all by the same draw."""
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):  # torchvision draws from PyTorch's own generator
            torch.default_generator.manual_seed(seed)
            changed = self._transform(frames.float() / 255)  # several of LeRobot's transforms skip whole numbers
        return (changed * 255).round().clamp(0, 255).to(torch.uint8)
