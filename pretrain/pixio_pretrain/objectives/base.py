"""The interface of an objective: samples out of images, a loss out of a batch of samples, encoders at the end."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from pixio_pretrain.data.samples import Batch, BatchMaker, SampleMaker
from pixio_pretrain.data.source import Source
from pixio_robot.encoder import ENCODERS, Encoder, EncoderSpec
from pixio_robot.errors import SettingError, UnknownNameError


class Output(Protocol):
    """What an objective says about a batch; its own class names the intermediates."""

    @property
    def loss(self) -> Tensor:
        """Scalar, float32."""
        ...


@dataclass(kw_only=True)
class ObjectiveConfig(ABC):
    """Settings of an objective; not frozen, because OmegaConf would make a frozen node read-only.

    Attributes:
        name: The row of ``OBJECTIVES``.
        batch_norms: Whether what is trained has batch norms, so that it matters how many samples a pass sees.
    """

    batch_norms: ClassVar[bool] = False

    name: str = ""

    @abstractmethod
    def build(self) -> "Objective":
        """Build the objective, with random weights.

        Raises:
            UnknownNameError: If there is no such encoder.
            SettingError: If the settings do not fit together.
        """


@dataclass(kw_only=True)
class EncoderConfig:
    """An encoder to be trained: a row of ``ENCODERS``, and the sizes in which it differs from that row.

    Attributes:
        encoder: A row of ``ENCODERS``.
        width: Token width.
        depth: Transformer blocks.
        heads: Attention heads.
        patch_size: Patch side in pixels.
        image_size: Side of the training images in pixels.
        class_tokens: Class tokens.
        stem: "patch", or "conv" for small convolutions in place of the linear map of each patch.
        drop_path: Stochastic depth of the last block; it grows linearly from 0 at the first.
    """

    encoder: str = "pixio_vitt16"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch_size: int | None = None
    image_size: int | None = None
    class_tokens: int | None = None
    stem: str | None = None
    drop_path: float = 0.0

    def spec(self) -> EncoderSpec:
        """The sizes.

        Raises:
            UnknownNameError: If there is no such row.
            SettingError: If the sizes do not fit together.
        """
        if self.encoder not in ENCODERS:
            raise UnknownNameError("encoder", self.encoder, ENCODERS)
        if not 0 <= self.drop_path < 1:
            raise SettingError(f"drop_path={self.drop_path} must lie in [0, 1).")
        sizes = {key: getattr(self, key) for key in asdict(ENCODERS[self.encoder]) if hasattr(self, key)}
        return replace(ENCODERS[self.encoder], **{key: size for key, size in sizes.items() if size is not None})


class Objective(nn.Module, ABC):
    """A model under training.

    ``objective(**batch)`` gives an ``Output``. All parameters that take a gradient are trained; others (a momentum
    network, a teacher) are the objective's own affair.

    Attributes:
        config: All settings; an ``ObjectiveConfig`` of the objective's own class.
        loss_meaning: Half a sentence on the loss, for the model card.
        picture_meaning: A sentence on ``picture``, for the model card.
    """

    config: Any
    loss_meaning: str
    picture_meaning: ClassVar[str] = ""

    def fresh(self) -> "Objective":
        """Build another one of the same settings, with random weights; what is not trained may be shared with it."""
        return self.config.build()

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side of the images in pixels."""

    @property
    @abstractmethod
    def encoders(self) -> Mapping[str, Encoder]:
        """Frozen copies of what is trained, as it is now, by the name of the folder each one goes to.

        Their provenance says "name"; whoever writes them adds the rest.
        """

    @property
    def encoder(self) -> Encoder:
        """The encoder, or the first of several."""
        return next(iter(self.encoders.values()))

    @property
    def extra_weights(self) -> Mapping[str, dict[str, Tensor]]:
        """Weights that belong beside the first encoder, such as a pyramid's: state dictionaries by file name."""
        return {}

    @property
    def origins(self) -> Mapping[str, str]:
        """Weights from elsewhere that decide the result, such as a teacher's: hashes by what they are."""
        return {}

    def save_encoders(self, encoders: Mapping[str, Encoder], folder: Path) -> None:
        """Write encoders, as ``encoders`` gave them, each to a folder of its own, with the weights that belong there.

        Args:
            encoders: By name; whoever calls has completed their provenance.
            folder: Comes to hold their folders, in each of which ``config.json`` comes last.
        """
        first = folder / next(iter(encoders))
        first.mkdir(parents=True, exist_ok=True)
        for file, state in self.extra_weights.items():
            save_file({key: value.cpu().contiguous() for key, value in state.items()}, first / f"{file}.safetensors")
        for name, encoder in encoders.items():
            encoder.save_pretrained(folder / name)

    @abstractmethod
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights."""

    def begin(self) -> Mapping[str, str]:
        """Take over weights from elsewhere that training begins with, if any; done once, before the first step.

        Returns:
            Their hashes by what they are.
        """
        return {}

    @abstractmethod
    def samples(self, *, crop_scale: float) -> SampleMaker:
        """Say how an image becomes a sample.

        Args:
            crop_scale: Smallest area of a crop as a share of the image; 1 takes whole images, for measuring.
        """

    def batches(self, *, crop_scale: float) -> BatchMaker:
        """Say how images that lie on a device become a batch there; arguments as for ``samples``.

        Raises:
            SettingError: If the objective makes its samples one by one only.
        """
        del crop_scale
        raise SettingError(f"loading.resident=true: {self.config.name} makes its samples on the CPU. Leave it out.")

    def prepare(self, source: Source) -> Source:
        """Say what samples are made of: single images, unless the objective wants more.

        Raises:
            DataError: If the source does not have it.
        """
        return source

    def before_step(self, step: int, steps: int) -> None:
        """Do what must be done before each optimiser step, such as moving a momentum network."""

    def baselines(self, train: Iterable[Batch], held_out: Iterable[Batch]) -> dict[str, float]:
        """Held-out losses of predictions that look at nothing, by name; none unless the objective knows some."""
        del train, held_out
        return {}

    def picture(self, batch: Batch) -> Image.Image | None:
        """Show what the model makes of a batch; None where there is nothing to see."""
        del batch
        return None
