import subprocess
import sys

import mujoco
import numpy as np
import pytest

from lerobot_env_pixio import ManipulationEnv, check_rendering, make_env
from pixio_robot.errors import RenderError


@pytest.mark.parametrize("camera", ["corner", "corner2", "corner3"])
def test_cameras_are_right_side_up(camera: str) -> None:
    """Of two points, the one that is higher in the world is higher in the image."""
    env = make_env("metaworld", "reach-v3", cameras=(camera,), size=32)
    env.reset(seed=0)
    intrinsics, pose = env.cameras.intrinsics(camera), env.cameras.cam2world(camera)
    points = np.array([[0, 0.6, 0.0, 1], [0, 0.6, 0.3, 1]])
    low, high = (np.linalg.inv(pose) @ points.T)[:3].T
    assert (intrinsics @ high)[1] / high[2] < (intrinsics @ low)[1] / low[2]


def test_the_floor_of_corner2_is_below_its_sky(env: ManipulationEnv) -> None:
    env.reset(seed=0)
    depth = env.cameras.depth("corner2")
    assert (depth[0] > 10).any()  # sky
    assert (depth[-1] < 10).all()


@pytest.mark.parametrize("camera", ["corner2", "gripperPOV"])
def test_depth_and_calibration_agree_with_rays_cast_through_the_physics(env: ManipulationEnv, camera: str) -> None:
    env.reset(seed=4)
    env.act(np.zeros(4, np.float32))
    model, data = env.simulation.model, env.simulation.data
    depth = env.cameras.depth(camera)
    inverse, pose = np.linalg.inv(env.cameras.intrinsics(camera)), env.cameras.cam2world(camera)
    errors = []
    for row in range(1, depth.shape[0], 7):
        for column in range(1, depth.shape[1], 7):
            ray = inverse @ (column + 0.5, row + 0.5, 1)  # z = 1, so that the ray's length counts depth
            hit, normal = np.zeros(1, np.int32), np.zeros(3)
            shown = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # the groups of geoms that the renderer draws
            distance = mujoco.mj_ray(model, data, pose[:3, 3], pose[:3, :3] @ ray, shown, 1, -1, hit, normal)
            if distance >= 0:
                errors.append(abs(distance - depth[row, column]))
    assert len(errors) > 30
    assert np.median(errors) < 1e-4  # metres; the few others lie on edges
    assert np.quantile(errors, 0.9) < 1e-3


def test_full_quality_shows_more_than_fast(env: ManipulationEnv) -> None:
    full = make_env("metaworld", "pick-place-v3", size=(48, 64), render="full")
    pictures = [made.reset(seed=2)[0]["pixels"]["corner2"] for made in (env, full)]
    full.close()
    assert (pictures[0] != pictures[1]).any()


def test_a_closed_renderer_opens_again(env: ManipulationEnv) -> None:
    first = env.reset(seed=2)[0]["pixels"]["corner2"]
    env.close()
    np.testing.assert_array_equal(env.observe()["pixels"]["corner2"], first)


def test_this_machine_renders() -> None:
    check_rendering()


def test_a_machine_without_gl_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(RenderError, match="sudo apt install libegl1"):
        check_rendering()


def test_a_program_that_renders_ends_in_silence() -> None:
    code = (
        "from lerobot_env_pixio import make_env\nenv = make_env('metaworld', 'reach-v3', size=16)\nenv.reset(seed=0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == ""
