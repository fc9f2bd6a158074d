from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pixio_pretrain.objectives import OBJECTIVES, create_objective
from pixio_pretrain.optim import OPTIMIZERS, Lars, OptimizerConfig, learning_rate, make_optimizer
from pixio_robot.errors import SettingError, UnknownNameError


def test_one_step_of_lars_is_the_one_worked_by_hand() -> None:
    # |w| = 5, |g| = 10, decay 0.1: rate = 0.001 * 5 / (10 + 0.1 * 5) = 1/2100; g + 0.1 w = (6.3, 8.4).
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = Lars([weight], lr=2.1, momentum=0.9, weight_decay=0.1)
    weight.grad = torch.tensor([[6.0, 8.0]])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[3 - 0.0063, 4 - 0.0084]]), rtol=0, atol=1e-6)
    # With no gradient, the rate is 1 and only decay and the momentum's 0.9 of (0.003, 0.004) remain.
    before = weight.detach().clone()
    weight.grad = torch.zeros(1, 2)
    optimizer.step()
    expected = before - 2.1 * (0.9 * torch.tensor([[0.003, 0.004]]) + 0.1 * before)
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-5)


def test_lars_leaves_the_length_of_biases_alone() -> None:
    bias = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Lars([{"params": [bias], "adapt": False}], lr=0.5)
    bias.grad = torch.tensor([1.0, 2.0])
    optimizer.step()
    torch.testing.assert_close(bias.detach(), torch.tensor([2.5, 3.0]))


def test_lars_agrees_with_lightlys() -> None:
    theirs = pytest.importorskip("lightly.utils.lars").LARS
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = make_optimizer(models[0], OptimizerConfig(name="lars", weight_decay=0.01, betas=(0.9, 0.0)))
    groups = [
        {"params": [p for p in models[1].parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in models[1].parameters() if p.ndim == 1]},
    ]
    optimizers: list[Any] = [ours, theirs(groups, lr=1.0, momentum=0.9)]
    for step in range(5):
        images = torch.randn(8, 6).double()
        for model, optimizer in zip(models, optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = 1.0 + step
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
    for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_lars_is_taken_up_again_where_it_stopped() -> None:
    def fit(optimizer: Lars, weight: nn.Parameter, steps: int) -> None:
        for _ in range(steps):
            weight.grad = weight.detach().square()
            optimizer.step()

    whole, halved = (nn.Parameter(torch.tensor([[1.0, 2.0]])) for _ in range(2))
    fit(Lars([whole], lr=1.0), whole, 4)
    first = Lars([halved], lr=1.0)
    fit(first, halved, 2)
    second = Lars([halved], lr=1.0)
    second.load_state_dict(first.state_dict())
    fit(second, halved, 2)
    assert torch.equal(whole, halved)


TINY = {"width": 16, "depth": 1, "heads": 2, "image_size": 32, "patch_size": 8}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_tensors_of_one_dimension_and_biases_escape_weight_decay(name: str) -> None:
    model = create_objective("pixio", **TINY, class_tokens=2, decoder_width=16, decoder_depth=1, mask_block=1)
    decayed, free = make_optimizer(model, OptimizerConfig(name=name)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in free["params"]} == {
        name for name in names.values() if name.endswith(".bias") or "norm" in name
    }
    assert {"vit.cls_token", "vit.pos_embed", "mask_token", "decoder_pos_embed"} <= {
        names[id(p)] for p in decayed["params"]
    }


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mae", TINY | {"decoder_width": 16, "decoder_depth": 1}),
        ("pixpro", {"encoder": "resnet18", "image_size": 32, "projection_hidden": 8, "projection_width": 8}),
    ],
)
def test_what_takes_no_gradient_is_not_optimised(name: str, settings: dict[str, Any]) -> None:
    if name not in OBJECTIVES:
        pytest.skip(f"no objective {name}")
    model = create_objective(name, **settings)
    optimised = {id(p) for group in make_optimizer(model, OptimizerConfig()).param_groups for p in group["params"]}
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert frozen
    assert optimised == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_the_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    rates = [learning_rate(step, steps=100, warmup=10, peak=2.0) for step in range(101)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(1.0)
    assert rates[10] == max(rates) == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0, abs=1e-9)


def test_the_rate_begins_and_ends_where_it_is_told() -> None:
    rates = [learning_rate(s, steps=100, warmup=10, peak=4.0, warmup_from=0.01, min_lr=1e-6) for s in range(101)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[5] == pytest.approx((0.04 + 4.0) / 2)
    assert rates[10] == max(rates) == 4.0
    assert rates[100] == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("wrong", "answer"),
    [
        (lambda: OptimizerConfig(base_lr=0), "base_lr must be above 0"),
        (lambda: OptimizerConfig(warmup=-1), "must not be below 0"),
        (lambda: OptimizerConfig(warmup_from=2), "warmup_from must lie in"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), r"both betas in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: Callable[[], object], answer: str) -> None:
    with pytest.raises(SettingError, match=answer):
        wrong()


def test_an_unknown_optimiser_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'adamw'"):
        OptimizerConfig(name="adam")
