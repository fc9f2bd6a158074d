import subprocess
import sys

import mujoco
import numpy as np
import pytest

from lerobot_env_pixio import ManipulationEnv, check_rendering, make_env
from pixio_robot.errors import RenderError, SettingError

UPRIGHT = [
    ("metaworld", "reach", ("corner", "corner2", "corner3", "behindGripper")),
    ("adroit", "door", ("vil_camera", "fixed")),
    ("dmcontrol", "walker-walk", ("side", "back")),
    ("dmcontrol", "cheetah-run", ("side", "back")),
    ("dmcontrol", "finger-spin", ("cam0", "cam1")),
    ("aloha", "insertion", ("angle", "front_close", "left_pillar", "right_pillar", "left_wrist", "right_wrist")),
]
"""Every camera that does not look straight down, where there is no up."""


@pytest.mark.parametrize(("suite", "task", "cameras"), UPRIGHT)
def test_cameras_are_right_side_up(suite: str, task: str, cameras: tuple[str, ...]) -> None:
    """Of two points on a camera's axis, one raised, the raised one is higher in the image."""
    env = make_env(suite, task, cameras=cameras, size=32)
    env.reset(seed=0)
    for camera in cameras:
        intrinsics, pose = env.cameras.intrinsics(camera), env.cameras.cam2world(camera)
        ahead = pose @ (0, 0, 1, 1)
        points = ahead + np.array([[0, 0, 0, 0], [0, 0, 0.1, 0]])
        low, high = (np.linalg.inv(pose) @ points.T)[:3].T
        assert (intrinsics @ high)[1] / high[2] < (intrinsics @ low)[1] / low[2] - 0.1, camera
    env.close()


@pytest.mark.parametrize(
    ("suite", "task", "cameras"), [*UPRIGHT, ("metaworld", "door-open", ("corner2", "gripperPOV"))]
)
def test_leaving_out_what_is_out_of_view_changes_no_pixel(
    suite: str, task: str, cameras: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out: set[str] = set()
    env = make_env(suite, task, cameras=cameras, size=(48, 72), shift="strong")
    simulation, random = env.simulation, np.random.default_rng(0)
    groups = simulation.model.geom_group.copy()
    for seed in range(2):
        env.reset(seed=seed)
        for _ in range(10):
            env.act((simulation.rest + simulation.noise * random.normal(size=env.action_size)).astype(np.float32))
        for camera in cameras:
            ours, depth = env.cameras.color(camera), env.cameras.depth(camera)
            left_out |= {camera} if env.cameras._out_of_view(camera).any() else set()
            with monkeypatch.context() as patched:
                patched.setattr(env.cameras, "_out_of_view", lambda _: np.zeros(len(groups), bool))
                assert np.array_equal(ours, env.cameras.color(camera)), camera
                assert np.array_equal(depth, env.cameras.depth(camera)), camera
    assert np.array_equal(env.simulation.model.geom_group, groups)
    assert left_out >= {camera for camera in cameras if camera in ("gripperPOV", "left_wrist", "right_wrist")}
    env.close()


@pytest.mark.parametrize(
    ("suite", "task", "body"),
    [
        ("metaworld", "pick-place", "obj"),
        ("adroit", "relocate", "Object"),
        ("dmcontrol", "finger-spin", "spinner"),
        ("aloha", "transfer-cube", "box"),
    ],
)
def test_segmentation_depth_and_calibration_agree_on_where_a_body_is(suite: str, task: str, body: str) -> None:
    env = make_env(suite, task, size=(96, 128))
    env.reset(seed=1)
    name = env.cameras.names[0]
    bodies, depth = env.cameras.segmentation(name), env.cameras.depth(name)
    number = next(index for index, known in env.cameras.bodies.items() if known == body)
    rows, columns = np.nonzero(bodies == number)
    assert len(rows) > 5
    rays = np.linalg.inv(env.cameras.intrinsics(name)) @ np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))])
    points = env.cameras.cam2world(name) @ np.vstack([rays * depth[rows, columns], np.ones(len(rows))])
    nearest = np.abs(points[:3].mean(axis=1) - env.simulation.data.body(body).xpos)
    env.close()
    assert nearest.max() < 0.08  # metres; one sees its near side


def test_every_camera_has_its_own_size() -> None:
    sizes = {"corner2": (24, 32), "gripperPOV": 16}
    env = make_env("metaworld", "reach", size=sizes)
    observation, _ = env.reset(seed=0)
    assert {name: picture.shape for name, picture in observation["pixels"].items()} == {
        "corner2": (24, 32, 3),
        "gripperPOV": (16, 16, 3),
    }
    assert env.observation_space.contains(observation)
    assert env.cameras.intrinsics("gripperPOV")[0, 2] == 8
    assert env.cameras.depth("corner2").shape == (24, 32)
    again = make_env(**env.settings)
    alone = make_env("metaworld", "reach", cameras=["gripperPOV"], size=16)
    same = again.reset(seed=0)[0], alone.reset(seed=0)[0]
    for made in (env, again, alone):
        made.close()
    for other in same:
        np.testing.assert_array_equal(other["pixels"]["gripperPOV"], observation["pixels"]["gripperPOV"])


def test_sizes_of_other_cameras_are_refused() -> None:
    with pytest.raises(SettingError, match=r"\['corner2'\]; those in use are \['corner2', 'gripperPOV'\]"):
        make_env("metaworld", "reach", size={"corner2": 16})
    with pytest.raises(SettingError, match="height, width"):
        make_env("metaworld", "reach", size=(16, 16, 3))


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
