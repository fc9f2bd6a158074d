"""Every attribute of LeRobot that this package relies on beyond its documented API.

When a new LeRobot moves one, the test that fails says which, and who here uses it.
"""

import inspect
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.envs.utils import preprocess_observation
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACT, ACTPolicy
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy, DiffusionRgbEncoder
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import nn

from lerobot_policy_pixio.frames import open_dataset

STATE = {"observation.state": PolicyFeature(type=FeatureType.STATE, shape=(3,))}
EYES = {f"observation.images.{name}": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 64, 64)) for name in "ab"}
ENV = {"observation.environment_state": PolicyFeature(type=FeatureType.ENV, shape=(5,))}
ACTION = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(3,))}


def hint(what: str, who: str) -> str:
    return f"LeRobot {version('lerobot')} moved {what}, on which {who} relies"


@pytest.fixture
def stock() -> Callable[..., Any]:
    """LeRobot's own policies, small."""

    def make(kind: str, **changes: Any) -> Any:
        common = {"device": "cpu", "pretrained_backbone_weights": None, "output_features": ACTION}
        common["input_features"] = changes.pop("input_features", STATE | EYES)
        if kind == "act":
            small = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 64, "n_encoder_layers": 1, "chunk_size": 4}
            return ACTPolicy(ACTConfig(**(common | small | {"n_action_steps": 4, "use_vae": False} | changes)))
        small = {"down_dims": (8, 16), "n_groups": 4, "diffusion_step_embed_dim": 8, "horizon": 8, "n_action_steps": 4}
        small |= {"num_train_timesteps": 4, "use_separate_rgb_encoder_per_camera": False}
        return DiffusionPolicy(DiffusionConfig(**(common | small | changes)))

    return make


@pytest.mark.parametrize(
    ("owner", "name", "user"),
    [
        (ACTConfig, "vision_backbone", "PixioOptions, which leaves it alone"),
        (ACTConfig, "pretrained_backbone_weights", "PixioOptions, which sets it to None against downloads"),
        (ACTConfig, "optimizer_lr", "modeling_pixio.check_finite, which names it"),
        (ACTConfig, "push_to_hub", "PixioOptions, which turns it off"),
        (DiffusionConfig, "pretrained_backbone_weights", "PixioOptions, which sets it to None against downloads"),
        (DiffusionConfig, "spatial_softmax_num_keypoints", "PixioDiffusionConfig, which sizes the U-Net by it"),
        (DiffusionConfig, "use_separate_rgb_encoder_per_camera", "PixioDiffusionConfig, which wants one encoder"),
        (DiffusionConfig, "resize_shape", "PixioDiffusionConfig, which refuses it"),
        (DiffusionConfig, "crop_shape", "PixioDiffusionConfig, which refuses it"),
        (DiffusionConfig, "crop_ratio", "PixioDiffusionConfig, which refuses it"),
        (DiffusionConfig, "n_obs_steps", "PixioDiffusionConfig and Actor"),
        (DiffusionConfig, "scheduler_warmup_steps", "whoever sets it for both policies"),
        (PreTrainedConfig, "use_peft", "Actor.from_pretrained"),
        (PreTrainedConfig, "pretrained_path", "PixioPolicy._validate_peft_config"),
    ],
)
def test_configurations_still_have_the_field(owner: type, name: str, user: str) -> None:
    assert name in owner.__dataclass_fields__, hint(f"{owner.__name__}.{name}", user)


@pytest.mark.parametrize(
    ("owner", "name", "user"),
    [
        (PreTrainedConfig, "image_features", "PixioOptions, which hides cameras from blind policies"),
        (PreTrainedConfig, "env_state_feature", "PixioOptions, which adds the task's vector to it"),
        (PreTrainedConfig, "robot_state_feature", "PixioPolicy._check_widths"),
        (PreTrainedConfig, "action_feature", "PixioPolicy._check_widths"),
        (PreTrainedConfig, "observation_delta_indices", "Actor and Demonstrations"),
        (PreTrainedConfig, "validate_features", "PixioOptions, which replaces it"),
        (PreTrainedPolicy, "get_optim_params", "PixioPolicy, which replaces it"),
        (PreTrainedPolicy, "wrap_with_peft", "the tests of --peft"),
        (PreTrainedPolicy, "_get_default_peft_targets", "PixioPolicy, which replaces it"),
        (PreTrainedPolicy, "_validate_peft_config", "PixioPolicy, which extends it"),
        (ACTPolicy, "predict_action_chunk", "PixioACTPolicy, which extends it"),
        (DiffusionPolicy, "select_action", "PixioDiffusionPolicy, which extends it"),
        (DiffusionPolicy, "predict_action_chunk", "PixioDiffusionPolicy, which extends it"),
    ],
)
def test_classes_still_have_the_member(owner: type, name: str, user: str) -> None:
    assert hasattr(owner, name), hint(f"{owner.__name__}.{name}", user)


def test_policies_still_ask_their_settings_for_validation() -> None:
    for owner in (ACTPolicy, DiffusionPolicy):
        source = inspect.getsource(owner.__init__)
        told = hint(f"the call of validate_features in {owner.__name__}", "PixioOptions.validate_features")
        assert "validate_features()" in source, told


def test_act_still_asks_its_three_visual_attributes(stock: Callable[..., Any]) -> None:
    policy = stock("act")
    assert isinstance(getattr(policy, "model", None), ACT), hint("ACTPolicy.model", "PixioACTPolicy")
    for name in ("backbone", "encoder_cam_feat_pos_embed", "encoder_img_feat_input_proj"):
        assert isinstance(getattr(policy.model, name, None), nn.Module), hint(f"ACT.{name}", "PixioACTPolicy")
    seen = policy.model.backbone(torch.zeros(1, 3, 64, 64))
    assert seen.keys() == {"feature_map"}, hint("the key 'feature_map' of ACT.backbone", "FeatureMap")
    calls: list[str] = []
    for name in ("backbone", "encoder_cam_feat_pos_embed", "encoder_img_feat_input_proj"):
        getattr(policy.model, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    policy.predict_action_chunk(
        {"observation.state": torch.zeros(1, 3)} | dict.fromkeys(EYES, torch.zeros(1, 3, 64, 64))
    )
    expected = ["backbone", "encoder_cam_feat_pos_embed", "encoder_img_feat_input_proj"] * 2
    assert calls == expected, hint("the order of ACT's visual attributes, one camera after the other", "PixioACTPolicy")


def test_act_without_cameras_still_reads_the_batch_size_off_images(stock: Callable[..., Any]) -> None:
    policy = stock("act", input_features=STATE | ENV)
    state = torch.zeros(2, 3)
    batch = {"observation.state": state, "observation.environment_state": torch.zeros(2, 5)}
    found = policy.predict_action_chunk(batch | {"observation.images": [state]})
    assert found.shape == (2, 4, 3), hint("ACT's reading of the batch size", "blind pixio_act, through its states")


def test_diffusion_still_asks_one_encoder_for_all_images(stock: Callable[..., Any]) -> None:
    policy = stock("diffusion", spatial_softmax_num_keypoints=6)
    user = "PixioDiffusionPolicy"
    assert hasattr(policy, "diffusion"), hint("DiffusionPolicy.diffusion", user)
    encoder = getattr(policy.diffusion, "rgb_encoder", None)
    assert isinstance(encoder, DiffusionRgbEncoder), hint("DiffusionModel.rgb_encoder", user)
    assert encoder.feature_dim == 12, hint("feature_dim = 2 * spatial_softmax_num_keypoints", "PixioDiffusionConfig")
    seen: list[Any] = []
    encoder.register_forward_hook(lambda _, images, out: seen.append((images[0].shape, out.shape)))
    images = {name: torch.full((2, 2, 3, 64, 64), float(number)) for number, name in enumerate(EYES)}
    batch = {"observation.state": torch.zeros(2, 2, 3), "action": torch.zeros(2, 8, 3)} | images
    policy(batch | {"action_is_pad": torch.zeros(2, 8, dtype=torch.bool)})
    expected = [((2 * 2 * 2, 3, 64, 64), (8, 12))]
    assert seen == expected, hint("the one call of rgb_encoder with [(b t v) c h w]", "modeling_pixio_diffusion.Look")


def test_diffusion_still_folds_cameras_innermost(stock: Callable[..., Any]) -> None:
    policy = stock("diffusion")
    order: list[list[float]] = []
    policy.diffusion.rgb_encoder.register_forward_pre_hook(lambda _, x: order.append(x[0][:, 0, 0, 0].tolist()))
    numbered = torch.arange(8.0).view(2, 2, 2, 1, 1, 1).expand(2, 2, 2, 3, 64, 64)  # b t v
    policy.diffusion._prepare_global_conditioning(
        {"observation.state": torch.zeros(2, 2, 3), "observation.images": numbered}
    )
    assert order == [list(range(8))], hint("the order '(b t v)' of the images", "modeling_pixio_diffusion.Look")


def test_diffusion_still_remembers_in_queues(stock: Callable[..., Any]) -> None:
    policy = stock("diffusion", input_features=STATE | EYES | ENV).eval()
    assert isinstance(getattr(policy, "_queues", None), dict), hint("DiffusionPolicy._queues", "predict_action_chunk")
    now = {"observation.state": torch.zeros(1, 3), "observation.environment_state": torch.zeros(1, 5)}
    policy.select_action(now | dict.fromkeys(EYES, torch.zeros(1, 3, 64, 64)))
    kept = {"observation.state", "observation.environment_state", "observation.images", "action"}
    user = "PixioDiffusionPolicy: what it was told of the task, and images until a chunk is due"
    assert set(policy._queues) == kept, hint("the keys of DiffusionPolicy._queues", user)
    policy.reset()
    assert not any(policy._queues.values()), hint("DiffusionPolicy.reset", "Actor")


def test_diffusion_without_cameras_still_only_asks_whether_there_are_images(stock: Callable[..., Any]) -> None:
    policy = stock("diffusion", input_features=STATE | ENV)
    assert "OBS_IMAGES in batch" in inspect.getsource(type(policy.diffusion).compute_loss), hint(
        "the check of DiffusionModel.compute_loss", "blind pixio_diffusion, which gives its states there"
    )


def test_pipelines_still_carry_the_task_and_an_empty_action(make: Callable[..., Any]) -> None:
    policy = make("pixio_act", task_conditioning="index", tasks=["sit"])
    preprocessor, _ = make_pre_post_processors(policy.config)
    out = preprocessor({"observation.state": torch.zeros(1, 3), "task": ["sit"]})
    assert out["task"] == ["sit"], hint("'task' in a preprocessor's output", "PixioPolicy._tell_task")
    assert out["action"] is None, hint("the action of None at evaluation", "PixioPolicy._check_widths, which allows it")


def test_observations_of_environments_still_have_their_names() -> None:
    images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8).numpy()
    found = preprocess_observation({"pixels": {"top": images}, "agent_pos": torch.zeros(1, 3).numpy()})
    expected = {"observation.images.top", "observation.state"}
    assert found.keys() == expected, hint("the names that preprocess_observation gives", "Actor")


def test_metadata_of_data_sets_still_lists_the_tasks(dataset_root: Path) -> None:
    tasks = open_dataset(dataset_root).meta.tasks
    user = "conditioning.make_task_embedding"
    assert "task_index" in tasks.columns, hint("the column task_index of LeRobotDatasetMetadata.tasks", user)
    assert list(tasks.index) == ["walk"], hint("the index of LeRobotDatasetMetadata.tasks", user)
