"""What both policies promise: how they look, what their checkpoints hold, and what they refuse."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_policy, make_pre_post_processors
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from lerobot_policy_pixio import PixioACTConfig, PixioDiffusionConfig
from lerobot_policy_pixio.frames import open_dataset
from pixio_robot import Encoder, Tokens, create_encoder
from pixio_robot.errors import CheckpointError, DataError, ImageError, SettingError, UnknownNameError
from pixio_robot.foreign import wrap_model

TOP, WRIST = "observation.images.top", "observation.images.wrist"
TASKS = ["task 0", "task 1"]

Make = Callable[..., Any]
Batch = dict[str, Any]


def tokens_of(policy: Any, images: torch.Tensor) -> Tokens:
    """What a cache would hold: the encoder's tokens in float16, patches averaged."""
    tokens = policy.eyes.encoder(images.flatten(0, -4)).pool(2)
    return tokens.map(lambda x: x.unflatten(0, images.shape[:-3]).half())


def loss_of(policy: Any, batch: Batch) -> torch.Tensor:
    torch.manual_seed(0)
    return policy(batch)[0]


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[[str], Path]:
    """Folders of encoders that transformers runs, made small."""

    def folder(family: str) -> Path:
        torch.manual_seed(0)
        if family == "vit":  # as classifiers leave it
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
            model = ViTModel(ViTConfig(**sizes, image_size=64, patch_size=16), add_pooling_layer=False)
        elif family == "resnet":
            sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
            model = ResNetModel(ResNetConfig(**sizes, layer_type="basic"))
        else:
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
            model = Dinov2Model(Dinov2Config(**sizes, image_size=64, patch_size=16))
        wrap_model(model.eval()).save_pretrained(tmp_path / family)
        return tmp_path / family

    return folder


def test_lerobot_finds_policy_and_processors_by_the_name_of_the_type(kind: str, make: Make) -> None:
    policy = make(kind)
    assert policy.config.type == policy.name == kind
    assert get_policy_class(kind) is type(policy)
    assert len(make_pre_post_processors(policy.config)) == 2


def test_settings_survive_a_round_trip(kind: str, make: Make, tmp_path: Path) -> None:
    config = make(kind, patches="attention", classes="mean", image_size=128, save_backbone=True).config
    config.save_pretrained(tmp_path)
    assert PreTrainedConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize("config_class", [PixioACTConfig, PixioDiffusionConfig])
def test_a_new_policy_needs_no_setting(config_class: type) -> None:
    config = config_class(device="cpu")
    assert config.encoder == "shipped:pixio_vitt16"
    assert not config.push_to_hub
    assert config.pretrained_backbone_weights is None


def test_defaults_are_lerobots_own_unless_the_package_says_otherwise() -> None:
    """A mixin above PreTrainedConfig would reset what ACT and Diffusion set."""
    assert PixioDiffusionConfig(device="cpu").n_obs_steps == 2
    assert PixioDiffusionConfig(device="cpu").scheduler_warmup_steps == 500
    assert PixioACTConfig(device="cpu").chunk_size == 100


def test_lerobots_factory_makes_the_policy(
    kind: str, make_config: Make, make_diffusion_config: Make, dataset_root: Path
) -> None:
    config = (make_config if kind == "pixio_act" else make_diffusion_config)(task_conditioning="index")
    policy = make_policy(config, ds_meta=open_dataset(dataset_root).meta)
    assert policy.name == kind
    assert list(policy.config.image_features) == [TOP, WRIST]
    assert policy.config.tasks == ["walk"]


def test_the_encoder_runs_once_and_stays_frozen(kind: str, make: Make, make_batch: Make) -> None:
    policy, seen = make(kind).train(), []
    policy.eyes.encoder.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    policy(make_batch(policy))[0].backward()
    assert seen == [2 * 2 * (policy.config.n_obs_steps)]  # samples, cameras and steps in one pass
    assert not policy.eyes.encoder.training
    assert all(parameter.grad is None for parameter in policy.eyes.encoder.parameters())
    optimized = {id(parameter) for group in policy.get_optim_params() for parameter in group["params"]}
    assert optimized.isdisjoint(id(parameter) for parameter in policy.eyes.encoder.parameters())
    assert optimized == {id(parameter) for parameter in policy.parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for parameter in policy.eyes.adapter.parameters())


@pytest.mark.parametrize("conditioning", ["none", "index"])
@pytest.mark.parametrize("cameras", [1, 2])
@pytest.mark.parametrize(("kind", "steps"), [("pixio_act", 1), ("pixio_diffusion", 1), ("pixio_diffusion", 2)])
def test_cached_and_live_training_have_the_same_loss(
    kind: str, steps: int, cameras: int, conditioning: str, make: Make, make_batch: Make
) -> None:
    changes = {"n_obs_steps": steps, "cameras": cameras, "task_conditioning": conditioning, "tasks": TASKS}
    changes |= {"use_vae": False} if kind == "pixio_act" else {}  # its divergence does not hang on what is seen
    policy = make(kind, **changes)
    batch = make_batch(policy)
    cached = batch | {camera: tokens_of(policy, batch[camera]) for camera in policy.config.image_features}
    live, stored = loss_of(policy, batch), loss_of(policy, cached)
    assert live != stored
    assert abs(stored / live - 1) < 1e-3
    other = loss_of(policy, cached | {TOP: cached[TOP].map(lambda x: x.flip(0))})
    assert abs(other / live - 1) > 1e-3  # the loss does hang on what is seen


def test_uint8_and_float_images_are_the_same_images(kind: str, make: Make, make_batch: Make, act: Make) -> None:
    policy = make(kind)
    batch = make_batch(policy)
    shown = {camera: (255 * batch[camera]).round().to(torch.uint8) for camera in (TOP, WRIST)}
    as_floats = {camera: image / 255 for camera, image in shown.items()}
    torch.testing.assert_close(act(policy, batch | shown), act(policy, batch | as_floats))


def test_live_images_of_any_size_are_resized(kind: str, make: Make, make_batch: Make, act: Make) -> None:
    policy = make(kind)
    batch = make_batch(policy)
    lead = batch[TOP].shape[:-3]
    assert policy.eyes.image_size == (64, 64)
    assert act(policy, batch | {TOP: torch.rand(*lead, 3, 48, 96)}).isfinite().all()
    assert make(kind, image_size=128).eyes.image_size == (128, 128)
    torch.testing.assert_close(loss_of(policy, batch | {TOP: torch.rand(*lead, 3, 80, 64)}).isfinite().item(), True)


def test_a_blind_policy_has_no_eyes_and_is_otherwise_the_same(
    kind: str, make: Make, make_batch: Make, act: Make
) -> None:
    blind, seeing = make(kind, blind=True), make(kind)
    assert blind.eyes is None
    names = {name for name, _ in seeing.named_parameters() if not name.startswith("eyes.")}
    assert {name for name, _ in blind.named_parameters()} == names
    batch = make_batch(seeing)
    without = {key: value for key, value in batch.items() if key not in (TOP, WRIST)}
    torch.testing.assert_close(loss_of(blind.eval(), batch), loss_of(blind, without))
    loss_of(blind.train(), without).backward()
    assert act(blind, without).shape == (2, blind.config.n_action_steps, 3)


def test_a_checkpoint_leaves_the_encoder_out_and_reloads_bit_for_bit(
    kind: str, make: Make, make_batch: Make, act: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = make(kind, seed=1)
    policy.save_pretrained(tmp_path)
    assert not any("encoder.backbone" in key for key in load_file(tmp_path / "model.safetensors"))
    reloaded = type(policy).from_pretrained(tmp_path)
    assert not [record for record in caplog.records if "key" in record.message.lower()]
    assert reloaded.config.encoder_hash == policy.eyes.encoder.fingerprint
    batch = make_batch(policy)
    assert torch.equal(act(reloaded, batch), act(policy, batch))


def test_a_checkpoint_with_its_encoder_needs_no_other_file(
    kind: str, make: Make, make_batch: Make, act: Make, encoder: Encoder, tmp_path: Path
) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    policy = make(kind, save_backbone=True, encoder=str(tmp_path / "encoder"))
    policy.save_pretrained(tmp_path / "policy")
    for file in (tmp_path / "encoder").iterdir():
        file.unlink()
    batch = make_batch(policy)
    reloaded = type(policy).from_pretrained(tmp_path / "policy")
    assert torch.equal(act(reloaded, batch), act(policy, batch))
    assert reloaded.eyes.encoder.fingerprint == encoder.fingerprint
    with pytest.raises(CheckpointError, match=r"trained on the encoder.*lie in the policy's checkpoint"):
        act(type(policy)(policy.config), batch)  # its settings alone hold no weights


@pytest.mark.parametrize(
    ("changes", "licence", "stated"),
    [
        ({}, "cc-by-nc-4.0", None),
        ({"train_encoder": "lora"}, "cc-by-nc-4.0", None),
        ({"save_backbone": True}, "cc-by-nc-4.0", "other"),
        ({"save_backbone": True}, None, "other"),
        ({"save_backbone": True}, "Apache-2.0", None),
        ({"save_backbone": True, "license": "mit"}, "cc-by-nc-4.0", "mit"),
        ({"train_encoder": "last_blocks"}, "cc-by-nc-4.0", "other"),
    ],
)
def test_the_licence_of_an_encoder_goes_with_its_weights(
    changes: dict[str, Any], licence: str | None, stated: str | None, make: Make, tmp_path: Path
) -> None:
    """Where None is stated, LeRobot's model card says apache-2.0."""
    policy = make("pixio_act", encoder_licence=licence, **changes)
    policy.save_pretrained(tmp_path)
    assert type(policy).from_pretrained(tmp_path).config.license == stated


def test_a_rounded_encoder_in_a_checkpoint_keeps_its_name(
    kind: str, make: Make, encoder: Encoder, tmp_path: Path
) -> None:
    """Caches ask for it: a run that continues with its own would be refused."""
    make(kind, save_backbone=True, encoder_dtype="bfloat16").save_pretrained(tmp_path)
    for dtype in ("bfloat16", "float32"):
        config = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=[f"--encoder_dtype={dtype}"])
        reloaded = get_policy_class(kind).from_pretrained(tmp_path, config=config)
        assert reloaded.eyes.encoder.fingerprint == encoder.fingerprint
        assert {weight.dtype for weight in reloaded.eyes.encoder.parameters()} == {getattr(torch, dtype)}


def test_a_checkpoint_refuses_another_encoder(kind: str, make: Make, encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    encoder.save_pretrained(folder)
    policy = make(kind, encoder=str(folder))
    policy.save_pretrained(tmp_path / "policy")
    other = create_encoder("pixio_vitt16", seed=9, width=32, depth=2, heads=2, image_size=64)
    other.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=rf"sha256 {encoder.fingerprint[:12]}.*{other.fingerprint[:12]}"):
        type(policy).from_pretrained(tmp_path / "policy")
    with pytest.raises(CheckpointError, match=r"trained on the encoder"):
        type(policy).from_pretrained(tmp_path / "policy", encoder=other)


def test_an_encoder_that_moved_is_asked_for(
    kind: str, make: Make, make_batch: Make, act: Make, encoder: Encoder, tmp_path: Path
) -> None:
    encoder.save_pretrained(tmp_path / "here")
    policy = make(kind, encoder=str(tmp_path / "here"))
    policy.save_pretrained(tmp_path / "policy")
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(CheckpointError, match=r"which cannot be read.*--policy\.encoder=.*save_backbone"):
        type(policy).from_pretrained(tmp_path / "policy")
    config = PreTrainedConfig.from_pretrained(tmp_path / "policy", cli_overrides=[f"--encoder={tmp_path / 'there'}"])
    batch = make_batch(policy)
    found = type(policy).from_pretrained(tmp_path / "policy", config=config)
    assert torch.equal(act(found, batch), act(policy, batch))


def test_a_checkpoint_of_other_eyes_is_refused(kind: str, make: Make, tmp_path: Path) -> None:
    make(kind, blind=True).save_pretrained(tmp_path)
    seeing = make(kind)
    with pytest.raises(CheckpointError, match=r"lacks \d+ weights of the policy's eyes, such as 'adapter"):
        type(seeing).from_pretrained(tmp_path, config=seeing.config)


@pytest.mark.parametrize(
    ("kind", "bigger"), [("pixio_act", "--n_decoder_layers=2"), ("pixio_diffusion", "--down_dims=[16,32,64]")]
)
def test_a_checkpoint_of_another_head_is_refused(kind: str, bigger: str, make: Make, tmp_path: Path) -> None:
    """LeRobot would load what there is, and the robot would act on random weights."""
    policy = make(kind)
    policy.save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=[bigger])
    with pytest.raises(CheckpointError, match=r"lacks \d+ weights of the policy's head, such as '(model|diffusion)\."):
        type(policy).from_pretrained(tmp_path, config=config)
    file = tmp_path / "model.safetensors"
    save_file({name: weight for name, weight in load_file(file).items() if name.startswith("eyes.")}, file)
    with pytest.raises(CheckpointError, match=r"weights of the policy's head"):
        type(policy).from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_compiled_and_plain_heads_read_each_others_checkpoints(make: Make, tmp_path: Path) -> None:
    """As ``lerobot-rollout --use_torch_compile=true`` reads them."""
    policy = make("pixio_diffusion", compile_model=True)
    policy.save_pretrained(tmp_path)
    for compiled in ("false", "true"):
        config = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=[f"--compile_model={compiled}"])
        found = type(policy).from_pretrained(tmp_path, config=config)
        for one, other in zip(found.parameters(), policy.parameters(), strict=True):
            assert torch.equal(one, other)
        found.save_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["resnet", "dinov2", "vit"])
def test_encoders_of_other_families_serve(
    kind: str, family: str, make: Make, make_batch: Make, act: Make, foreign: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = foreign(family)
    policy = make(kind, encoder=str(folder), image_size=64, save_backbone=True)
    assert policy.eyes.encoder.spec.class_tokens == (0 if family == "resnet" else 1)
    batch = make_batch(policy)
    cached = batch | {camera: tokens_of(policy, batch[camera]) for camera in (TOP, WRIST)}
    assert abs(loss_of(policy, cached) / loss_of(policy, batch) - 1) < 1e-3
    policy.save_pretrained(tmp_path / "policy")
    folder.rename(tmp_path / "moved")
    reloaded = type(policy).from_pretrained(tmp_path / "policy")  # which holds the encoder
    assert torch.equal(act(reloaded, batch), act(policy, batch))


def test_a_given_encoder_is_shared_when_frozen_and_copied_when_changed(kind: str, make: Make, encoder: Encoder) -> None:
    assert make(kind, made_of={"encoder": encoder}).eyes.encoder is encoder
    for changes in ({"train_encoder": "full"}, {"encoder_dtype": "bfloat16"}):
        policy = make(kind, made_of={"encoder": encoder}, **changes)
        assert policy.eyes.encoder is not encoder
        assert policy.config.encoder_hash == policy.eyes.encoder.fingerprint == encoder.fingerprint
    assert {(parameter.dtype, parameter.requires_grad) for parameter in encoder.parameters()} == {
        (torch.float32, False)
    }


def test_half_precision_says_nearly_the_same(
    kind: str, make: Make, make_batch: Make, act: Make, tmp_path: Path
) -> None:
    exact, rough = make(kind), make(kind, encoder_dtype="bfloat16", save_backbone=True)
    assert {parameter.dtype for parameter in rough.eyes.encoder.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in rough.eyes.adapter.parameters()} == {torch.float32}
    batch = make_batch(exact)
    expected, found, elsewhere = act(exact, batch), act(rough, batch), act(exact, make_batch(exact, seed=1))
    assert 0 < (found - expected).norm() < 0.25 * (elsewhere - expected).norm()
    whole, half = (policy.eyes.encode([batch[TOP], batch[WRIST]])[0].patches.float() for policy in (exact, rough))
    assert (half - whole).norm() < 0.1 * whole.norm()
    rough.save_pretrained(tmp_path)
    assert torch.equal(act(type(rough).from_pretrained(tmp_path), batch), found)


def test_mixed_precision_acts_in_full_precision(kind: str, make: Make, make_batch: Make, act: Make) -> None:
    """As ``lerobot-eval`` has it: the postprocessor follows the type of the actions, and numpy knows no bfloat16."""
    policy = make(kind, use_amp=True)
    stats = {"action": {"mean": [100.3] * 3, "std": [1.0] * 3, "min": [99.3] * 3, "max": [101.3] * 3}}
    _, postprocessor = make_pre_post_processors(policy.config, dataset_stats=stats)
    with torch.autocast("cpu", torch.bfloat16):
        actions = postprocessor(act(policy, make_batch(policy)))
    assert actions.numpy().dtype == np.float32
    assert (actions - actions.bfloat16()).abs().max() > 0.01  # not rounded on the way, to a half at 100


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_frozen_encoder_says_in_mixed_precision_what_a_cache_holds(dtype: str, make: Make, make_batch: Make) -> None:
    policy = make("pixio_act", encoder_dtype=dtype)
    images = make_batch(policy)[TOP]
    expected = policy.eyes.encode([images])[0]
    assert expected.patches.dtype == getattr(torch, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = policy.eyes.encode([images])[0]
    assert torch.equal(found.patches, expected.patches)
    assert torch.equal(found.classes, expected.classes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_a_compiled_encoder_says_the_same(kind: str, make: Make, make_batch: Make, act: Make) -> None:
    plain, compiled = make(kind), make(kind, compile_encoder=True)
    batch = make_batch(plain)
    torch.testing.assert_close(act(compiled, batch), act(plain, batch), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loss_of(compiled.train(), batch), loss_of(plain.train(), batch), atol=1e-4, rtol=1e-4)
    with pytest.raises(ImageError, match=r"lie in \[0, 1\]"):
        act(compiled, batch | {TOP: 255 * batch[TOP]})
    assert not any("_orig_mod" in key for key in compiled.state_dict())


def test_bad_inputs_are_refused_with_what_is_there(kind: str, make: Make, make_batch: Make, act: Make) -> None:
    policy = make(kind)
    batch, state = make_batch(policy), {"observation.state": PolicyFeature(type=FeatureType.STATE, shape=(3,))}
    with pytest.raises(DataError, match=rf"looks through \['{WRIST}'\].*has the cameras \['{TOP}'\]"):
        act(policy, {key: value for key, value in batch.items() if key != WRIST})
    with pytest.raises(DataError, match=r"'action' is 4 wide, and the policy was made for 3"):
        policy(batch | {"action": torch.nn.functional.pad(batch["action"], (0, 1))})
    with pytest.raises(DataError, match=r"'observation.state' is 2 wide"):
        act(policy, batch | {"observation.state": batch["observation.state"][..., :2]})
    with pytest.raises(DataError, match=r"needs a camera.*observation\.state.*blind=true"):
        make(kind, input_features=state)
    with pytest.raises(DataError, match=r"needs 'observation\.state'"):
        make(kind, input_features={TOP: PolicyFeature(type=FeatureType.VISUAL, shape=(3, 64, 64))})
    with pytest.raises(DataError, match=r"has 1 channels"):
        make(kind, input_features=state | {TOP: PolicyFeature(type=FeatureType.VISUAL, shape=(1, 64, 64))})
    with pytest.raises(DataError, match=r"needs 'action' among its outputs"):
        make(kind, output_features={})
    with pytest.raises(ImageError, match=r"Divide by 255"):
        act(policy, batch | {TOP: 255 * torch.rand(*batch[TOP].shape[:-2], 48, 96)})
    with pytest.raises(SettingError, match=r"training diverged"):
        policy(batch | {"action": torch.full_like(batch["action"], torch.nan)})


@pytest.mark.parametrize(
    ("patches", "side", "grid"),
    [("average", 64, 4), ("average", 160, 8), ("merge", 64, 2), ("merge", 160, 4), ("spatial_softmax", 160, 8)],
)
def test_a_grid_that_is_not_named_settles_on_what_the_encoder_has(
    kind: str, make: Make, patches: Any, side: int, grid: int
) -> None:
    policy = make(kind, grid=None, patches=patches, image_size=side)
    assert policy.config.grid == grid  # as its checkpoints will say
    with pytest.raises(SettingError, match="grid is chosen when a policy is made"):
        _ = replace(policy.config, grid=None).cached_grid


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"grid": 0}, SettingError, r"grid must be at least 1"),
        ({"train_encoder": "last_block"}, UnknownNameError, r"Did you mean 'last_blocks'"),
        ({"train_encoder": "lora", "blind": True}, SettingError, r"blind=true leaves no encoder"),
        ({"train_encoder": "full", "cache": "walks.zarr"}, SettingError, r"cannot train from the cache walks\.zarr"),
        ({"train_encoder": "lora", "encoder_dtype": "bfloat16"}, SettingError, r"set use_amp=true"),
        ({"train_encoder": "last_blocks", "train_blocks": 3}, SettingError, r"choose from 1 to 2"),
        ({"task_conditioning": "language"}, SettingError, r"needs language_model"),
        ({"tasks": ["sit", "sit"]}, SettingError, r"'sit' stands twice"),
        (
            {"normalization_mapping": {"VISUAL": NormalizationMode.MEAN_STD}},
            SettingError,
            r"says MEAN_STD for VISUAL.*choose IDENTITY",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(
    kind: str, changes: dict[str, Any], error: type[Exception], message: str, make: Make
) -> None:
    with pytest.raises(error, match=message):
        make(kind, **changes)
