"""Policies as plain functions of observations: both kinds, any batch, in any order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors

from lerobot_policy_pixio.acting import Actor
from pixio_robot.errors import CheckpointError, DataError, SettingError, UnknownNameError

TASKS = ["task 0", "task 1"]
STATS = {
    key: {
        "mean": np.full(3, 0.5, np.float32),
        "std": np.full(3, 2.0, np.float32),
        "min": np.full(3, -4.0, np.float32),
        "max": np.full(3, 6.0, np.float32),
    }
    for key in ("observation.state", "action")
}

Make = Callable[..., Any]


@pytest.fixture
def observation() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    pixels = {camera: rng.integers(0, 256, (3, 64, 64, 3), np.uint8) for camera in ("top", "wrist")}
    return {"pixels": pixels, "agent_pos": rng.uniform(size=(3, 3)).astype(np.float32)}


def part(observation: dict[str, Any], *rows: int) -> dict[str, Any]:
    pixels = {camera: images[list(rows)] for camera, images in observation["pixels"].items()}
    return {"pixels": pixels, "agent_pos": observation["agent_pos"][list(rows)]}


def actor_of(policy: Any, **settings: Any) -> Actor:
    return Actor(policy, *make_pre_post_processors(policy.config, dataset_stats=STATS), **settings)


def plan(actor: Actor, observation: dict[str, Any]) -> np.ndarray:
    torch.manual_seed(0)
    return actor(observation)


@pytest.mark.parametrize(("kind", "steps"), [("pixio_act", 1), ("pixio_diffusion", 1), ("pixio_diffusion", 2)])
def test_an_actor_plans_chunks_in_the_units_of_the_demonstrations(
    kind: str, steps: int, make: Make, observation: dict[str, Any]
) -> None:
    policy = make(kind, n_obs_steps=steps)
    actions = plan(actor_of(policy), observation)
    assert actions.shape == (3, policy.config.n_action_steps, 3)
    batch = {f"observation.images.{camera}": image for camera, image in observation["pixels"].items()}
    batch = {camera: torch.from_numpy(image).permute(0, 3, 1, 2) for camera, image in batch.items()}
    shift, scale = (0.5, 2.0) if kind == "pixio_act" else (1.0, 5.0)  # by mean and std, or min and max
    batch["observation.state"] = (torch.from_numpy(observation["agent_pos"]) - shift) / scale
    policy.reset()
    torch.manual_seed(0)
    expected = torch.stack([policy.select_action(batch) for _ in range(policy.config.n_action_steps)], dim=1)
    np.testing.assert_allclose(actions, shift + scale * expected.numpy(), atol=1e-4)


def test_each_call_plans_anew(kind: str, make: Make, observation: dict[str, Any]) -> None:
    actor = actor_of(make(kind))
    first = plan(actor, observation)
    plan(actor, part(observation, 2))  # other scenes, in a batch of another size
    np.testing.assert_array_equal(plan(actor, observation), first)
    assert not np.allclose(plan(actor, part(observation, 1, 2, 0)), first)


def test_what_another_robot_observes_is_refused(kind: str, make: Make, observation: dict[str, Any]) -> None:
    actor = actor_of(make(kind))
    renamed = {"pixels": {"top": observation["pixels"]["top"], "wrst": observation["pixels"]["wrist"]}}
    with pytest.raises(
        UnknownNameError, match=r"'observation\.images\.wrist'. Did you mean 'observation\.images\.wrst'"
    ):
        actor(observation | renamed)
    with pytest.raises(UnknownNameError, match=r"observation\.state"):
        actor({"pixels": observation["pixels"]})
    with pytest.raises(DataError, match=r"'observation\.state' of shape \[3\]; observed is one of \[4\]"):
        actor(observation | {"agent_pos": np.zeros((3, 4), np.float32)})


def test_what_a_policy_does_not_read_need_not_be_observed(make: Make, observation: dict[str, Any]) -> None:
    actor = actor_of(make("pixio_act"))
    known = actor.policy.config.input_features
    known["observation.effort"] = PolicyFeature(type=FeatureType.STATE, shape=(7,))  # as recordings of ALOHA have
    np.testing.assert_array_equal(plan(actor, observation), plan(actor_of(make("pixio_act")), observation))
    blind = actor_of(make("pixio_act", blind=True))
    assert plan(blind, {"agent_pos": observation["agent_pos"], "pixels": {}}).shape == (3, 5, 3)


def test_an_actor_tells_the_task(kind: str, make: Make, observation: dict[str, Any]) -> None:
    policy = make(kind, task_conditioning="index", tasks=TASKS)
    first, second = (plan(actor_of(policy, task=task), observation) for task in TASKS)
    assert not np.allclose(first, second)
    told = plan(actor_of(policy), observation | {"task": [TASKS[1]] * 3})
    np.testing.assert_allclose(told, second)


def test_an_actor_comes_from_a_checkpoint(kind: str, make: Make, observation: dict[str, Any], tmp_path: Path) -> None:
    policy = make(kind)
    policy.save_pretrained(tmp_path)
    for pipeline in make_pre_post_processors(policy.config, dataset_stats=STATS):
        pipeline.save_pretrained(tmp_path)
    expected = plan(actor_of(policy), observation)
    np.testing.assert_array_equal(plan(Actor.from_pretrained(tmp_path, device="cpu"), observation), expected)
    with pytest.raises(CheckpointError, match=r"no policy checkpoint in"):
        Actor.from_pretrained(tmp_path / "nowhere")


def test_an_actor_that_would_forget_what_it_should_average_is_refused(make: Make) -> None:
    policy = make("pixio_act", n_action_steps=1, temporal_ensemble_coeff=0.01)
    with pytest.raises(SettingError, match=r"temporal_ensemble_coeff=0\.01 averages .*lerobot-eval"):
        actor_of(policy)
