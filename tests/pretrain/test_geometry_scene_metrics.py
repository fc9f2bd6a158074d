import numpy as np
import pytest

from pixio_pretrain.geometry.robot_metrics import f_scores, inside_box, point_errors, sparsification
from pixio_pretrain.geometry.scene_metrics import Views, auc, camera_errors, pose_errors, scene_metrics
from pixio_robot.errors import DataError

random = np.random.default_rng(0)


def rotation(axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def scene(views: int = 3) -> Views:
    """Cameras that look from all around at random depth maps."""
    poses, points = np.tile(np.eye(4), (views, 1, 1)), []
    depth = random.uniform(0.5, 2, size=(views, 6, 7))
    rays = np.concatenate([random.uniform(-0.5, 0.5, size=(6, 7, 2)), np.ones((6, 7, 1))], axis=-1)
    for pose, one in zip(poses, depth, strict=True):
        pose[:3, :3] = rotation(tuple(random.normal(size=3)), 40)
        pose[:3, 3] = random.normal(size=3)
        points.append(rays * one[..., None] @ pose[:3, :3].T + pose[:3, 3])
    return Views(np.stack(points), depth, poses)


def moved(views: Views, *, scale: float = 1.0, turn: np.ndarray | None = None) -> Views:
    """The same scene, seen in another frame, or larger."""
    turn = np.eye(3) if turn is None else turn
    shift = np.array([1.0, -2, 3])
    poses = np.array(views.cam2world)
    poses[:, :3, :3] = turn @ poses[:, :3, :3]
    poses[:, :3, 3] = scale * poses[:, :3, 3] @ turn.T + shift
    return Views(scale * np.asarray(views.points) @ turn.T + shift, scale * np.asarray(views.depth), poses)


TRUTH = scene()
VALID = np.ones((3, 6, 7), bool)
PERFECT = {
    "scale_rel": 0,
    "points_rel": 0,
    "points_tau": 100,
    "pose_auc5": 100,
    "pose_auc30": 100,
    "depth_rel": 0,
    "depth_tau": 100,
}


def test_the_truth_scores_perfectly_in_whatever_frame() -> None:
    assert scene_metrics(TRUTH, TRUTH, VALID) == pytest.approx(PERFECT, abs=1e-6)
    elsewhere = moved(TRUTH, turn=rotation((1, 2, 3), 70))
    assert scene_metrics(elsewhere, TRUTH, VALID) == pytest.approx(PERFECT, abs=1e-6)


def test_a_scaled_scene_moves_the_scale_alone() -> None:
    assert scene_metrics(moved(TRUTH, scale=1.2), TRUTH, VALID) == pytest.approx(PERFECT | {"scale_rel": 0.2}, abs=1e-6)


def test_points_turned_about_the_first_camera_stay_inliers() -> None:
    first = np.asarray(TRUTH.cam2world)[0, :3, 3]
    turned = (np.asarray(TRUTH.points) - first) @ rotation((0, 1, 0), 20).T + first
    found = scene_metrics(TRUTH._replace(points=turned), TRUTH, VALID)
    assert found["points_tau"] == 100
    assert found["points_rel"] > 0.1


def test_a_flipped_baseline_leaves_the_poses_score() -> None:
    poses = np.array(TRUTH.cam2world)[:2]
    flipped = poses.copy()
    flipped[1, :3, 3] = 2 * poses[0, :3, 3] - poses[1, :3, 3]
    two = Views(np.asarray(TRUTH.points)[:2], np.asarray(TRUTH.depth)[:2], poses)
    found = scene_metrics(two._replace(cam2world=flipped), two, VALID[:2])
    assert found["pose_auc5"] == 100


def test_poses_are_compared_by_angle_in_bins_of_a_degree() -> None:
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, 0, 3] = 1
    wrong = poses.copy()
    wrong[1, :3, :3] = rotation((0, 0, 1), 2.5)
    turned, direction = pose_errors(wrong, poses)
    np.testing.assert_allclose(turned, [2.5], atol=1e-6)
    np.testing.assert_allclose(direction, [0], atol=1e-6)
    assert auc(turned, 5) == pytest.approx(60)
    assert auc(np.array([0.5, 7.0]), 5) == pytest.approx(50)
    wrong = poses.copy()
    wrong[1, :3, 3] = 0
    assert pose_errors(wrong, poses)[1] == pytest.approx([90])
    assert pose_errors(wrong, wrong)[1] == pytest.approx([0])


def test_cameras_are_off_by_angle_and_distance_as_view_0_sees_them() -> None:
    poses = np.array(TRUTH.cam2world)
    poses[1, :3, :3] = poses[1, :3, :3] @ rotation((0, 1, 0), 7)
    poses[2, :3, 3] += [0.03, 0, -0.04]
    for said in (poses, moved(TRUTH._replace(cam2world=poses), turn=rotation((1, 2, 3), 50)).cam2world):
        turned, off = camera_errors(said, TRUTH.cam2world)
        np.testing.assert_allclose(turned, [7, 0], atol=1e-4)
        np.testing.assert_allclose(off, [0, 0.05], atol=1e-9)


def test_pixels_that_are_not_valid_do_not_count() -> None:
    points, valid = np.array(TRUTH.points), VALID.copy()
    points[1, 2, 3] += 100
    valid[1, 2, 3] = False
    assert scene_metrics(TRUTH._replace(points=points), TRUTH, valid) == pytest.approx(PERFECT, abs=1e-6)


def test_scenes_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(DataError, match="at least two"):
        scene_metrics(TRUTH, TRUTH, VALID[:1])
    with pytest.raises(DataError, match="depth of the prediction"):
        scene_metrics(TRUTH._replace(depth=np.ones((3, 6, 6))), TRUTH, VALID)
    with pytest.raises(DataError, match="no valid pixel"):
        scene_metrics(TRUTH, TRUTH, VALID & (np.arange(3) > 0)[:, None, None])


def test_centimetres_are_counted_by_region() -> None:
    truth = random.normal(size=(20, 30, 3))
    prediction = truth + np.array([0.03, 0, 0])
    prediction[:5] += np.array([0, 0.04, 0])
    gripper = np.zeros((20, 30), bool)
    gripper[:5] = True
    found = point_errors(prediction, truth, np.ones((20, 30)), regions={"gripper": gripper, "none": gripper & False})
    assert found["median_cm"] == pytest.approx(3)
    assert found["gripper_median_cm"] == pytest.approx(5)
    assert found["p95_cm"] == pytest.approx(5)
    assert found["mean_cm"] == pytest.approx(3.5)
    assert np.isnan(found["none_median_cm"])
    with pytest.raises(DataError, match="nothing to measure"):
        point_errors(prediction, truth, gripper & False)


def test_a_box_holds_what_is_inside() -> None:
    assert inside_box(np.array([[0, 0, 0], [0, 0, 2.0]]), (-1, -1, -1), (1, 1, 1)).tolist() == [True, False]


def test_clouds_are_compared_by_precision_and_recall() -> None:
    grid = np.stack(np.meshgrid(*3 * [np.arange(0, 1, 0.2)]), axis=-1).reshape(-1, 3)
    assert f_scores(grid, grid) == {"f_1cm": 1, "f_2cm": 1, "f_5cm": 1}
    off = grid + np.array([0.015, 0, 0])
    assert f_scores(off, grid) == {"f_1cm": 0, "f_2cm": 1, "f_5cm": 1}
    half = f_scores(grid[: len(grid) // 2], grid[: 2 * (len(grid) // 2)])
    assert half["f_1cm"] == pytest.approx(2 * 1 * 0.5 / 1.5)
    with pytest.raises(DataError, match="Clouds of 0"):
        f_scores(grid[:0], grid)


def test_a_perfect_confidence_has_no_area_and_a_reversed_one_a_large_one() -> None:
    errors = random.exponential(size=1000)
    perfect, reverse = sparsification(errors, -errors), sparsification(errors, errors)
    assert perfect.ause == pytest.approx(0, abs=1e-12)
    assert perfect.error[0] == pytest.approx(errors.mean())
    assert (np.diff(perfect.error) < 0).all()
    assert reverse.ause > 1
    assert 0.2 < sparsification(errors, random.normal(size=1000)).ause < reverse.ause
