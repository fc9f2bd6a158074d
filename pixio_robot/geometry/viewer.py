"""Cameras, depth and points in rerun's viewer (https://rerun.io), where it is installed."""

import importlib
from collections.abc import Mapping

from torch import Tensor

from pixio_robot.errors import SettingError
from pixio_robot.geometry.perception import Calibration


def show(
    images: Mapping[str, Tensor],
    cameras: Mapping[str, Calibration],
    *,
    depth: Mapping[str, Tensor],
    points: Tensor,
    colors: Tensor,
    name: str = "pixio-robot",
) -> None:
    """Log one moment to rerun, and open its viewer.

    Args:
        images: By camera, uint8 RGB [3 h w].
        cameras: Calibrations of those images; poses that are not known stand at the origin.
        depth: By camera, metres [h w].
        points: [n 3], in the base frame, metres.
        colors: uint8 [n 3].
        name: Of the recording.

    Raises:
        SettingError: rerun is not installed.
    """
    try:
        rr = importlib.import_module("rerun")
    except ImportError as error:
        raise SettingError("The viewer needs rerun: pip install rerun-sdk. The cloud is in the PLY, too.") from error
    rr.init(name, spawn=True)
    rr.log("base", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    rr.log("base/cloud", rr.Points3D(points.numpy(), colors=colors.numpy(), radii=0.002))
    for camera, image in images.items():
        known, (height, width) = cameras[camera], image.shape[-2:]
        if known.cam2base is not None:
            pose = known.cam2base.numpy()
            rr.log(f"base/{camera}", rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        pinhole = {"image_from_camera": known.intrinsics.numpy(), "width": width, "height": height}
        rr.log(f"base/{camera}", rr.Pinhole(**pinhole, camera_xyz=rr.ViewCoordinates.RDF))
        rr.log(f"base/{camera}/image", rr.Image(image.permute(1, 2, 0).numpy()))
        rr.log(f"base/{camera}/depth", rr.DepthImage(depth[camera].numpy(), meter=1.0))
