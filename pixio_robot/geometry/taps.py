"""After which of an encoder's blocks one pass is read, so that all who read share it."""

from typing import TYPE_CHECKING

from pixio_robot.encoder import Encoder
from pixio_robot.errors import SettingError

if TYPE_CHECKING:
    from pixio_robot.geometry.depth import DepthModel


def taps_of(encoder: Encoder, count: int) -> list[int]:
    """Say after which blocks a head of ``count`` taps reads: evenly spaced, the last one included, counted from 0.

    Raises:
        SettingError: The encoder has fewer blocks.
    """
    depth = encoder.spec.depth
    if not 1 <= count <= depth:
        raise SettingError(f"{count} taps of an encoder of {depth} blocks; choose from 1 to {depth}.")
    return [depth * (number + 1) // count - 1 for number in range(count)]


def shared_blocks(encoder: Encoder, depth: "DepthModel | None") -> list[int]:
    """Say after which blocks one pass must be read, for tokens (the last one) and depth alike, counted from 0.

    Raises:
        SettingError: The depth model is on another encoder.
    """
    if depth is not None and depth.encoder is not encoder:
        raise SettingError(
            "The depth model is on another encoder, so it would need a pass of its own: "
            "load_depth(folder, encoder=encoder) puts it on this one."
        )
    return sorted({encoder.spec.depth - 1, *(depth.taps if depth is not None else ())})
