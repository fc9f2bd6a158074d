"""Small encoders and frames for the core's tests."""

import pytest
import torch

from pixio_robot import Encoder, create_encoder

TINY = {"width": 32, "depth": 4, "heads": 4, "image_size": 64, "patch_size": 16, "class_tokens": 3}


@pytest.fixture
def encoder() -> Encoder:
    """A tiny encoder whose weights are large enough for differences to show."""
    made = create_encoder("pixio_vitt16", seed=0, **TINY)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in made.backbone.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made


@pytest.fixture
def images() -> torch.Tensor:
    """Two native-size images: float [2 3 64 64] in [0, 1]."""
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
