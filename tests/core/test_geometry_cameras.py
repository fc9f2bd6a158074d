import math
from typing import Any

import pytest
import torch

from pixio_robot.errors import DataError
from pixio_robot.geometry import cameras

SIZE = (30, 40)


def intrinsics(fx: float = 50.0, fy: float = 48.0) -> torch.Tensor:
    return torch.tensor([[fx, 0, 21.0], [0, fy, 14.0], [0, 0, 1]], dtype=torch.float64)


def pose(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    made = torch.eye(4, dtype=torch.float64)
    made[:3, :3] = rotation * torch.linalg.det(rotation)
    made[:3, 3] = torch.randn(3, dtype=torch.float64, generator=generator)
    return made


def test_points_project_to_where_they_came_from() -> None:
    depth = 0.3 + torch.rand(2, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k = torch.stack([intrinsics(), intrinsics(70, 71)])
    pixels, found = cameras.project(cameras.unproject(depth, k), k)
    torch.testing.assert_close(found, depth)
    torch.testing.assert_close(pixels, cameras.pixel_centers(SIZE, like=k).expand_as(pixels))


def test_the_principal_point_looks_straight_ahead_and_pixels_are_counted_from_their_corner() -> None:
    k = torch.tensor([[10.0, 0, 2.5], [0, 10, 1.5], [0, 0, 1]])
    seen = cameras.rays(k, (4, 5))
    torch.testing.assert_close(seen[1, 2], torch.tensor([0.0, 0, 1]))
    torch.testing.assert_close(seen[0, 0], torch.tensor([-0.2, -0.1, 1]))


def test_a_pose_and_its_inverse_cancel() -> None:
    poses = torch.stack([pose(1), pose(2)])
    points = torch.randn(2, *SIZE, 3, dtype=torch.float64)
    there = cameras.transform(poses, points)
    assert not torch.allclose(there, points)
    torch.testing.assert_close(cameras.transform(cameras.invert(poses), there), points)
    torch.testing.assert_close(cameras.invert(poses), torch.linalg.inv(poses))


def test_a_calibration_follows_its_image_through_crop_and_resize() -> None:
    point = torch.tensor([[[0.1, -0.05, 0.8]]], dtype=torch.float64)
    pixel, _ = cameras.project(point, intrinsics())
    cropped, _ = cameras.project(point, cameras.crop_intrinsics(intrinsics(), top=3, left=5))
    torch.testing.assert_close(cropped, pixel - torch.tensor([5.0, 3.0]).double())
    resized, _ = cameras.project(point, cameras.resize_intrinsics(intrinsics(), SIZE, (60, 20)))
    torch.testing.assert_close(resized, pixel * torch.tensor([0.5, 2.0]).double())


def test_the_ray_of_a_cell_passes_through_the_point_at_its_centre() -> None:
    k, cam2base = intrinsics()[None], pose()[None]
    ray = cameras.base_rays(k, cam2base, SIZE, (3, 4))[0]
    centre = torch.tensor([[[15.0, 25.0]]]).double()  # of row 2, column 1
    points = torch.cat([(centre - k[0, :2, 2]) / k[0].diagonal()[:2], torch.ones(1, 1, 1).double()], dim=-1)
    seen = cameras.transform(cam2base[0], 0.7 * points)[0, 0] - ray[:3, 2, 1]
    torch.testing.assert_close(seen / seen.norm(), ray[3:, 2, 1])


def test_the_plane_is_met_at_its_height_and_not_above_the_horizon() -> None:
    looking_down = torch.eye(4, dtype=torch.float64)
    angle = math.radians(100)  # 10 degrees below the horizon
    looking_down[:3, :3] = torch.tensor(
        [[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]]
    ) * torch.tensor([1, -1, -1])
    looking_down[2, 3] = 0.5
    depth = cameras.plane_depth(intrinsics(), looking_down, SIZE, height=0.1)
    points = cameras.transform(looking_down, cameras.unproject(depth.nan_to_num(posinf=1.0), intrinsics()))
    met = depth.isfinite()
    assert met.any()
    assert not met.all()
    torch.testing.assert_close(points[..., 2][met], torch.full_like(depth, 0.1)[met])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.eye(4), r"\[\.\.\. 3 3\], not \[4, 4\]"),
        (torch.zeros(3, 3), "singular"),
        (intrinsics().mT, "transposed"),
        (intrinsics() * float("nan"), "NaN"),
        (intrinsics() + torch.tensor([[0, 4.0, 0], [0, 0, 0], [0, 0, 0]]), "skew"),
        (intrinsics(0.05, 0.05), "degrees"),
        (intrinsics(5000, 5000), "resize_intrinsics"),
    ],
)
def test_intrinsics_that_cannot_be_are_refused(wrong: torch.Tensor, said: str) -> None:
    cameras.check_intrinsics(intrinsics(), SIZE)
    with pytest.raises(DataError, match=said):
        cameras.check_intrinsics(wrong, SIZE)


def changed(**entries: Any) -> torch.Tensor:
    made = pose()
    made[:3, :3] *= entries.get("scale", 1.0)
    made[:3, 0] *= entries.get("mirror", 1.0)
    made[3, 0] = entries.get("last", 0.0)
    made[0, 3] = entries.get("x", 1.0)
    return made


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (pose()[:3], r"\[3, 4\]"),
        (changed(scale=1.1), "no rotation"),
        (changed(mirror=-1.0), "mirrors"),
        (changed(last=1.0), "last row"),
        (changed(x=float("inf")), "infinity"),
    ],
)
def test_poses_that_are_not_rigid_are_refused(wrong: torch.Tensor, said: str) -> None:
    cameras.check_poses(pose())
    with pytest.raises(DataError, match=said):
        cameras.check_poses(wrong)
