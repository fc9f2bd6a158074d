import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixio_pretrain import RunConfig, train
from pixio_pretrain.config import ParallelConfig
from pixio_pretrain.distributed import World, join, leave, spread
from pixio_robot import load_encoder
from pixio_robot.errors import SettingError

MakeConfig = Callable[..., RunConfig]
DRIVER = Path(__file__).parent / "driver.py"
SIZES: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "patch_size": 8, "image_size": 32}


def column(config: RunConfig, name: str) -> list[float]:
    rows = [json.loads(line) for line in Path(config.folder, "log.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def same_curves(one: RunConfig, other: RunConfig, tolerance: float) -> None:
    for name in ("loss", "gradient_norm", "held_out_loss"):
        assert len(column(one, name)) > 1
        assert column(one, name) == pytest.approx(column(other, name), rel=tolerance)


@pytest.fixture
def plain(make_config: MakeConfig) -> RunConfig:
    """A finished run in float32, without chance inside the model."""
    config = make_config(precision="fp32", objective=replace(make_config().objective, drop_path=0.0))
    train(config)
    return config


@pytest.fixture
def torchrun_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment that torchrun gives to a process without companions."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in places.items():
        monkeypatch.setenv(name, str(value))
    yield
    leave()


@pytest.mark.usefixtures("torchrun_of_one")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_sharded_run_gives_the_curve_of_a_plain_one(strategy: str, plain: RunConfig, tmp_path: Path) -> None:
    sharded = replace(plain, folder=str(tmp_path / "sharded"), parallel=ParallelConfig(strategy=strategy))
    train(sharded)
    same_curves(plain, sharded, 1e-6)
    assert len(list(Path(sharded.folder, "pictures").iterdir())) == 2


def test_parts_of_a_batch_add_up_to_the_batch(plain: RunConfig, tmp_path: Path) -> None:
    parts = replace(plain, folder=str(tmp_path / "parts"), parallel=ParallelConfig(accumulate=4))
    train(parts)
    same_curves(plain, parts, 1e-5)


def test_recomputed_blocks_draw_the_same_chance_again(make_config: MakeConfig, tmp_path: Path) -> None:
    kept = make_config(precision="fp32")
    assert kept.objective.drop_path > 0
    parallel = ParallelConfig(checkpoint_activations=True)
    recomputed = replace(kept, folder=str(tmp_path / "recomputed"), parallel=parallel)
    encoders = [load_encoder(train(config)) for config in (kept, recomputed)]
    assert encoders[0].fingerprint == encoders[1].fingerprint


def test_recomputed_blocks_keep_less(make_config: MakeConfig) -> None:
    sizes = []
    for parallel in (ParallelConfig(), ParallelConfig(checkpoint_activations=True)):
        model = make_config().objective.build()
        shared = spread(model, parallel, World(device=torch.device("cpu")))
        sizes.append(kept_bytes(shared, model, 8))
    assert sizes[1] < sizes[0] / 2


def kept_bytes(shared: nn.Module, model: Any, count: int) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    noise = torch.rand(count, model.mask_blocks)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = shared(torch.zeros(count, 3, 32, 32, dtype=torch.uint8), noise=noise)
        assert output.loss.requires_grad
    return sum(kept.values())


def test_memory_grows_linearly_with_the_batch(make_config: MakeConfig) -> None:
    model = make_config().objective.build()
    four, eight, sixteen = (kept_bytes(model, model, count) for count in (4, 8, 16))
    assert sixteen - eight == pytest.approx(2 * (eight - four), rel=0.01)


class Normed(nn.Module):
    """No transformer block, and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)


def test_there_must_be_something_to_recompute() -> None:
    with pytest.raises(SettingError, match="this objective has none"):
        spread(Normed(), ParallelConfig(checkpoint_activations=True), World(device=torch.device("cpu")))


def test_a_process_that_torchrun_did_not_start_is_alone() -> None:
    world = join("cpu")
    assert (world.rank, world.size, world.first) == (0, 1, True)
    assert world.average(torch.tensor(3.0), 2.0) == [3.0, 2.0]
    assert world.any(True)
    assert not world.any(False)
    assert world.tell(["a"]) == ["a"]


def run_in_two(config: RunConfig, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / "config.pickle"
    file.write_bytes(pickle.dumps(config))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(DRIVER)]
    subprocess.run([*words, str(file), str(folder / "keys")], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_with_half_the_batch_each_give_the_curve_of_one(
    strategy: str, accumulate: int, plain: RunConfig, tmp_path: Path
) -> None:
    parallel = ParallelConfig(strategy=strategy, accumulate=accumulate)
    halves = replace(plain, folder=str(tmp_path / "halves"), parallel=parallel)
    run_in_two(halves, tmp_path / "two")
    same_curves(plain, halves, 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about itself
def test_compiled_blocks_give_the_curve_of_plain_ones(plain: RunConfig, tmp_path: Path) -> None:
    parallel = ParallelConfig(compile=True, checkpoint_activations=True)
    compiled = replace(plain, folder=str(tmp_path / "compiled"), parallel=parallel)
    train(compiled)
    same_curves(plain, compiled, 1e-4)
