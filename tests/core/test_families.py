"""Encoders other than Pixio: MAE, built here, and models that transformers runs."""

import json
import sys

import pytest
import torch
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from pixio_robot import create_encoder, load_encoder
from pixio_robot.errors import CheckpointError, ImageError, SettingError
from pixio_robot.foreign import wrap_model
from pixio_robot.images import PixelStatistics, normalize
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


def test_an_mae_has_one_class_token():
    with pytest.raises(SettingError, match="one class token, not 8"):
        create_encoder("mae_vitt16", class_tokens=8)


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
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_fresh_weights_of_a_resnet_follow_the_seed(resnet):
    encoder = wrap_model(resnet)
    names = []
    for seed in (0, 0, 1):
        encoder.backbone.initialize(torch.Generator().manual_seed(seed))
        names.append(wrap_model(resnet).fingerprint)
    assert names[0] == names[1] != names[2]


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}
MODELS = {
    "vit": lambda: ViTModel(ViTConfig(**SIZES, intermediate_size=64)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2)),
    "dinov2_with_registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4)
    ),
    "dinov3_vit": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, intermediate_size=64, num_register_tokens=4)),
    "siglip_vision_model": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, intermediate_size=64)),
}


@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
@pytest.mark.parametrize("kind", MODELS)
def test_transformers_of_other_families_speak_in_tokens(kind, size):
    model = MODELS[kind]()
    encoder = wrap_model(model)
    images = torch.rand(2, 3, *size)
    tokens, (first, last) = encoder(images), encoder.intermediate(images, blocks=[0, 2], norm=False)
    pixels = normalize(images, torch.float32, encoder.backbone.statistics)
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True, **encoder.backbone.options)
    n, c = tokens.grid[0] * tokens.grid[1], encoder.spec.class_tokens
    assert tokens.grid == (size[0] // 16, size[1] // 16)
    assert c == (0 if "siglip" in kind else 1)
    assert torch.equal(tokens.patches, expected.last_hidden_state[:, -n:])
    assert torch.equal(tokens.classes, expected.last_hidden_state[:, :c])
    assert torch.equal(first.patches, expected.hidden_states[1][:, -n:])
    assert torch.equal(last.patches, expected.hidden_states[3][:, -n:])


@pytest.mark.parametrize("kind", MODELS)
def test_folders_of_other_families_come_back_with_their_statistics(kind, tmp_path):
    encoder = wrap_model(MODELS[kind](), provenance={"name": kind})
    encoder.backbone.statistics = PixelStatistics((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    name = encoder.fingerprint
    encoder.save_pretrained(tmp_path)
    back = load_encoder(tmp_path)
    assert back.backbone.statistics == encoder.backbone.statistics
    assert back.fingerprint == name
    assert back.provenance["sha256"] == name


def test_siglips_encoder_is_taken_out_of_the_whole_model(tmp_path):
    text = SiglipTextConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=9
    )
    vision = SiglipVisionConfig(**SIZES, intermediate_size=64)
    whole = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).eval()
    whole.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.vision_model((images - 0.5) / 0.5).last_hidden_state
    torch.testing.assert_close(encoder(images).patches, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "arguments", "classes", "grid"),
    [("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}, 1, (4, 4)), ("resnet10t", {}, 0, (2, 2))],
)
def test_models_of_timm_speak_in_tokens_and_come_back(name, arguments, classes, grid, tmp_path):
    pytest.importorskip("timm")
    model = TimmWrapperModel(TimmWrapperConfig(architecture=name, model_args=arguments)).eval()
    encoder = wrap_model(model, provenance={"name": name})
    images = torch.rand(2, 3, 64, 64)
    tokens, earlier = encoder.intermediate(images, blocks=[-1, 0])
    assert tokens.classes.shape[1] == encoder.spec.class_tokens == classes
    assert tokens.grid == grid
    assert tokens.width == encoder.spec.width
    assert not torch.equal(tokens.patches, earlier.patches) or earlier.grid != grid
    mean, std = encoder.backbone.statistics.like(images)
    with torch.no_grad():
        features = model.timm_model.forward_features((images - mean) / std)
    expected = features[:, 1:] if classes else features.flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens.patches, expected, atol=1e-5, rtol=0)
    encoder.save_pretrained(tmp_path)
    assert load_encoder(tmp_path).fingerprint == encoder.fingerprint


@pytest.mark.parametrize("kind", ["resnet", "timm"])
def test_of_a_network_with_random_weights_nothing_is_what_it_was(kind):
    if kind == "timm":
        pytest.importorskip("timm")
        model = TimmWrapperModel(TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"depth": 2}))
    else:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
        model = ResNetModel(ResNetConfig(**sizes, layer_type="basic"))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)  # as training would, batch statistics and positions included
    encoder = wrap_model(model.eval())
    again, before = encoder.redrawn(0), encoder.state_dict()
    assert [name for name, tensor in again.state_dict().items() if torch.equal(tensor, before[name])] == []
    assert again.fingerprint == encoder.redrawn(0).fingerprint != encoder.redrawn(1).fingerprint


def test_a_network_of_timm_says_at_which_size_it_reads(tmp_path):
    pytest.importorskip("timm")
    model = TimmWrapperModel(TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"depth": 2}))
    with pytest.raises(ImageError, match="reads images of 224 x 224 pixels"):
        wrap_model(model.eval())(torch.rand(1, 3, 128, 128))


@pytest.mark.parametrize("fact", [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-3}])
def test_a_network_that_computes_otherwise_is_refused(fact, tmp_path):
    create_encoder("pixio_vitt16", seed=0, width=24, depth=1, heads=2, image_size=32).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fact))
    with pytest.raises(CheckpointError, match=f"of another kind .*{next(iter(fact))}="):
        load_encoder(tmp_path)


def test_other_types_are_refused_by_name(tmp_path):
    model = CLIPVisionModel(CLIPVisionConfig(**SIZES, intermediate_size=64))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"type 'clip_vision_model'; those that are read: dinov2, .*pixio"):
        load_encoder(tmp_path)
    with pytest.raises(SettingError, match=r"type 'clip_vision_model' cannot be wrapped; one of \['dinov2', "):
        wrap_model(model)


def test_the_vit_of_a_classifier_is_read_without_a_pooler(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    classifier = ViTForImageClassification(ViTConfig(**sizes, image_size=64, patch_size=16)).eval()
    classifier.save_pretrained(tmp_path / "theirs")
    encoder = load_encoder(tmp_path / "theirs")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.vit(2 * images - 1).last_hidden_state
    tokens = encoder(images)
    torch.testing.assert_close(torch.cat([tokens.classes, tokens.patches], 1), expected, atol=1e-5, rtol=0)
    assert load_encoder(tmp_path / "theirs").fingerprint == encoder.fingerprint  # no random weights are among it
    encoder.save_pretrained(tmp_path / "ours")
    assert load_encoder(tmp_path / "ours").fingerprint == encoder.fingerprint


@pytest.mark.parametrize(("kind", "also"), [("resnet", ""), ("timm_wrapper", " timm")])
def test_libraries_that_are_missing_are_named(tmp_path, monkeypatch, kind, also):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=rf"pip install 'pixio-robot\[transformers\]'{also} \("):
        load_encoder(tmp_path)


@pytest.mark.parametrize("change", [{"depths": [1, 1, 2, 2]}, {"hidden_sizes": [8, 16, 24, 40]}])
def test_a_resnet_folder_without_the_weights_it_promises_is_refused(resnet, tmp_path, change):
    wrap_model(resnet).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=r"lacks weights|cannot be read"):
        load_encoder(tmp_path)
