"""Encoders other than Pixio: MAE, built here, and models that transformers runs."""

import json

import pytest
import torch
from transformers import AutoModel, ResNetConfig, ResNetModel, ViTConfig, ViTMAEConfig, ViTMAEModel, ViTModel

from pixio_robot import create_encoder, load_encoder
from pixio_robot.errors import CheckpointError, SettingError
from pixio_robot.foreign import wrap_model
from pixio_robot.images import normalize
from pixio_robot.nn import sincos_positions

TINY = {"width": 32, "depth": 3, "heads": 4, "image_size": 64, "patch_size": 16}


@pytest.fixture
def mae():
    made = create_encoder("mae_vitt16", seed=0, **TINY)
    with torch.no_grad():
        for parameter in made.backbone.blocks.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return made


@pytest.fixture
def resnet():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 2], layer_type="basic")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResNetModel(config).eval()


def test_an_mae_encoder_equals_that_of_transformers(mae, images, tmp_path):
    mae.save_pretrained(tmp_path)
    theirs = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(theirs, ViTMAEModel)
    in_order = torch.arange(16.0)[None].expand(2, -1)  # theirs shuffles by this noise even where it hides none
    with torch.no_grad():
        expected = theirs(normalize(images, torch.float32), noise=in_order).last_hidden_state
    tokens = mae(images)
    torch.testing.assert_close(torch.cat([tokens.classes, tokens.patches], 1), expected, atol=1e-5, rtol=0)


def test_an_mae_folder_comes_back_bit_equal_from_us_and_through_transformers(mae, tmp_path):
    mae.save_pretrained(tmp_path / "ours")
    ViTMAEModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        back = load_encoder(tmp_path / folder)
        assert back.spec == mae.spec
        assert back.fingerprint == mae.fingerprint


def test_a_whole_mae_in_metas_layout_gives_its_encoder(mae, tmp_path):
    state = {**mae.backbone.state_dict(), "mask_token": torch.zeros(1, 1, 8)}
    torch.save({"model": state}, tmp_path / "mae.pth")
    back = load_encoder(tmp_path / "mae.pth", heads=4)
    assert back.spec == mae.spec
    assert back.fingerprint == mae.fingerprint


def test_sincos_positions_are_those_of_transformers():
    theirs = ViTMAEModel(ViTMAEConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=80))
    theirs.embeddings.patch_embeddings.projection._is_hf_initialized = False  # else the call does nothing
    theirs.embeddings.initialize_weights()
    torch.testing.assert_close(sincos_positions(48, 5, 1), theirs.embeddings.position_embeddings, atol=1e-6, rtol=0)


def test_sincos_positions_worked_by_hand():
    # Width 4: one rate, 1. The row-major patch 1 of a 2 x 2 grid lies in row 0, column 1.
    row_zero = [0.0, 1.0]
    assert sincos_positions(4, 2, 1)[0, 0].tolist() == [0.0] * 4
    torch.testing.assert_close(sincos_positions(4, 2)[0, 1], torch.tensor([0.841471, 0.540302, *row_zero]))
    with pytest.raises(SettingError, match="not 6; nearest: 8"):
        sincos_positions(6, 2)


def test_maes_positions_take_no_gradient_and_survive_initialisation():
    vit = create_encoder("mae_vitt16", seed=3, **TINY).backbone
    torch.testing.assert_close(vit.pos_embed.data, sincos_positions(32, 4, 1))
    assert not vit.pos_embed.requires_grad


def test_a_resnet_speaks_in_tokens(resnet):
    images = torch.rand(2, 3, 64, 96)
    encoder = wrap_model(resnet, provenance={"name": "tiny"})
    tokens = encoder(images)
    assert (encoder.spec.family, encoder.spec.width, encoder.spec.patch_size) == ("resnet", 32, 32)
    assert tokens.classes.shape == (2, 0, 32)
    assert tokens.grid == (2, 3)
    with torch.no_grad():
        expected = resnet(normalize(images, torch.float32)).last_hidden_state
    assert torch.equal(tokens.patches.transpose(1, 2).unflatten(2, (2, 3)), expected)
    assert encoder.intermediate(images, blocks=[0])[0].patches.shape == (2, 16 * 24, 8)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_resnet_folder_comes_back_and_opens_in_transformers(resnet, tmp_path, dtype):
    encoder = wrap_model(resnet, provenance={"name": "tiny", "licence": "mit"})
    encoder.save_pretrained(tmp_path, dtype=dtype)
    back = load_encoder(tmp_path)
    assert back.provenance["licence"] == "mit"
    assert back.provenance["sha256"] == back.fingerprint
    assert (back.fingerprint == encoder.fingerprint) == (dtype is None)
    assert isinstance(AutoModel.from_pretrained(tmp_path), ResNetModel)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_fresh_weights_of_a_resnet_follow_the_seed(resnet):
    encoder = wrap_model(resnet)
    names = []
    for seed in (0, 0, 1):
        encoder.backbone.initialize(torch.Generator().manual_seed(seed))
        names.append(wrap_model(resnet).fingerprint)
    assert names[0] == names[1] != names[2]


def test_other_types_are_refused_by_name(tmp_path):
    model = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="type 'vit'; those that are read: pixio, resnet, vit_mae"):
        load_encoder(tmp_path)
    with pytest.raises(SettingError, match=r"type 'vit' cannot be wrapped; one of \['resnet'\] can"):
        wrap_model(model)


def test_a_resnet_folder_that_lacks_weights_is_refused(resnet, tmp_path):
    wrap_model(resnet).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"depths": [1, 1, 2, 2]}))
    with pytest.raises(CheckpointError, match="lacks weights"):
        load_encoder(tmp_path)
