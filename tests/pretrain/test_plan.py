import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixio_pretrain.config import ParallelConfig
from pixio_pretrain.costs import Activations, Costs, Part, count_costs
from pixio_pretrain.objectives import OBJECTIVES
from pixio_pretrain.objectives.base import EncoderConfig
from pixio_pretrain.objectives.distill import DistillConfig
from pixio_pretrain.objectives.masked import PixioConfig
from pixio_pretrain.optim import OptimizerConfig, make_optimizer
from pixio_pretrain.plan import GIB, GPUS, PlanConfig, memory, plan
from pixio_robot import create_encoder
from pixio_robot.errors import SettingError, UnknownNameError
from pixio_robot.nn import Attention

D, DEPTH, HEADS, PATCH, SIDE, C = 32, 3, 2, 8, 32, 2
DEC, DEC_DEPTH, DEC_HEADS = 16, 2, 2
PATCHES = (SIDE // PATCH) ** 2
SEEN = PATCHES // 4 + C


def tiny(**changes: Any) -> PixioConfig:
    sizes: dict[str, Any] = {"width": D, "depth": DEPTH, "heads": HEADS, "patch_size": PATCH, "image_size": SIDE}
    sizes |= {"class_tokens": C, "decoder_width": DEC, "decoder_depth": DEC_DEPTH, "decoder_heads": DEC_HEADS}
    sizes |= {"mask_block": 1} | changes
    return PixioConfig(**sizes)


def block_flops(tokens: int, width: int) -> int:
    """Two operations for each of 12 d^2 weights and for each entry of q k' and of the mix, by token."""
    return 24 * tokens * width**2 + 4 * tokens**2 * width


def test_operations_are_those_counted_by_hand() -> None:
    costs = count_costs(tiny(), precision="fp32")
    embed = 2 * (SEEN - C) * 3 * PATCH**2 * D  # hidden patches are not embedded
    encoder = embed + DEPTH * block_flops(SEEN, D)
    decoder = 2 * SEEN * D * DEC + DEC_DEPTH * block_flops(PATCHES + C, DEC) + 2 * PATCHES * DEC * 3 * PATCH**2
    assert costs.parts["encoder (vit)"].flops == encoder
    assert costs.parts["decoder, heads"].flops == decoder
    assert costs.step_flops == 3 * (encoder + decoder) - embed  # images need no gradient
    assert costs.recomputed_flops == DEPTH * block_flops(SEEN, D) + DEC_DEPTH * block_flops(PATCHES + C, DEC)


def test_parameters_are_those_of_the_model() -> None:
    costs, model = count_costs(tiny(), precision="fp32"), tiny().build()
    assert costs.total.parameters == sum(p.numel() for p in model.parameters())
    assert costs.parts["encoder (vit)"].parameters == sum(p.numel() for p in model.vit.parameters())
    assert sorted(costs.blocks) == [12 * DEC**2 + 13 * DEC] * DEC_DEPTH + [12 * D**2 + 13 * D] * DEPTH
    assert costs.unsplit == 0


@pytest.mark.parametrize(("precision", "per_width"), [("bf16", 36), ("fp32", 64)])
def test_a_block_keeps_so_many_bytes_of_a_token(precision: str, per_width: int) -> None:
    # bf16: two float32 inputs of norms (4 d each), what the four matrix products read (2 d, 2 d, 2 d, 8 d), q, k and v
    # (6 d) and what the GELU reads (8 d); a float32 per head, and mean and scale of two norms. fp32: all but the
    # norms' inputs doubles.
    shallow, deep = (count_costs(tiny(depth=n), precision=precision).activations for n in (DEPTH, DEPTH + 1))
    assert deep.whole - shallow.whole == SEEN * (per_width * D + 4 * HEADS + 16)
    assert deep.recomputed - shallow.recomputed == SEEN * 4 * D


def test_bytes_kept_are_those_of_a_real_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(self: Attention, x: Tensor) -> Tensor:  # as on a GPU: fused in training, too
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))

    monkeypatch.setattr(Attention, "forward", attend)
    model, config = tiny().build(), tiny()
    owned = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that no other takes its place
        return tensor

    batch = {"images": torch.rand(6, 3, SIDE, SIDE), "noise": torch.rand(6, PATCHES)}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**batch)
    measured = sum(size for size, _ in kept.values())
    assert 6 * count_costs(config, precision="fp32").activations.whole == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_weights_gradients_and_moments_are_those_of_a_real_step(name: str) -> None:
    config = PlanConfig(objective=tiny(), steps=1, batch_size=4, gpus=1, optimizer=OptimizerConfig(name=name))
    planned = memory(count_costs(tiny(), precision="fp32"), config, strategy="ddp", recompute=False)
    model = tiny().build()
    optimizer = make_optimizer(model, config.optimizer)
    model(torch.rand(2, 3, SIDE, SIDE)).loss.backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    assert planned["weights"] == sum(p.nbytes for p in model.parameters())
    assert planned["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert planned["moments"] == sum(moment.nbytes for moment in moments)
    assert planned["communication"] == 0


HAND = Costs(
    parts={"encoder": Part(parameters=800, trained=800, flops=1), "rest": Part(parameters=300, trained=200, flops=1)},
    step_flops=10**12,
    recomputed_flops=10**11,
    blocks=[100, 150, 200],
    unsplit=60,
    activations=Activations(whole=1000, recomputed=100, weights=7),
)


def machine(**changes: Any) -> PlanConfig:
    return PlanConfig(**({"objective": tiny(), "steps": 1000, "batch_size": 64, "gpus": 4, "gpu": "a100"} | changes))


def test_memory_of_two_strategies_is_the_one_worked_by_hand() -> None:
    ddp = memory(HAND, machine(), strategy="ddp", recompute=False)
    fsdp = memory(HAND, machine(), strategy="fsdp", recompute=True)
    state = {"weights": 4400, "gradients": 4000, "moments": 8000, "communication": 4000}
    assert ddp == state | {"half-precision copies": 7, "activations": 16000}
    loose = 1100 - 60 - 450
    assert fsdp == {
        "weights": (4400 - 240) / 4 + 240,
        "gradients": 1000,
        "moments": 2000,
        "communication": 4 * (loose + 3 * 200),
        "half-precision copies": 7,
        "activations": 1600,
    }


def test_gradients_that_are_accumulated_are_not_split() -> None:
    config = machine(parallel=ParallelConfig(accumulate=2))
    assert memory(HAND, config, strategy="fsdp", recompute=False)["gradients"] == 4000
    assert memory(HAND, config, strategy="ddp", recompute=False)["activations"] == 8000


def test_hours_follow_from_operations_peak_and_utilisation() -> None:
    text = plan(machine(steps=1_000_000, utilisation=0.5))
    flops = count_costs(tiny(), precision="bf16").step_flops * 64e6
    hours = float(text.rpartition("TFLOP/s: ")[2].split(" hours")[0])
    assert math.isclose(hours, flops / (4 * 312e12 * 0.5) / 3600, rel_tol=0.01)
    assert "1000000 steps of 64 samples on 4 x A100" in text
    assert "fits A100: parallel.strategy=ddp parallel.checkpoint_activations=false" in text


def test_the_first_setting_that_fits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixio_pretrain.plan.count_costs", lambda *_, **__: HAND)
    advice = []
    for room in (40_000, 30_000, 23_000, 11_000, 10_000):
        monkeypatch.setitem(GPUS, "a100", replace(GPUS["a100"], memory=room / 0.9))
        advice.append(plan(machine()).splitlines()[-3])
    assert [line.partition(": ")[2] for line in advice] == [
        "parallel.strategy=ddp parallel.checkpoint_activations=false",
        "parallel.strategy=fsdp parallel.checkpoint_activations=false",
        "parallel.strategy=ddp parallel.checkpoint_activations=true",
        "parallel.strategy=fsdp parallel.checkpoint_activations=true",
        "more GPUs, or a larger parallel.accumulate",
    ]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_can_be_planned(name: str) -> None:
    small: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "image_size": 64}
    resnet = {"encoder": "resnet18", "image_size": 64, "projection_hidden": 8, "projection_width": 8}
    settings: dict[str, Any] = {
        "pixio": small | {"decoder_width": 32, "decoder_depth": 1, "mask_block": 2},
        "mae": small | {"decoder_width": 32, "decoder_depth": 1},
        "pixpro": resnet,
        "pixcontrast": resnet,
    }.get(name, {})
    if name == "distill":
        student = EncoderConfig(width=32, depth=2, heads=2, image_size=128)
        settings = {"teacher": "shipped:pixio_vitt16", "students": {"small": student}}
    costs = count_costs(OBJECTIVES[name](**settings), precision="bf16")
    assert min(part.flops for part in costs.parts.values()) > 0
    assert 0 < costs.total.trained <= costs.total.parameters
    assert 0 < costs.activations.recomputed <= costs.activations.whole
    frozen = [part for title, part in costs.parts.items() if title.startswith("frozen")]
    assert bool(frozen) == (name in ("pixpro", "pixcontrast", "distill"))
    assert (costs.unsplit > 0) == (name == "distill")


def test_a_plan_refuses_what_distillation_would() -> None:
    teacher = "facebook/pixio-vitb16"
    with pytest.raises(SettingError, match="wants a teacher and at least one student"):
        count_costs(DistillConfig(teacher=teacher), precision="bf16")
    coarse = EncoderConfig(patch_size=32, image_size=128)
    with pytest.raises(SettingError, match=r"set students\.s\.patch_size=16"):
        count_costs(DistillConfig(teacher=teacher, students={"s": coarse}), precision="bf16")


def test_a_local_teacher_is_read_whatever_its_folder_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "pixio-vitb16"
    sizes: dict[str, Any] = {"width": 32, "depth": 1, "heads": 2, "image_size": 64}
    teacher = create_encoder("pixio_vitt16", **sizes)
    teacher.save_pretrained(folder)
    students = {"s": EncoderConfig(**sizes)}
    costs = count_costs(DistillConfig(teacher=str(folder), students=students), precision="bf16")
    assert costs.unsplit == sum(parameter.numel() for parameter in teacher.parameters())


def test_the_rate_of_this_machine_can_be_measured() -> None:
    text = plan(machine(gpus=1, gpu="measured", steps=1))
    assert "on 1 x this machine's cpu" in text
    assert "one GPU" in text


@pytest.mark.parametrize(
    ("change", "error", "answer"),
    [
        ({"gpus": 0}, SettingError, "gpus must be at least 1"),
        ({"gpus": 3}, SettingError, "among 3 processes with parallel.accumulate=1; nearest: 63"),
        ({"utilisation": 40}, SettingError, r"utilisation must lie in \(0, 1\]"),
        ({"gpu": "h20"}, UnknownNameError, "Did you mean 'h200'"),
    ],
)
def test_machines_that_cannot_be_are_refused(change: dict[str, Any], error: type[Exception], answer: str) -> None:
    with pytest.raises(error, match=answer):
        machine(**change)


def test_a_large_model_costs_no_memory_to_plan() -> None:
    costs = count_costs(PixioConfig(encoder="pixio_vit5b16"), precision="bf16")
    assert costs.total.parameters == 5_543_919_360
    assert 4 * costs.total.parameters > 20 * GIB
