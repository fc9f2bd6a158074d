"""Metric depth of one image from the tokens of a frozen encoder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pixio_robot.encoder import Encoder
from pixio_robot.errors import SettingError, UnknownNameError
from pixio_robot.geometry.cameras import base_rays, check_calibration
from pixio_robot.geometry.heads import DPT_PRESETS, LEVELS, DPTHead, LinearHead, Readout, like_weight, picture
from pixio_robot.geometry.planes import lean_on_planes
from pixio_robot.geometry.storage import StoredModel
from pixio_robot.geometry.taps import taps_of
from pixio_robot.nn import no_autocast
from pixio_robot.tokens import Tokens

Coding = Literal["sigmoid", "canonical", "support"]
"""How the head's number o becomes metres.

"sigmoid"    max_depth * sigmoid(o), as in Pixio's tables: for one camera.
"canonical"  f / focal * exp(o), f the focal length in pixels: one head for cameras of any focal length, since a thing
             twice as far through a lens twice as long looks the same.
"support"    for calibrated cameras above known planes, such as table and floor: the head says how likely each plane is
             what the pixel shows, and what the depth is if it is none of them ("canonical"). The answer is the mean of
             these depths' logarithms, so a pixel that is surely table gets the table's depth to the millimetre.
"""

RAY_CHANNELS = 7  # origin, direction, and whether they are known


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthSettings:
    """Settings of a ``DepthModel``.

    Attributes:
        head: "linear" (last block only), or a key of ``DPT_PRESETS`` (four blocks).
        coding: How its answer becomes metres, see ``Coding``.
        max_depth: Metres; the farthest that "sigmoid" can say, and beyond which "support" takes a plane for unseen.
        focal: Pixels; the reference of "canonical" and "support".
        support_heights: Metres; heights of the planes z = constant of the base frame, for "support".
        rays: Tell the head each patch's ray in the base frame. The encoder never sees it, so its pass can be shared.
        readout: What becomes of the class tokens.
        detail: Let a DPT head see the picture, too, so that edges are as sharp as pixels are.
    """

    head: str = "tiny"
    coding: Coding = "canonical"
    max_depth: float = 10.0
    focal: float = 128.0
    support_heights: tuple[float, ...] = (0.0,)
    rays: bool = False
    readout: Readout = "mean"
    detail: bool = False

    def __post_init__(self) -> None:
        if self.head not in ("linear", *DPT_PRESETS):
            raise UnknownNameError("depth head", self.head, ("linear", *DPT_PRESETS))
        if self.coding not in get_args(Coding):
            raise UnknownNameError("coding of depth", self.coding, get_args(Coding))
        if self.max_depth <= 0 or self.focal <= 0:
            raise SettingError(f"max_depth={self.max_depth} and focal={self.focal} must be above 0.")
        if self.detail and self.head == "linear":
            raise SettingError("A linear head has no use for detail: choose a DPT head, such as 'tiny'.")
        object.__setattr__(self, "support_heights", tuple(map(float, self.support_heights)))  # JSON knows no tuples
        if self.coding == "support" and not self.support_heights:
            raise SettingError("Depth coded as 'support' is measured from planes: name at least one support height.")

    @property
    def channels(self) -> int:
        """Numbers that the head says of each pixel: of depth, of confidence, and of each plane."""
        return 2 + (len(self.support_heights) if self.coding == "support" else 0)


class Depth(NamedTuple):
    """Depth of a batch of images.

    Attributes:
        depth: Metres along the optical axis, float32 [b h w].
        confidence: From 1 upwards, float32 [b h w]; only its order means something.
    """

    depth: Tensor
    confidence: Tensor


class DepthModel(StoredModel):
    """A frozen encoder and a head that reads metric depth from it.

    Args:
        encoder: The encoder.
        settings: The head's; the defaults when absent.
        facts: What is known of the head's training.

    Attributes:
        taps: The blocks that the head reads, counted from 0.
        head: What is trained.
    """

    kind = "depth"
    settings_type = DepthSettings
    settings: DepthSettings

    def __init__(
        self,
        encoder: Encoder,
        settings: DepthSettings | None = None,
        *,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, settings, facts=facts)
        settings = self.settings
        extra, width = RAY_CHANNELS if settings.rays else 0, encoder.spec.width
        self.head: LinearHead | DPTHead
        if settings.head == "linear":
            self.head = LinearHead(width, out_channels=settings.channels, readout=settings.readout, extra=extra)
        else:
            taps = min(LEVELS, encoder.spec.depth)
            self.head = DPTHead(
                width,
                taps,
                settings.channels,
                preset=settings.head,
                readout=settings.readout,
                extra=extra,
                detail=settings.detail,
            )
        self.taps = taps_of(encoder, self.head.taps)

    def forward(self, images: Tensor, intrinsics: Tensor | None = None, cam2base: Tensor | None = None) -> Depth:
        """Measure images.

        Args:
            images: RGB [b 3 h w], uint8 or float in [0, 1].
            intrinsics: Pinhole matrices [b 3 3] in pixels of these images; "sigmoid" without rays needs none.
            cam2base: Poses [b 4 4]; "support" needs them, and rays without them are left empty.

        Raises:
            ImageError: Images that cannot be encoded.
            DataError: A calibration that cannot be.
            SettingError: A calibration that is missing.
        """
        tokens = self.encoder.intermediate(images, blocks=self.taps)
        size = (images.shape[-2], images.shape[-1])
        return self.from_tokens(tokens, size, intrinsics, cam2base, images=images)

    def from_tokens(
        self,
        tokens: Sequence[Tokens],
        size: tuple[int, int],
        intrinsics: Tensor | None = None,
        cam2base: Tensor | None = None,
        *,
        images: Tensor | None = None,
        posed: Tensor | None = None,
    ) -> Depth:
        """Measure images that were encoded already.

        Args:
            tokens: Of the blocks ``taps``.
            size: (height, width) of the images in pixels.
            intrinsics: As for ``forward``.
            cam2base: As for ``forward``.
            images: As for ``forward``; a head that was built without ``detail`` does not look at them.
            posed: Bool [b]: of which images the head is told the pose; of all when absent. Training withholds some, so
                that one head works with and without.

        Raises:
            DataError: A calibration that cannot be.
            SettingError: A calibration or images that are missing, or tokens of other blocks.
        """
        answer = self.numbers(tokens, size, intrinsics, cam2base, images=images, posed=posed)
        with no_autocast(answer.device):
            if self.settings.coding == "sigmoid":
                depth = self.settings.max_depth * answer[:, 0].sigmoid()
            else:
                depth = self.log_depth(answer, intrinsics, cam2base).exp()
            return Depth(depth, 1 + answer[:, 1].exp())

    def numbers(
        self,
        tokens: Sequence[Tokens],
        size: tuple[int, int],
        intrinsics: Tensor | None = None,
        cam2base: Tensor | None = None,
        *,
        images: Tensor | None = None,
        posed: Tensor | None = None,
    ) -> Tensor:
        """Give what the head says of each pixel, float32 [b c h w]: of depth, of confidence, of each plane.

        Arguments and errors are those of ``from_tokens``.
        """
        self._check(len(tokens[0].patches), size, intrinsics, cam2base)
        tokens = like_weight(tokens, self.head.out.weight)
        extra = self._rays(tokens[0], size, intrinsics, cam2base, posed) if self.settings.rays else None
        if isinstance(self.head, DPTHead):
            device = self.head.out.weight.device
            seen = picture(self.encoder, images, device) if self.settings.detail else None
            return self.head(tokens, size, extra, seen)
        return self.head(tokens, size, extra)

    def start_at(self, depth: float, *, focal: float) -> None:
        """Let an untrained head say about ``depth`` metres everywhere, so that training need not begin with that.

        Args:
            depth: Such as the training set's geometric mean.
            focal: Pixels; a typical focal length there.
        """
        share = min(depth / self.settings.max_depth, 0.99)
        wanted = {
            "sigmoid": math.log(share / (1 - share)),
            "canonical": math.log(depth * self.settings.focal / focal),
        }
        wanted["support"] = wanted["canonical"]
        bias = self.head.out.bias
        assert bias is not None
        with torch.no_grad():
            bias[0] = wanted[self.settings.coding]

    def stored(self) -> nn.Module:
        """The head."""
        return self.head

    def _check(self, images: int, size: tuple[int, int], intrinsics: Tensor | None, cam2base: Tensor | None) -> None:
        coding = self.settings.coding
        if intrinsics is None and (coding != "sigmoid" or cam2base is not None):
            raise SettingError(f"Depth coded as {coding!r} needs the intrinsics: pass intrinsics=[b 3 3].")
        if cam2base is None and coding == "support":
            raise SettingError("Depth coded as 'support' is measured from planes: pass cam2base=[b 4 4].")
        if torch.compiler.is_compiling():
            return
        check_calibration([images], size, intrinsics, cam2base=cam2base)

    def _rays(
        self,
        tokens: Tokens,
        size: tuple[int, int],
        intrinsics: Tensor | None,
        cam2base: Tensor | None,
        posed: Tensor | None,
    ) -> Tensor:
        empty = tokens.patches.new_zeros(tokens.patches.shape[0], RAY_CHANNELS, *tokens.grid, dtype=torch.float32)
        if intrinsics is None or cam2base is None:
            return empty
        known = torch.ones_like(empty[:, :1])
        full = torch.cat([base_rays(intrinsics.to(empty), cam2base.to(empty), size, tokens.grid), known], dim=1)
        return full if posed is None else torch.where(posed[:, None, None, None].to(empty.device), full, empty)

    def log_depth(self, answer: Tensor, intrinsics: Tensor | None, cam2base: Tensor | None) -> Tensor:
        """Turn the head's numbers [b c h w] into log metres [b h w], for "canonical" and "support"."""
        settings = self.settings
        assert intrinsics is not None
        k = intrinsics.to(answer)
        focal = (k[:, 0, 0] * k[:, 1, 1]).sqrt()
        log_depth = answer[:, 0] + (focal / settings.focal).log()[:, None, None]
        if settings.coding == "support":
            assert cam2base is not None
            log_depth = lean_on_planes(
                log_depth,
                answer[:, 2:],
                settings.support_heights,
                intrinsics=k,
                cam2base=cam2base.to(answer),
                farthest=settings.max_depth,
            )
        return log_depth


def load_depth(
    folder: str | Path, *, encoder: Encoder | None = None, device: torch.device | str | None = None
) -> DepthModel:
    """Load what ``DepthModel.save_pretrained`` wrote, in evaluation mode.

    Args:
        folder: The folder.
        encoder: The encoder, if it is in memory already, such as a policy's; loaded by its name when absent.
        device: Where the model lives; where the encoder does when absent.

    Raises:
        CheckpointError: Files that are missing, damaged or of another kind, or another encoder.
        UnknownNameError: The encoder that it names is not to be found.
    """
    return DepthModel.load(folder, encoder=encoder, device=device)
