import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from pixio_pretrain.objectives import OBJECTIVES, create_objective
from pixio_pretrain.objectives.masked import MaskedAutoencoder
from pixio_robot import load_encoder
from pixio_robot.encoder import ENCODERS
from pixio_robot.images import normalize
from pixio_robot.layouts import to_meta_layout
from pixio_robot.nn import sincos_positions

TINY: dict[str, Any] = {"width": 32, "depth": 3, "heads": 4, "patch_size": 4, "image_size": 20}
TINY |= {"decoder_width": 24, "decoder_depth": 2, "decoder_heads": 3, "mask_ratio": 0.6}


def tiny(**changes: Any) -> MaskedAutoencoder:
    model = create_objective("mae", seed=0, **(TINY | changes))
    assert isinstance(model, MaskedAutoencoder)
    return model


@pytest.fixture
def theirs() -> ViTMAEForPreTraining:
    config = ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        patch_size=4,
        image_size=20,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=3,
        decoder_intermediate_size=96,
        mask_ratio=0.6,
        norm_pix_loss=True,
        layer_norm_eps=1e-6,  # MAE's; transformers defaults to 1e-12
    )
    model = ViTMAEForPreTraining(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))  # biases and norms, too
    return model


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a ViTMAEForPreTraining under the names of a MaskedAutoencoder."""
    encoder = {key: value for key, value in state.items() if key.startswith("vit.")}
    decoder = {key.removeprefix("decoder."): value for key, value in state.items() if key.startswith("decoder.")}
    layers = {key.removeprefix("decoder_"): value for key, value in decoder.items() if "_layers." in key}
    ours = {key: value for key, value in decoder.items() if "_layers." not in key}
    ours |= {f"vit.{key}": value for key, value in to_meta_layout(encoder, "mae").items()}
    return ours | {f"decoder_{key}": value for key, value in to_meta_layout(layers, "mae").items()}


@torch.no_grad()
def test_loss_prediction_and_mask_equal_those_of_transformers(theirs: ViTMAEForPreTraining) -> None:
    ours = tiny().eval()
    ours.load_state_dict(to_ours(theirs.state_dict()))
    images, noise = torch.rand(3, 3, 20, 20), torch.rand(3, 25)
    expected = theirs(normalize(images, torch.float32), noise=noise)
    found = ours(images, noise=noise)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.prediction, expected.logits, rtol=0, atol=1e-5)
    assert torch.equal(found.mask, expected.mask)


def test_gradients_equal_those_of_transformers(theirs: ViTMAEForPreTraining) -> None:
    ours = tiny()
    ours.load_state_dict(to_ours(theirs.state_dict()))
    images, noise = torch.rand(3, 3, 20, 20), torch.rand(3, 25)
    theirs(normalize(images, torch.float32), noise=noise).loss.backward()
    ours(images, noise=noise).loss.backward()
    gradients = {key: value.grad for key, value in theirs.named_parameters() if value.grad is not None}
    found = {key: value.grad for key, value in ours.named_parameters() if value.grad is not None}
    expected = to_ours(gradients)
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-5)


def test_positions_of_encoder_and_decoder_are_fixed_sines_and_cosines() -> None:
    model = tiny()
    torch.testing.assert_close(model.vit.pos_embed, sincos_positions(32, 5, 1))
    torch.testing.assert_close(model.decoder_pos_embed, sincos_positions(24, 5, 1))
    fixed = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    assert sorted(fixed) == ["decoder_pos_embed", "vit.pos_embed"]


def test_the_defaults_are_those_of_the_paper() -> None:
    for name, sizes in {"mae_vitb16": (768, 12, 12, 16), "mae_vith14": (1280, 32, 16, 14)}.items():
        config = OBJECTIVES["mae"](encoder=name)
        spec = config.spec()
        assert (spec.width, spec.depth, spec.heads, spec.patch_size) == sizes
        assert (spec.image_size, spec.class_tokens, spec.family) == (224, 1, "mae")
        assert (config.decoder_width, config.decoder_depth, config.decoder_heads) == (512, 8, 16)
        assert (config.mask_block, config.mask_ratio, config.name) == (1, 0.75, "mae")


@pytest.mark.slow  # 112 M parameters
def test_an_mae_of_the_papers_base_size_has_as_many_weights_as_that_of_transformers() -> None:
    ours = create_objective("mae", encoder="mae_vitb16")
    theirs = ViTMAEForPreTraining(ViTMAEConfig())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_mae_and_pixio_differ_in_settings_only() -> None:
    same = TINY | {"encoder": "mae_vitt16", "mask_block": 1, "mirror": True}
    mae, pixio = tiny(), create_objective("pixio", seed=0, **same)
    images, noise = torch.rand(2, 3, 20, 20), torch.rand(2, 25)
    assert torch.equal(mae(images, noise=noise).prediction, pixio(images, noise=noise).prediction)
    assert ENCODERS["mae_vitt16"].width == ENCODERS["pixio_vitt16"].width


def test_an_encoder_under_training_opens_in_transformers_and_in_the_core(tmp_path: Path) -> None:
    model = tiny(image_size=32, patch_size=8)
    fresh, optimizer = model.encoder.fingerprint, torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.rand(2, 3, 32, 32)).loss.backward()
    optimizer.step()
    model.encoder.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["layer_norm_eps"] == 1e-6
    assert isinstance(AutoModel.from_pretrained(tmp_path), ViTMAEModel)
    assert load_encoder(tmp_path).fingerprint == model.encoder.fingerprint != fresh
    torch.testing.assert_close(load_encoder(tmp_path).backbone.pos_embed, sincos_positions(32, 4, 1))


def test_half_of_the_crops_are_mirrored_but_none_for_measuring() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 240, 6, dtype=np.uint8), (40, 1))).convert("RGB")
    for name, scale, expected in (("mae", 0.5, (60, 140)), ("mae", 1.0, (0, 0)), ("pixio", 0.5, (0, 0))):
        make = create_objective(name, **(TINY | {"mask_block": 1})).samples(crop_scale=scale)
        random = np.random.default_rng(0)
        samples = [make(ramp, random)["images"] for _ in range(200)]
        mirrored = sum(bool(sample[0, 0, 0] > sample[0, 0, -1]) for sample in samples)
        assert expected[0] <= mirrored <= expected[1], (name, scale)
