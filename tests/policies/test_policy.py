"""``pixio_act`` as a LeRobot policy: its eyes, its checkpoints, its refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.act.modeling_act import ACT
from lerobot.policies.factory import get_policy_class, make_policy, make_pre_post_processors
from safetensors.torch import load_file

from lerobot_policy_pixio import PixioACTConfig
from lerobot_policy_pixio.frames import open_dataset
from lerobot_policy_pixio.modeling_pixio_act import PixioACTPolicy
from pixio_robot import Encoder, create_encoder
from pixio_robot.errors import CheckpointError, DataError, SettingError

TOP, WRIST = "observation.images.top", "observation.images.wrist"
STATE = {"observation.state": PolicyFeature(type=FeatureType.STATE, shape=(3,))}
EYES = {camera: PolicyFeature(type=FeatureType.VISUAL, shape=(3, 64, 64)) for camera in (TOP, WRIST)}
ACTION = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(3,))}

MakePolicy = Callable[..., PixioACTPolicy]


@pytest.fixture
def make(make_config: Callable[..., PixioACTConfig]) -> MakePolicy:
    def make(*, seed: int = 0, **changes: Any) -> PixioACTPolicy:
        torch.manual_seed(seed)
        return PixioACTPolicy(make_config(**({"input_features": STATE | EYES, "output_features": ACTION} | changes)))

    return make


@pytest.fixture
def batch() -> dict[str, Any]:
    """Two observations and their chunks of actions."""
    generator = torch.Generator().manual_seed(0)
    return {
        "observation.state": torch.randn(2, 3, generator=generator),
        TOP: torch.rand(2, 3, 64, 64, generator=generator),
        WRIST: torch.rand(2, 3, 64, 64, generator=generator),
        "action": torch.randn(2, 5, 3, generator=generator),
        "action_is_pad": torch.zeros(2, 5, dtype=torch.bool),
    }


def plan(policy: PixioACTPolicy, batch: dict[str, Any]) -> torch.Tensor:
    return policy.predict_action_chunk({key: value for key, value in batch.items() if not key.startswith("action")})


def test_lerobot_finds_policy_and_processors_by_the_name_of_the_type(
    make_config: Callable[..., PixioACTConfig],
) -> None:
    config = make_config(input_features=STATE | EYES, output_features=ACTION)
    assert config.type == "pixio_act"
    assert get_policy_class("pixio_act") is PixioACTPolicy
    assert len(make_pre_post_processors(config)) == 2


def test_settings_survive_a_round_trip(make_config: Callable[..., PixioACTConfig], tmp_path: Path) -> None:
    config = make_config(patches="attention", classes="mean", image_size=128, input_features=STATE | EYES)
    config.save_pretrained(tmp_path)
    assert PreTrainedConfig.from_pretrained(tmp_path) == config


def test_a_new_policy_needs_no_setting(make_config: Callable[..., PixioACTConfig]) -> None:
    config = PixioACTConfig(device="cpu")
    assert config.encoder == "shipped:pixio_vitt16"
    assert not config.push_to_hub
    assert config.pretrained_backbone_weights is None


def test_act_still_has_the_attributes_that_are_swapped(make_config: Callable[..., PixioACTConfig]) -> None:
    act = ACT(make_config(input_features=STATE | EYES, output_features=ACTION))
    assert {"backbone", "encoder_cam_feat_pos_embed", "encoder_img_feat_input_proj"} <= dict(
        act.named_children()
    ).keys()
    assert act.backbone(torch.zeros(1, 3, 64, 64)).keys() == {"feature_map"}


def test_lerobots_factory_makes_the_policy(make_config: Callable[..., PixioACTConfig], dataset_root: Path) -> None:
    policy = make_policy(make_config(), ds_meta=open_dataset(dataset_root).meta)
    assert isinstance(policy, PixioACTPolicy)
    assert list(policy.config.image_features) == [TOP, WRIST]


def test_the_encoder_runs_once_and_stays_frozen(make: MakePolicy, batch: dict[str, Any]) -> None:
    policy, seen = make().train(), []
    policy.encoder.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    policy(batch)[0].backward()
    assert seen == [4]  # two cameras of two frames in one pass
    assert not policy.encoder.training
    assert all(parameter.grad is None for parameter in policy.encoder.parameters())
    optimized = {id(parameter) for group in policy.get_optim_params() for parameter in group["params"]}
    assert optimized.isdisjoint(id(parameter) for parameter in policy.encoder.parameters())
    assert optimized.issuperset(id(parameter) for parameter in policy.adapter.parameters())


def test_every_visual_token_reaches_the_actions(make: MakePolicy, batch: dict[str, Any]) -> None:
    policy = make()
    assert policy.adapter.length == 2 * (8 + 4)  # two cameras of eight class tokens and 2 x 2 patches
    tokens = {camera: policy.encoder(batch[camera]) for camera in (TOP, WRIST)}
    for camera in tokens:
        for part in (tokens[camera].classes.requires_grad_(), tokens[camera].patches.requires_grad_()):
            loss = policy.train()(batch | tokens)[0]
            (gradient,) = torch.autograd.grad(loss, part)
            assert (gradient.abs().amax(dim=(0, 2)) > 0).all()


def test_tokens_and_images_give_the_same_actions(make: MakePolicy, batch: dict[str, Any]) -> None:
    policy = make()
    live = plan(policy, batch)
    tokens = {camera: policy.encoder(batch[camera]) for camera in (TOP, WRIST)}
    torch.testing.assert_close(plan(policy, batch | tokens), live)
    torch.testing.assert_close(plan(policy, batch | {TOP: tokens[TOP]}), live)
    assert not torch.allclose(plan(policy, batch | {TOP: batch[WRIST], WRIST: batch[TOP]}), live)


def test_live_images_are_resized(make: MakePolicy, batch: dict[str, Any]) -> None:
    large = {camera: torch.nn.functional.interpolate(batch[camera], scale_factor=2) for camera in (TOP, WRIST)}
    policy = make()
    assert policy.image_size == (64, 64)
    assert plan(policy, batch | large).shape == (2, 5, 3)
    assert make(image_size=128).image_size == (128, 128)


def test_a_blind_policy_has_no_eyes_and_is_otherwise_the_same(make: MakePolicy, batch: dict[str, Any]) -> None:
    blind, seeing = make(blind=True), make()
    names = {name for name, _ in seeing.named_parameters() if not name.startswith(("encoder.", "adapter."))}
    assert {name for name, _ in blind.named_parameters()} == names
    without = {key: value for key, value in batch.items() if key not in (TOP, WRIST)}
    torch.testing.assert_close(blind.eval()(batch)[0], blind(without)[0])
    blind.train()(without)[0].backward()
    assert plan(blind, without).shape == (2, 5, 3)


def test_a_checkpoint_leaves_the_encoder_out_and_reloads_bit_for_bit(
    make: MakePolicy, batch: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = make(seed=1)
    policy.save_pretrained(tmp_path)
    assert not any(key.startswith("encoder.") for key in load_file(tmp_path / "model.safetensors"))
    reloaded = PixioACTPolicy.from_pretrained(tmp_path)
    assert not [record for record in caplog.records if "key" in record.message.lower()]
    assert reloaded.config.encoder_hash == policy.encoder.fingerprint
    assert torch.equal(plan(reloaded, batch), plan(policy, batch))


def test_a_checkpoint_with_its_encoder_needs_no_other_file(
    make: MakePolicy, batch: dict[str, Any], encoder: Encoder, tmp_path: Path
) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    policy = make(save_backbone=True, encoder=str(tmp_path / "encoder"))
    policy.save_pretrained(tmp_path / "policy")
    for file in (tmp_path / "encoder").iterdir():
        file.unlink()
    assert torch.equal(plan(PixioACTPolicy.from_pretrained(tmp_path / "policy"), batch), plan(policy, batch))
    with pytest.raises(CheckpointError, match=r"trained on the encoder"):
        plan(PixioACTPolicy(policy.config), batch)  # its settings alone hold no weights


def test_a_checkpoint_refuses_another_encoder(make: MakePolicy, encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    encoder.save_pretrained(folder)
    make(encoder=str(folder)).save_pretrained(tmp_path / "policy")
    other = create_encoder("pixio_vitt16", seed=9, width=32, depth=2, heads=2, image_size=64)
    other.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=rf"sha256 {encoder.fingerprint[:12]}.*{other.fingerprint[:12]}"):
        PixioACTPolicy.from_pretrained(tmp_path / "policy")


def test_bad_inputs_are_refused_with_what_is_there(make: MakePolicy, batch: dict[str, Any]) -> None:
    policy = make()
    with pytest.raises(DataError, match=rf"looks through \['{WRIST}'\].*has the cameras \['{TOP}'\]"):
        plan(policy, {key: value for key, value in batch.items() if key != WRIST})
    with pytest.raises(DataError, match=r"needs a camera.*observation\.state.*blind=true"):
        make(input_features=STATE)
    with pytest.raises(DataError, match=r"needs 'observation\.state'"):
        make(input_features=EYES)
    with pytest.raises(SettingError, match=r"training diverged"):
        policy(batch | {"action": torch.full((2, 5, 3), torch.nan)})
    with pytest.raises(SettingError, match=r"grid must be at least 1"):
        make(grid=0)
