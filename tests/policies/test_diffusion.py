"""``pixio_diffusion``: what is Diffusion's own."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lerobot_policy_pixio.modeling_pixio_diffusion import pack, unpack
from pixio_robot import Tokens
from pixio_robot.errors import SettingError

TOP, WRIST = "observation.images.top", "observation.images.wrist"

Make = Callable[..., Any]


def present(batch: dict[str, Any]) -> dict[str, Any]:
    """What a robot sees now: the newest step of a training batch."""
    return {
        key: value[:, -1] if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
        if not key.startswith("action")
    }


def test_every_visual_token_of_every_step_reaches_the_actions(make: Make, make_batch: Make) -> None:
    policy = make("pixio_diffusion")
    batch = make_batch(policy)
    tokens = {
        camera: policy.eyes.encoder(batch[camera].flatten(0, 1)).map(lambda x: x.unflatten(0, (2, 2)))
        for camera in (TOP, WRIST)
    }
    for camera in tokens:
        for part in (tokens[camera].classes.requires_grad_(), tokens[camera].patches.requires_grad_()):
            loss = policy.train()(batch | tokens)[0]
            (gradient,) = torch.autograd.grad(loss, part)  # b t n d
            assert (gradient.abs().amax(dim=(0, 3)) > 0).all()


def test_tokens_and_images_mix(make: Make, make_batch: Make, act: Make) -> None:
    policy = make("pixio_diffusion").eval()
    batch, noise = make_batch(policy), torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    tokens = policy.eyes.encode([batch[TOP]])[0]
    plans = []
    for seen in (batch, batch | {TOP: tokens}, batch | {TOP: batch[WRIST], WRIST: batch[TOP]}):
        torch.manual_seed(0)
        plans.append(policy.predict_action_chunk(seen, noise=noise))
    torch.testing.assert_close(plans[1], plans[0])
    assert not torch.allclose(plans[2], plans[0])


def test_the_u_net_has_the_size_that_the_adapter_fills(make: Make, make_batch: Make) -> None:
    policy = make("pixio_diffusion", feature_dim=48)
    batch = make_batch(policy)
    seen = policy.diffusion._prepare_global_conditioning(
        batch | {"observation.images": torch.stack([batch[TOP], batch[WRIST]], dim=2)}
    )
    assert seen.shape == (2, 2 * (3 + 2 * 48))  # steps of a state and two cameras
    assert torch.isfinite(policy(batch)[0])


def test_a_camera_fills_a_place_of_its_own(make: Make, make_batch: Make) -> None:
    """What the U-Net is told does not depend on how LeRobot folds samples, steps and cameras into one batch."""
    policy = make("pixio_diffusion").eval()
    batch = make_batch(policy)
    stacked = torch.stack([batch[TOP], batch[WRIST]], dim=2)
    together = policy.diffusion._prepare_global_conditioning(batch | {"observation.images": stacked})
    for sample in range(2):
        state = batch["observation.state"][[sample]]
        alone = policy.diffusion._prepare_global_conditioning(
            {"observation.state": state, "observation.images": stacked[[sample]]}
        )
        torch.testing.assert_close(alone[0], together[sample])
        told = torch.cat(
            [
                torch.cat([state[0, step], policy.eyes([batch[camera][[sample], step] for camera in (TOP, WRIST)])[0]])
                for step in range(2)
            ]
        )
        torch.testing.assert_close(told, together[sample])


def test_the_encoder_looks_only_when_a_chunk_is_due(make: Make, make_batch: Make) -> None:
    policy, passes = make("pixio_diffusion", n_action_steps=3), []
    policy.eyes.encoder.register_forward_hook(lambda _, images, __: passes.append(len(images[0])))
    batch = present(make_batch(policy))
    policy.eval()
    for _ in range(7):
        policy.select_action(dict(batch))
    assert passes == [8, 8, 8]  # before actions 1, 4 and 7: two samples, steps and cameras at once


def test_earlier_steps_are_remembered_and_forgotten_at_reset(make: Make, make_batch: Make) -> None:
    policy = make("pixio_diffusion", n_action_steps=1).eval()
    batch, noise = make_batch(policy), torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    past = {key: value[:, 0] if isinstance(value, torch.Tensor) else value for key, value in batch.items()}

    def plan(*observations: dict[str, Any]) -> torch.Tensor:
        policy.reset()
        for observation in observations:
            torch.manual_seed(0)
            action = policy.select_action({k: v for k, v in observation.items() if k != "action"}, noise=noise)
        return action

    remembering = plan(past, present(batch))
    torch.manual_seed(0)
    policy.reset()
    seen = {key: value for key, value in batch.items() if not key.startswith("action")}
    torch.testing.assert_close(policy.predict_action_chunk(seen, noise=noise)[:, 0], remembering)
    assert not torch.allclose(plan(present(batch)), remembering)


def test_a_policy_can_be_copied_and_sent(make: Make, make_batch: Make, act: Make) -> None:
    policy = make("pixio_diffusion")
    batch = make_batch(policy)
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):  # noqa: S301
        assert torch.equal(act(twin, batch), act(policy, batch))
        with torch.no_grad():
            twin.eyes.adapter.slot_embedding.add_(1)
        assert not torch.equal(act(twin, batch), act(policy, batch))  # it looks through its own eyes


def test_noise_has_the_type_of_the_head_whatever_the_encoder_computes_in(make: Make) -> None:
    policy = make("pixio_diffusion", encoder_dtype="bfloat16")
    assert next(policy.diffusion.parameters()).dtype == torch.float32


def test_packed_tokens_come_back(make: Make) -> None:
    tokens = Tokens(torch.rand(2, 3, 8, 16), torch.rand(2, 3, 4, 16), (2, 2))
    packed = pack(tokens)
    assert packed.shape == (2, 3, 1, 12, 16)
    back = unpack(packed, 8)
    assert torch.equal(back.classes, tokens.classes)
    assert torch.equal(back.patches, tokens.patches)
    assert back.grid == tokens.grid
    with pytest.raises(SettingError, match=r"square images; the grid of these is \(1, 4\)"):
        pack(tokens._replace(grid=(1, 4)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_dim": 5}, r"feature_dim must be even"),
        ({"use_separate_rgb_encoder_per_camera": True}, r"one encoder serves all cameras"),
        ({"crop_shape": (32, 32)}, r"Set image_size"),
        ({"resize_shape": (32, 32)}, r"Set image_size"),
        ({"n_action_steps": 8}, r"leaves 1 to 7 to be executed, not n_action_steps=8"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str, make: Make) -> None:
    with pytest.raises(SettingError, match=message):
        make("pixio_diffusion", **changes)
