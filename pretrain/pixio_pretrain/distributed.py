"""The processes that share a run: who they are, how they agree, and how a model is spread over them."""

import atexit
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pixio_pretrain.config import ParallelConfig
from pixio_pretrain.precision import check_device
from pixio_robot.errors import SettingError

logger = logging.getLogger(__name__)

BLOCKS = ("Block", "BasicBlock", "Bottleneck")
"""Classes of the layers that repeat (the core's, torchvision's): units of sharding, recomputation and compilation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The processes of a run, as one of them sees it.

    Attributes:
        device: Where this one computes.
        rank: Its number; 0 alone writes logs, pictures and encoders.
        size: How many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for the others."""
        if dist.is_initialized():
            dist.barrier()

    def average(self, *values: Tensor | float) -> list[float]:
        """Mean of each value over the processes: the same numbers in all of them."""
        stacked = torch.stack([torch.as_tensor(value, device=self.device).detach().float() for value in values])
        if dist.is_initialized():
            dist.all_reduce(stacked)
        return (stacked / self.size).tolist()

    def any(self, mine: bool) -> bool:
        """Whether it is so in any process: the same answer in all of them, without waiting for GPUs."""
        answer = torch.tensor(float(mine))
        if dist.is_initialized():
            dist.all_reduce(answer, dist.ReduceOp.MAX)
        return bool(answer)

    def adopt(self, tensors: Iterable[Tensor]) -> None:
        """Put the first process's values into tensors that may differ between processes."""
        for tensor in tensors:
            if self.size > 1:
                dist.broadcast(tensor, 0)

    def tell(self, words: list[str]) -> list[str]:
        """What the first process says."""
        said: list[Any] = [words]
        if dist.is_initialized():
            dist.broadcast_object_list(said)
        return said[0]


def join(device: str) -> World:
    """Join the processes that ``torchrun`` started, until this one ends; one that it did not start is alone.

    Args:
        device: As for a process on its own; "cuda" becomes the GPU of the rank.

    Raises:
        SettingError: If the device cannot be used here.
    """
    if "WORLD_SIZE" in os.environ and device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    check_device(device)
    chosen = torch.device(device)
    if "WORLD_SIZE" in os.environ and chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
        atexit.register(leave)  # not before: there is no joining twice under the same torchrun
    if not dist.is_initialized():
        return World(device=chosen)
    return World(device=chosen, rank=dist.get_rank(), size=dist.get_world_size())


def leave() -> None:
    """Leave the other processes; does nothing in one that is alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def spread(model: nn.Module, config: ParallelConfig, world: World) -> nn.Module:
    """Put a model on its device, and make of it what all processes train together.

    Parameter names stay as they are; those of ``model`` are the ones to optimise.

    Returns:
        What to call in training: ``model``, or a wrapper around it.

    Raises:
        SettingError: If there is nothing to recompute.
    """
    blocks = list(repeated_blocks(model).values())
    if config.checkpoint_activations:
        _recompute(model)
    if config.compile:
        for module in blocks if config.strategy == "fsdp" else [model]:  # the whole is faster, but cannot be split
            module.compile()
    if world.size > 1 and _normed(model):
        model = _synchronise_norms(model, world)
    if config.strategy == "fsdp" and dist.is_initialized():
        return _shard(model, blocks, world)
    model.to(world.device)
    return DistributedDataParallel(model) if world.size > 1 else model


def repeated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that repeat, by name; none of them lies in another."""
    return {name: module for name, module in model.named_modules() if type(module).__name__ in BLOCKS}


def recomputable_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Those that ``parallel.checkpoint_activations`` runs again: batch norms would count their batch twice."""
    blocks = repeated_blocks(model)
    return {name: block for name, block in blocks.items() if not _normed(block)}


def _normed(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def _recompute(model: nn.Module) -> None:
    """Have blocks compute their inside again in the backward pass."""
    blocks = recomputable_blocks(model).values()
    if not blocks:
        raise SettingError(
            "parallel.checkpoint_activations recomputes transformer blocks, and this objective has none; "
            "parallel.accumulate saves memory, too."
        )
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _synchronise_norms(model: nn.Module, world: World) -> nn.Module:
    """Let batch norms see the batches of all processes."""
    if world.device.type == "cpu":
        if world.first:
            logger.warning("On CPUs, each process normalises its part of the batch: PyTorch synchronises on GPUs only.")
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _shard(model: nn.Module, blocks: list[nn.Module], world: World) -> nn.Module:
    """Split weights block by block; each goes to the device as it is split, so that the whole never has to fit."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@contextmanager
def synchronising(shared: nn.Module, wanted: bool) -> Iterator[None]:
    """Add gradients up over the processes in the backward pass inside, or leave that to a later one."""
    if isinstance(shared, FSDPModule):
        shared.set_requires_gradient_sync(wanted)
    with shared.no_sync() if isinstance(shared, DistributedDataParallel) and not wanted else nullcontext():
        yield


def gradient_norm(model: nn.Module) -> Tensor:
    """Norm of all gradients, of the whole model in every process."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
