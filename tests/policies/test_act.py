"""``pixio_act``: what is ACT's own."""

from collections.abc import Callable
from typing import Any

import torch

TOP, WRIST = "observation.images.top", "observation.images.wrist"

Make = Callable[..., Any]


def test_every_visual_token_reaches_the_actions(make: Make, make_batch: Make) -> None:
    policy = make("pixio_act")
    batch = make_batch(policy)
    assert policy.eyes.adapter.length == 2 * (8 + 4)  # two cameras of eight class tokens and 2 x 2 patches
    tokens = {camera: policy.eyes.encoder(batch[camera]) for camera in (TOP, WRIST)}
    for camera in tokens:
        for part in (tokens[camera].classes.requires_grad_(), tokens[camera].patches.requires_grad_()):
            loss = policy.train()(batch | tokens)[0]
            (gradient,) = torch.autograd.grad(loss, part)
            assert (gradient.abs().amax(dim=(0, 2)) > 0).all()


def test_tokens_and_images_give_the_same_actions(make: Make, make_batch: Make) -> None:
    policy = make("pixio_act")
    batch = make_batch(policy)
    live = policy.predict_action_chunk(batch)
    tokens = {camera: policy.eyes.encoder(batch[camera]) for camera in (TOP, WRIST)}
    torch.testing.assert_close(policy.predict_action_chunk(batch | tokens), live)
    torch.testing.assert_close(policy.predict_action_chunk(batch | {TOP: tokens[TOP]}), live)
    swapped = batch | {TOP: batch[WRIST], WRIST: batch[TOP]}
    assert not torch.allclose(policy.predict_action_chunk(swapped), live)


def test_the_encoder_looks_only_when_a_chunk_is_due(make: Make, make_batch: Make) -> None:
    policy, passes = make("pixio_act", n_action_steps=3), []
    policy.eyes.encoder.register_forward_hook(lambda *_: passes.append(1))
    batch = {key: value for key, value in make_batch(policy).items() if not key.startswith("action")}
    actions = torch.stack([policy.select_action(batch) for _ in range(7)], dim=1)
    assert len(passes) == 3  # before actions 1, 4 and 7
    chunk = policy.predict_action_chunk(batch)[:, :3]
    assert torch.equal(actions[:, :3], chunk)
    assert torch.equal(actions[:, 3:6], chunk)


def test_temporal_ensembling_looks_at_every_step_and_averages(make: Make, make_batch: Make) -> None:
    policy, passes = make("pixio_act", n_action_steps=1, temporal_ensemble_coeff=0.01), []
    policy.eyes.encoder.register_forward_hook(lambda *_: passes.append(1))
    first, second = (
        {key: value for key, value in make_batch(policy, seed=seed).items() if not key.startswith("action")}
        for seed in (0, 1)
    )
    policy.select_action(first)
    found = policy.select_action(second)
    assert len(passes) == 2
    older, newer = policy.predict_action_chunk(first)[:, 1], policy.predict_action_chunk(second)[:, 0]
    weight = torch.exp(torch.tensor(-0.01))  # of the newer plan; the older one's is 1
    torch.testing.assert_close(found, (older + weight * newer) / (1 + weight))
