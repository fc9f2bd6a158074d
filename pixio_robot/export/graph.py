"""What is exported: one encoder pass, and everything that is read from it, as a function of plain tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pixio_robot.adapter import VisualFeatureAdapter
from pixio_robot.encoder import Encoder
from pixio_robot.errors import SettingError
from pixio_robot.geometry.depth import Depth, DepthModel
from pixio_robot.geometry.taps import shared_blocks
from pixio_robot.tokens import Tokens


class Perceived(NamedTuple):
    """Everything from one pass. With several cameras, [b ...] reads [b v ...], but for the policy's input.

    Attributes:
        tokens: Of the last block, [b ...], after the final norm: what ``Encoder.__call__`` gives.
        depth: Metres and confidence [b h w]; None without a depth head.
        policy: What the adapter makes of all cameras, [b length dim] or [b dim]; None without an adapter.
    """

    tokens: Tokens
    depth: Depth | None = None
    policy: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """Give all tensors by the names that they have in an exported file; class tokens only if there are any."""
        found = {"classes": self.tokens.classes} if self.tokens.classes.shape[-2] else {}
        found["patches"] = self.tokens.patches
        if self.depth is not None:
            found |= {"depth": self.depth.depth, "confidence": self.depth.confidence}
        if self.policy is not None:
            found["policy"] = self.policy
        return found


class OnePass(nn.Module):
    """An encoder with a depth head, a policy's adapter, or both, that share its pass.

    It and its parts are put into evaluation mode.

    Args:
        encoder: The encoder.
        depth: A depth model on this very encoder.
        adapter: A policy's adapter, for one or more cameras and one time step.

    Attributes:
        cameras: How many cameras the adapter reads; 1 without an adapter.
        inputs: Names of the tensors that it reads: "images", and "intrinsics" and "cam2base" if the depth head uses
            them.

    Raises:
        SettingError: A depth model on another encoder, or an adapter of other tokens or of several time steps.
    """

    def __init__(
        self, encoder: Encoder, *, depth: DepthModel | None = None, adapter: VisualFeatureAdapter | None = None
    ) -> None:
        super().__init__()
        if adapter is not None and adapter.steps != 1:
            raise SettingError(f"An adapter of {adapter.steps} time steps needs earlier frames' tokens; export 1 step.")
        if adapter is not None and (adapter.width, adapter.class_tokens) != (
            encoder.spec.width,
            encoder.spec.class_tokens,
        ):
            raise SettingError(
                f"The adapter reads {adapter.class_tokens} class tokens, {adapter.width} wide; the encoder gives "
                f"{encoder.spec.class_tokens}, {encoder.spec.width} wide."
            )
        self.encoder, self.depth, self.adapter = encoder, depth, adapter
        self.cameras = adapter.cameras if adapter is not None else 1
        self._last, self._blocks = encoder.spec.depth - 1, shared_blocks(encoder, depth)
        self.inputs: tuple[str, ...] = ("images",)
        if depth is not None:
            posed = depth.settings.rays or depth.settings.coding == "support"
            calibrated = posed or depth.settings.coding == "canonical"
            self.inputs += ("intrinsics",) * calibrated + ("cam2base",) * posed
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor, intrinsics: Tensor | None = None, cam2base: Tensor | None = None) -> Perceived:
        """Look once.

        Args:
            images: RGB [b 3 h w], or [b v 3 h w] for an adapter of several cameras; uint8 or float in [0, 1].
            intrinsics: Pinhole matrices [b 3 3] or [b v 3 3] in pixels of these images, if they are among ``inputs``.
            cam2base: Poses [b 4 4] or [b v 4 4], if they are among ``inputs``.

        Raises:
            ImageError: Images that cannot be encoded.
            DataError: A calibration that cannot be.
            SettingError: An input that is missing.
        """
        check_given(self.inputs, {"images": images, "intrinsics": intrinsics, "cam2base": cam2base})
        several = self.cameras > 1
        lead = images.shape[:2]
        if several:
            images = images.flatten(0, 1)
            intrinsics = None if intrinsics is None else intrinsics.flatten(0, 1)
            cam2base = None if cam2base is None else cam2base.flatten(0, 1)
        found = dict(zip(self._blocks, self.encoder.intermediate(images, blocks=self._blocks), strict=True))
        tokens, depth, policy = found[self._last], None, None
        if self.depth is not None:
            taps = [found[tap] for tap in self.depth.taps]
            size = (images.shape[-2], images.shape[-1])
            depth = self.depth.from_tokens(taps, size, intrinsics, cam2base, images=images)
        if several:
            tokens = tokens.map(lambda x: x.unflatten(0, lead))
            depth = depth and Depth(*(x.unflatten(0, lead) for x in depth))
        if self.adapter is not None:
            views = range(self.cameras)
            policy = self.adapter([tokens.map(lambda x, v=v: x[:, v]) if several else tokens for v in views])
        return Perceived(tokens, depth, policy)


def check_given(names: Sequence[str], given: dict[str, Tensor | None]) -> None:
    """Refuse a call that leaves out an input, or gives one that is not read.

    Args:
        names: What is read.
        given: What the caller gave, None for nothing.

    Raises:
        SettingError: One is missing, or one too many.
    """
    for name, value in given.items():
        if (value is not None) != (name in names):
            told = "needs" if value is None else "has no input"
            raise SettingError(f"This model {told} {name!r}; it reads {', '.join(names)}.")
