"""Everything from one look: a policy's tokens, depth and points, from one encoder pass per frame and camera."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pixio_robot.encoder import Encoder
from pixio_robot.errors import SettingError, UnknownNameError
from pixio_robot.geometry.cameras import resize_intrinsics, transform, unproject
from pixio_robot.geometry.depth import Depth, DepthModel
from pixio_robot.geometry.taps import shared_blocks
from pixio_robot.images import resize
from pixio_robot.tokens import Tokens

KEPT = 2
"""Moments that are remembered: this one and the last, which a policy with history asks for."""


class Calibration(NamedTuple):
    """What is known of a camera.

    Attributes:
        intrinsics: Pinhole matrix [3 3], in pixels of the images that are given.
        cam2base: Pose [4 4]; None if unknown.
    """

    intrinsics: Tensor
    cam2base: Tensor | None = None


class Seen(NamedTuple):
    """One camera's image, encoded.

    Attributes:
        given: (height, width) in pixels of the image as it was given.
        last: Tokens of the last block, as ``Encoder.__call__`` gives: what a policy's adapter reads.
        taps: Tokens of the blocks that the depth head reads.
        image: What was encoded, [1 3 h w].
    """

    given: tuple[int, int]
    last: Tokens
    taps: list[Tokens]
    image: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels at which it was encoded."""
        return self.image.shape[-2], self.image.shape[-1]


class Perception:
    """Answers policy, depth and points from the same encoder pass, which runs once per frame and camera.

    A frame is known by a key of the caller's, such as its time stamp: asked again under the same key, nothing is
    encoded. Answers are computed when they are asked for, so a policy that ignores depth does not pay for it.

    Args:
        encoder: The encoder that all share.
        adapter: What turns the tokens of all cameras, in order, into a policy's input; without it, ``policy`` is
            refused.
        depth: A depth model on this very encoder; without it, ``depth`` and ``points`` are refused.
        size: (height, width) to which images are resized before they are encoded; as they are when absent.
            Calibrations stay those of the images that are given.

    Raises:
        SettingError: The depth model is on another encoder.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        adapter: Callable[[Sequence[Tokens]], Tensor] | None = None,
        depth: DepthModel | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.encoder, self._adapter, self._depth, self._size = encoder, adapter, depth, size
        self._last, self._blocks = encoder.spec.depth - 1, shared_blocks(encoder, depth)
        self._seen: OrderedDict[tuple[Hashable, str], Seen] = OrderedDict()

    def see(self, frame: Hashable, images: Mapping[str, Tensor]) -> dict[str, Seen]:
        """Encode what has not been encoded yet; cameras of one size and type share a batch.

        Args:
            frame: What the frame is known by; the same for all cameras of one moment.
            images: By camera, RGB [3 h w], uint8 or float in [0, 1].

        Returns:
            By camera.

        Raises:
            ImageError: Images that cannot be encoded.
        """
        new = {name: image for name, image in images.items() if (frame, name) not in self._seen}
        resized = {name: resize(image[None], self._size) for name, image in new.items()}
        kinds = {name: (image.shape, image.dtype) for name, image in resized.items()}
        for kind in dict.fromkeys(kinds.values()):
            names = [name for name in kinds if kinds[name] == kind]
            batch = torch.cat([resized[name] for name in names])
            found = dict(zip(self._blocks, self.encoder.intermediate(batch, blocks=self._blocks), strict=True))
            for number, name in enumerate(names):
                one = {block: _pick(tokens, number) for block, tokens in found.items()}
                taps = [one[block] for block in self._depth.taps] if self._depth else []
                given = new[name].shape[-2], new[name].shape[-1]
                self._seen[frame, name] = Seen(given, one[self._last], taps, resized[name])
        self._forget(frame)
        return {name: self._seen[frame, name] for name in images}

    def policy(self, frame: Hashable, images: Mapping[str, Tensor]) -> Tensor:
        """Give what a policy reads of this moment's cameras, in the order in which they are given.

        Raises:
            SettingError: There is no adapter.
            ImageError: Images that cannot be encoded.
        """
        if self._adapter is None:
            raise SettingError("There is no adapter: Perception(encoder, adapter=...) makes a policy's input.")
        return self._adapter([seen.last for seen in self.see(frame, images).values()])

    @torch.no_grad()
    def depth(
        self, frame: Hashable, images: Mapping[str, Tensor], cameras: Mapping[str, Calibration] | None = None
    ) -> dict[str, Depth]:
        """Give depth by camera, [1 h w] at the size at which images are encoded.

        Args:
            frame: As for ``see``.
            images: As for ``see``.
            cameras: Calibrations by camera, of the images as they are given.

        Raises:
            SettingError: There is no depth model, or it needs a calibration that is missing.
            UnknownNameError: A calibration of a camera that is not among the images.
            DataError: A calibration that cannot be.
            ImageError: Images that cannot be encoded.
        """
        if self._depth is None:
            raise SettingError("There is no depth model: Perception(encoder, depth=load_depth(..., encoder=encoder)).")
        cameras = cameras or {}
        for name in cameras:
            if name not in images:
                raise UnknownNameError("camera among the images", name, images)
        found = {}
        for name, seen in self.see(frame, images).items():
            known = self._calibration(cameras[name], seen) if name in cameras else (None, None)
            found[name] = self._depth.from_tokens(seen.taps, seen.size, *known, images=seen.image)
        return found

    def points(
        self, frame: Hashable, images: Mapping[str, Tensor], cameras: Mapping[str, Calibration]
    ) -> dict[str, Tensor]:
        """Give every pixel's point by camera, [h w 3] in metres.

        They are in the base frame where the pose is known, else in the camera's own. Arguments and errors are those of
        ``depth``; every camera needs its calibration.
        """
        missing = [name for name in images if name not in cameras]
        if missing:
            raise SettingError(f"Points need the intrinsics of every camera; missing: {', '.join(missing)}.")
        found = {}
        for name, depth in self.depth(frame, images, cameras).items():
            intrinsics, cam2base = self._calibration(cameras[name], self._seen[frame, name])
            cloud = unproject(depth.depth, intrinsics)
            found[name] = (cloud if cam2base is None else transform(cam2base, cloud))[0]
        return found

    def _calibration(self, camera: Calibration, seen: Seen) -> tuple[Tensor, Tensor | None]:
        """Carry a calibration [1 ...] along to the size at which the image was encoded."""
        device = next(self.encoder.parameters()).device
        intrinsics = resize_intrinsics(camera.intrinsics, seen.given, seen.size)[None].to(device, torch.float32)
        return intrinsics, None if camera.cam2base is None else camera.cam2base[None].to(device, torch.float32)

    def _forget(self, frame: Hashable) -> None:
        """Keep the ``KEPT`` moments that were seen last."""
        moments = list(dict.fromkeys(moment for moment, _ in self._seen))
        for key in [key for key in self._seen if key[0] in moments[:-KEPT] and key[0] != frame]:
            del self._seen[key]


def _pick(tokens: Tokens, number: int) -> Tokens:
    return tokens.map(lambda part: part[number : number + 1])
