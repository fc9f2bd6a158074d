"""The arms: what a policy sees through. Any encoder, and four controls that say what an encoder's result is worth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock
from transformers import ResNetConfig, ResNetModel

from benchmark.keypoints import RANDOM, keypoints_named, open_descriptors
from benchmark.palette import PICTURES, colors_named, learn_palette
from benchmark.settings import Benchmark
from pixio_robot import Encoder, learn_keypoints, load_encoder
from pixio_robot.foreign import wrap_model
from pixio_robot.images import normalize

CNN = {"embedding_size": 24, "hidden_sizes": [24, 48, 96], "depths": [1, 1, 1], "layer_type": "basic"}
"""A ResNet of 0.2 million weights. Three stages, so that a picture of 128 pixels ends as a map of 8 x 8."""
CALIBRATION = 64
"""Frames of each camera that set the CNN's batch statistics."""
CNN_OPTIONS = {"train_encoder": "full", "optimizer_lr_encoder": 1e-3, "patches": "spatial_softmax", "grid": 4}
"""The CNN learns at the rate of the policies, and says where 16 things are."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What one cell's policy sees through.

    Attributes:
        encoder: The encoder; None without eyes.
        source: What ``load_encoder`` reads to get it again.
        options: Fields of the policy that are this arm's own.
        state: Whether the scene's whole state is told.
    """

    encoder: Encoder | None = None
    source: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    state: bool = False

    @property
    def trained(self) -> bool:
        """Whether the encoder is trained with the policy, on frames; a frozen one is trained on from its cache."""
        return self.options.get("train_encoder", "frozen") != "frozen"


class Pictures(Protocol):
    """Gives some pictures of a task's demonstrations."""

    def __call__(self, side: int, count: int, *, spread: bool) -> list[torch.Tensor]:
        """Of each camera, so many, evenly spread or from the middle: uint8 [n 3 side side]."""
        ...


def open_sight(config: Benchmark, arm: str, seed: int, *, pictures: Pictures, shared: Path) -> Sight:
    """Give an arm its encoder, making it where it has to be made.

    Args:
        config: The settings.
        arm: An encoder's name among them, or a control.
        seed: Training seed, which random weights are drawn from.
        pictures: For the batch statistics of a fresh CNN, and for whatever is learnt from them.
        shared: The task's own folder, where the encoders that are made for it go.

    Raises:
        PixioRobotError: Whatever ``load_encoder`` raises.
    """
    options = arm_options(config, arm)
    match arm:
        case "blind":
            return Sight()
        case "state":
            return Sight(state=True)
        case "cnn":
            side = options["image_size"]
            middle = partial(pictures, side, CALIBRATION, spread=False)
            source = _made(shared / "encoders" / f"cnn-{seed}", lambda: draw_cnn(seed, torch.cat(middle())))
        case "random":
            first = next(iter(config.arms.values()))
            place = Path(config.folder) / "encoders" / f"random-{seed}"
            source = _made(place, lambda: load_encoder(first).redrawn(seed))
        case _:
            source = config.arms[arm]
            if learnt := find_learner(source, seed):
                side, (name, learn) = options.get("image_size", config.size), learnt
                spread = partial(pictures, side, PICTURES, spread=True)
                source = _made(shared / "encoders" / f"{name}-{side}", lambda: learn(spread()))
    sight = Sight(encoder=load_encoder(source), source=source, options=options)
    if sight.encoder and not sight.trained:
        sight.encoder.to(getattr(torch, config.encoder_dtype))
    return sight


def find_learner(source: str, seed: int) -> tuple[str, Callable[[Sequence[torch.Tensor]], Encoder]] | None:
    """Find how an encoder is made of pictures of each camera, where a source says so, and a name for what comes out.

    Args:
        source: "colors:K" or "keypoints:K@ENCODER"; anything else is for ``load_encoder``.
        seed: Training seed, which random weights are drawn from.

    Raises:
        PixioRobotError: The source is misspelt, or its encoder cannot be read.
    """
    if count := colors_named(source):
        return f"colors-{count}", partial(learn_palette, count=count)
    if named := keypoints_named(source):
        count, descriptors = named[0], open_descriptors(named[1], seed)
        name = f"keypoints-{count}-{descriptors.fingerprint[:12]}"
        return name, partial(learn_keypoints, descriptors, count=count)
    return None


def alike_where(source: str, task: str, seed: int) -> tuple[object, ...]:
    """Say what cells have in common that get the same weights of a source: nothing, their task, or their seed, too."""
    if named := keypoints_named(source):
        return (task, seed) if named[1] == RANDOM else (task,)
    return (task,) if colors_named(source) else ()


def arm_options(config: Benchmark, arm: str) -> dict[str, Any]:
    """Fields of the policy that are an arm's own; the CNN sees ``config.size``, whatever a data set's pictures have."""
    own = CNN_OPTIONS | {"image_size": config.size} if arm == "cnn" else {}
    return own | config.options_of(arm)


def draw_cnn(seed: int, frames: torch.Tensor) -> Encoder:
    """A small ResNet with fresh weights, its batch statistics those of some frames, uint8 [n 3 h w].

    Policies hold the statistics of batch norm fixed, as LeRobot's ACT does. Those of a fresh network would be 0 and 1
    whatever it computes, so they are measured once, layer by layer with the weights as drawn, and then kept.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = ResNetModel(ResNetConfig(**CNN))
    encoder = wrap_model(model, provenance={"name": "small CNN", "weights": f"random, seed {seed}"})
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0  # the statistics of one batch
    model.train()
    with torch.no_grad():
        model(normalize(frames, torch.float32, encoder.backbone.statistics))
    for norm in norms:
        norm.momentum = 0.1
    model.eval()
    return encoder


def _made(place: Path, make: Callable[[], Encoder]) -> str:
    """Where an encoder of our own making lies: made once, by whoever needs it first."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_name(f".{place.name}.lock")):
        if not (place / "config.json").is_file():  # which is written last
            make().save_pretrained(place)
    return str(place.absolute())
