"""The encoder: parity with transformers, frozenness, sizes, and the images it refuses."""

from typing import Any

import pytest
import torch
from transformers import AutoModel, PixioConfig, PixioModel, ViTMAEConfig, ViTMAEModel

from pixio_robot import ENCODERS, create_encoder, load_encoder
from pixio_robot.errors import ImageError, SettingError, UnknownNameError
from pixio_robot.images import normalize, resize

# Parameters of Pixio's published sizes (arXiv 2512.15715), and of our own two.
PARAMETERS = {
    "pixio_vitb16": 85_855_488,
    "pixio_vitl16": 303_377_408,
    "pixio_vith16": 631_013_120,
    "pixio_vit1b16": 1_361_515_008,
    "pixio_vit5b16": 5_440_939_008,
}


def oracle(encoder, folder):
    encoder.save_pretrained(folder)
    return PixioModel.from_pretrained(folder, attn_implementation="sdpa").eval()


@torch.no_grad()
def oracle_tokens(model: PixioModel, images: torch.Tensor) -> torch.Tensor:
    """Run the oracle's inner modules, since its outer one refuses any size but the native."""
    pixels = normalize(images, torch.float32)
    embeddings = model.embeddings
    x = embeddings.patch_embeddings(pixels)
    x = torch.cat([embeddings.cls_token.expand(len(images), -1, -1), x], dim=1)
    x = x + embeddings.interpolate_pos_encoding(x, pixels.shape[2], pixels.shape[3])
    for layer in model.layers:
        out = layer(x)
        x = out[0] if isinstance(out, tuple) else out
    return model.layernorm(x)


def test_features_equal_those_of_transformers_at_native_size(encoder, images, tmp_path):
    model = oracle(encoder, tmp_path)
    with torch.no_grad():
        expected = model(normalize(images, torch.float32)).last_hidden_state
    tokens = encoder(images)
    torch.testing.assert_close(torch.cat([tokens.classes, tokens.patches], 1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(96, 96), (48, 80), (128, 64), (32, 32), (16, 256)])
def test_features_equal_those_of_transformers_at_other_sizes(encoder, tmp_path, size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(3))
    expected = oracle_tokens(oracle(encoder, tmp_path), images)
    tokens = encoder(images)
    assert tokens.grid == (size[0] // 16, size[1] // 16)
    torch.testing.assert_close(torch.cat([tokens.classes, tokens.patches], 1), expected, atol=1e-5, rtol=0)


def test_intermediate_blocks_equal_the_hidden_states_of_transformers(encoder, images, tmp_path):
    model = oracle(encoder, tmp_path)
    with torch.no_grad():
        hidden = model(normalize(images, torch.float32), output_hidden_states=True).hidden_states
    raw = encoder.intermediate(images, blocks=[2, 0], norm=False)
    for tokens, block in zip(raw, [2, 0], strict=True):
        expected = hidden[block + 1]
        torch.testing.assert_close(torch.cat([tokens.classes, tokens.patches], 1), expected, atol=1e-5, rtol=0)
    normed = encoder.intermediate(images, blocks=[2])[0]
    torch.testing.assert_close(normed.patches, model.layernorm(hidden[3])[:, 3:].detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes_have_the_published_number_of_parameters(name):
    with torch.device("meta"):
        encoder = create_encoder(name)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ENCODERS)
def test_every_row_matches_a_transformers_configuration(name):
    spec = ENCODERS[name]
    sizes = {"hidden_size": spec.width, "num_hidden_layers": spec.depth, "num_attention_heads": spec.heads}
    if name.startswith("mae"):
        sizes |= {"image_size": 224, "patch_size": spec.patch_size, "intermediate_size": 4 * spec.width}
    else:
        sizes |= {"image_size": 256}
    with torch.device("meta"):
        ours = create_encoder(name)
        theirs = ViTMAEModel(ViTMAEConfig(**sizes)) if name.startswith("mae") else PixioModel(PixioConfig(**sizes))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_frozen_means_frozen(encoder, images):
    parent = torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    parent.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    leaf = images.clone().requires_grad_()
    assert not encoder(leaf).patches.requires_grad
    assert torch.equal(encoder(images).classes, encoder(images).classes)


def test_uint8_and_float_images_give_the_same_features(encoder):
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(encoder(pixels).patches, encoder(pixels / 255).patches, atol=1e-5, rtol=1e-5)


def test_the_fingerprint_follows_the_weights_and_not_the_dtype(encoder):
    name = encoder.fingerprint
    assert encoder.to(torch.bfloat16).fingerprint == name
    seeds = [create_encoder("pixio_vitt16", seed=seed, depth=1).fingerprint for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (torch.rand(2, 1, 64, 64), r"RGB of shape \[b 3 h w\].*expand"),
        (torch.rand(2, 64, 64, 3), r"permute\(0, 3, 1, 2\)"),
        (torch.rand(3, 64, 64), r"images\[None\]"),
        (torch.rand(2, 4, 64, 64), r"\[:, :3\]"),
        (torch.rand(0, 3, 64, 64), "empty"),
        (torch.rand(1, 3, 64, 70), "nearest size that can is 64 x 64"),
        (torch.rand(1, 3, 64, 0), "cannot be cut"),
        (torch.rand(1, 3, 64, 64) * 255, "Divide by 255"),
        (torch.randn(1, 3, 64, 64).clamp(-3, 3), "normalises by itself"),
        (torch.full((1, 3, 64, 64), float("nan")), r"\[0, 1\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int32), "int32"),
    ],
)
def test_images_that_cannot_be_read_are_refused_with_the_remedy(encoder, images, told):
    with pytest.raises(ImageError, match=told):
        encoder(images)


def test_a_list_is_not_an_image(encoder):
    with pytest.raises(ImageError, match="list"):
        encoder([[0.0]])


def test_a_typo_is_answered_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'pixio_vitb16'"):
        create_encoder("pixio_vit_b16")
    with pytest.raises(UnknownNameError, match="Did you mean 'class_tokens'"):
        create_encoder("pixio_vitt16", class_token=2)


def test_sizes_that_do_not_fit_together_are_refused():
    with pytest.raises(SettingError, match="5 heads do not divide a width of 192"):
        create_encoder("pixio_vitt16", heads=5)
    with pytest.raises(SettingError, match="nearest: 96"):
        create_encoder("pixio_vitt16", image_size=100)
    with pytest.raises(SettingError, match="at least 1"):
        create_encoder("pixio_vitt16", depth=0)


def test_a_block_that_does_not_exist_is_refused(encoder, images):
    with pytest.raises(SettingError, match="0 to 3"):
        encoder.intermediate(images, blocks=[4])
    with pytest.raises(SettingError):
        encoder.intermediate(images, blocks=[])


def test_resizing_keeps_the_type_and_the_range():
    pixels = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8)
    small = resize(pixels, (32, 48))
    assert small.dtype == torch.uint8
    assert small.shape[-2:] == (32, 48)
    assert resize(pixels, (40, 60)) is pixels
    torch.testing.assert_close(resize(pixels / 255, (32, 48)), small / 255, atol=0.51 / 255, rtol=0)
    assert resize(pixels.half() / 255, (32, 48)).dtype == torch.float16


def test_what_is_no_raw_picture_is_refused_before_resizing_could_hide_it():
    pixels = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8)
    with pytest.raises(ImageError, match=r"span \[0, 255\]. Divide by 255"):
        resize(pixels.float(), (32, 48))
    with pytest.raises(ImageError, match="Pass raw RGB"):
        resize(normalize(pixels, torch.float32), (32, 48))
    with pytest.raises(ImageError, match=r"not torch\.int64"):
        resize(pixels.long(), (32, 48))


@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_a_stem_of_convolutions_keeps_the_grid_and_sees_across_its_borders(patch_size, tmp_path):
    encoder = create_encoder("pixio_vitt16", seed=0, depth=1, image_size=64, patch_size=patch_size, stem="conv")
    images = torch.rand(1, 3, 64, 64)
    tokens = encoder(images)
    assert tokens.grid == (64 // patch_size, 64 // patch_size)
    changed = images.clone()
    changed[..., patch_size - 1] = 0  # the last column of the first patches
    embed = encoder.backbone.patch_embed
    moved = (embed(images)[0] != embed(changed)[0]).any(-1).view(tokens.grid)
    assert moved[:, :2].all()
    assert not moved[:, 2:].any()
    encoder.save_pretrained(tmp_path)
    assert load_encoder(tmp_path).fingerprint == encoder.fingerprint
    with pytest.raises((ValueError, KeyError)):
        AutoModel.from_pretrained(tmp_path)  # transformers must not take it for a Pixio with linear patches


def test_a_stem_that_cannot_be_is_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'conv'"):
        create_encoder("pixio_vitt16", stem="convs")
    with pytest.raises(SettingError, match="patches of 4, 8, 16 or 32"):
        create_encoder("mae_vitt16", stem="conv")


@pytest.mark.parametrize("family", ["pixio", "mae"])
def test_a_redrawn_encoder_is_what_would_have_been_made_with_that_seed(family: str) -> None:
    sizes: dict[str, Any] = {"width": 24, "depth": 2, "heads": 2, "image_size": 32}
    first, other = (create_encoder(f"{family}_vitt16", seed=seed, **sizes) for seed in (0, 1))
    again = first.redrawn(1)
    assert again.fingerprint == other.fingerprint != first.fingerprint
    assert again.provenance["weights"] == "random, seed 1"
    assert first.redrawn(0).fingerprint == first.fingerprint
    assert not any(parameter.requires_grad for parameter in again.parameters())
