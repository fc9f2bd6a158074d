"""NYUv2 and KITTI: an image and its depth in metres."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_pretrain.evaluation.sets.layout import Layout, describe
from pixio_pretrain.evaluation.sets.pairs import PairedSet

Box = tuple[int, int, int, int]
"""top, bottom, left, right, in pixels; the ends are outside."""

EIGEN: Box = (45, 471, 41, 601)
"""The part of a 480 x 640 frame of NYUv2 where Kinect's projection leaves no border (arXiv 1406.2283)."""


class DepthSet(PairedSet):
    """Images with depth. Arguments and errors are those of ``PairedSet``.

    Attributes:
        scale: Numbers of the stored PNG per metre.
        max_depth: What is farther does not count, metres.
    """

    scale: ClassVar[float]
    max_depth: ClassVar[float]

    def sample(self, index: int) -> tuple[Image.Image, NDArray[np.float32]]:
        """One sample.

        Returns:
            The image, RGB, and depth in metres [h w], 0 where it is unknown.

        Raises:
            DataError: If a file cannot be decoded, or sizes differ.
        """
        image, stored = self._read(index)
        return image, stored.astype(np.float32) / self.scale

    def garg_box(self, size: tuple[int, int]) -> Box | None:
        """The box of pixels that Garg et al. (arXiv 1603.04992) evaluate, of a map [h w]; None where there is none."""
        del size
        return None

    def describe(self) -> dict[str, Any]:
        """Which samples they are."""
        return describe(self.layout.name, self.part, [image for image, _ in self.pairs])


class NYUv2(DepthSet):
    """Indoor frames of a Kinect, 480 x 640, as prepared for BTS."""

    layout = Layout(
        name="NYUv2",
        counts={"train": 24_231, "val": 654},
        tree="""
ROOT/nyudepthv2_train_files_with_gt.txt       lines "bathroom_0001/rgb_00000.jpg bathroom_0001/sync_depth_00000.png ..."
ROOT/sync/bathroom_0001/rgb_00000.jpg         480 x 640
ROOT/sync/bathroom_0001/sync_depth_00000.png  16 bit, millimetres
ROOT/official_splits/test/bathroom/rgb_00045.jpg
ROOT/official_splits/test/bathroom/sync_depth_00045.png
""",
    )
    scale = 1000.0
    max_depth = 10.0

    def _find(self) -> list[tuple[str, str]]:
        if self.part == "train":
            lines = self.layout.read_list(self.root, "nyudepthv2_train_files_with_gt.txt")
            return [
                (f"sync/{image.lstrip('/')}", f"sync/{depth.lstrip('/')}") for image, depth, *_ in map(str.split, lines)
            ]
        images = sorted(self.root.glob("official_splits/test/*/rgb_*.jpg"))
        names = [image.relative_to(self.root).as_posix() for image in images]
        return [(name, name.replace("/rgb_", "/sync_depth_").replace(".jpg", ".png")) for name in names]


class KITTI(DepthSet):
    """Road scenes with the depth that KITTI's authors accumulated from laser scans, in Eigen's split."""

    layout = Layout(
        name="KITTI",
        counts={"train": 23_158, "val": 652},
        tree="""
ROOT/kitti_eigen_train_files_with_gt.txt      lines "DATE/DRIVE/image_02/data/0000000005.png
ROOT/kitti_eigen_test_files_with_gt.txt              DRIVE/proj_depth/groundtruth/image_02/0000000005.png 721.5377"
ROOT/raw/2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png
ROOT/depth/train/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/0000000005.png   16 bit, metres * 256
ROOT/depth/val/2011_09_26_drive_0002_sync/...
""",
    )
    scale = 256.0
    max_depth = 80.0

    def _find(self) -> list[tuple[str, str]]:
        name = {"train": "train", "val": "test"}[self.part]
        lines = self.layout.read_list(self.root, f"kitti_eigen_{name}_files_with_gt.txt")
        pairs = [tuple(line.split()[:2]) for line in lines]
        known = [(image, depth) for image, depth in pairs if depth != "None"]  # of 697 frames, 45 have no depth
        home = {
            drive.name: folder
            for folder in ("train", "val")
            if (self.root / "depth" / folder).is_dir()
            for drive in (self.root / "depth" / folder).iterdir()
        }
        return [
            (f"raw/{image}", f"depth/{home.get(depth.partition('/')[0], 'train')}/{depth}") for image, depth in known
        ]

    def garg_box(self, size: tuple[int, int]) -> Box | None:
        """The box of pixels that are evaluated in Garg's crop."""
        h, w = size
        return int(0.40810811 * h), int(0.99189189 * h), int(0.03594771 * w), int(0.96405229 * w)


DEPTH_SETS: dict[str, type[DepthSet]] = {"nyuv2": NYUv2, "kitti": KITTI}
