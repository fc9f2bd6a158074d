"""Changes of looks: each changes what it says, physics never, and the two splits share nothing."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lerobot_env_pixio import TASKS, ManipulationEnv, make_env
from lerobot_env_pixio.distractors import place
from lerobot_env_pixio.draws import Draws
from lerobot_env_pixio.shifts import SHIFTS
from lerobot_env_pixio.simulation import Ground
from lerobot_env_pixio.textures import PATTERNS, pixels, still_textures
from pixio_robot.errors import SettingError, UnknownNameError

ONE_EACH = [("metaworld", "reach-v3"), ("adroit", "pen"), ("dmcontrol", "walker-walk"), ("aloha", "insertion")]


@pytest.fixture(scope="module")
def plain() -> Iterator[ManipulationEnv]:
    env = make_env("metaworld", "hammer", cameras=["corner2"], size=64)
    yield env
    env.close()


@pytest.mark.parametrize(
    "level", [level if level == "all" else pytest.param(level, marks=pytest.mark.slow) for level in SHIFTS]
)
def test_every_level_changes_pictures_by_seed_and_never_the_physics(plain: ManipulationEnv, level: str) -> None:
    shifted = make_env("metaworld", "hammer", cameras=["corner2"], size=64, shift=level)
    own, one = plain.reset(seed=5)[0], shifted.reset(seed=5)[0]
    two = shifted.reset(seed=6)[0]
    again = shifted.reset(seed=5)[0]
    action = np.full(4, 0.3, np.float32)
    np.testing.assert_array_equal(plain.step(action)[0]["agent_pos"], shifted.step(action)[0]["agent_pos"])
    np.testing.assert_array_equal(plain.simulation.data.qpos, shifted.simulation.data.qpos)
    shifted.close()
    for picture in (own, two):
        assert (picture["pixels"]["corner2"] != one["pixels"]["corner2"]).mean() > 0.01
    np.testing.assert_array_equal(again["pixels"]["corner2"], one["pixels"]["corner2"])


@pytest.mark.parametrize(("suite", "task"), ONE_EACH)
def test_textures_and_distractors_show_in_every_suite(suite: str, task: str) -> None:
    pictures = []
    for shift in (None, "textures", "distractors"):
        env = make_env(suite, task, size=64, shift=shift)
        name = env.cameras.names[0]
        pictures.append(env.reset(seed=3)[0]["pixels"][name].astype(int))
        env.close()
    shares = [(np.abs(picture - pictures[0]).max(axis=-1) > 8).mean() for picture in pictures[1:]]
    assert shares[0] > 0.05
    assert 0 < shares[1] < 0.2  # they stand aside


def test_textures_change_what_stands_still_and_nothing_else(plain: ManipulationEnv) -> None:
    shifted = make_env("metaworld", "hammer", cameras=["corner2"], size=64, shift="textures")
    one, other = plain.simulation.model, shifted.simulation.model
    shifted.reset(seed=1)
    still = still_textures(other)
    names = {other.texture(texture).name for texture in still}
    assert {"T_table", "T_floor"} <= names
    for texture in range(other.ntex):
        assert (pixels(one, texture) != pixels(other, texture)).any() == (texture in still)
    shifted.close()


def test_a_repainted_table_reaches_a_renderer_that_is_already_open() -> None:
    """The first picture opens it; without sending textures again, the second episode would look like the first."""
    env = make_env("metaworld", "reach", cameras=["topview"], size=48, shift="textures")
    first, second = (env.reset(seed=seed)[0]["pixels"]["topview"] for seed in (1, 2))
    fresh = make_env("metaworld", "reach", cameras=["topview"], size=48, shift="textures")
    np.testing.assert_array_equal(fresh.reset(seed=2)[0]["pixels"]["topview"], second)
    env.close()
    fresh.close()
    assert np.abs(first.astype(int) - second).mean() > 5


def test_distractors_are_near_and_no_body_of_the_model() -> None:
    env = make_env("metaworld", "reach", cameras=["topview"], size=96, shift="distractors")
    env.reset(seed=4)
    depth, bodies = env.cameras.depth("topview"), env.cameras.segmentation("topview")
    placed = list(env.cameras.distractors)
    env.cameras.distractors.clear()
    bare, bare_bodies = env.cameras.depth("topview"), env.cameras.segmentation("topview")
    env.close()
    nearer = depth < bare - 0.005
    assert placed
    assert 0.001 < nearer.mean() < 0.2
    assert (bodies[nearer] == -1).all()
    assert (bare_bodies[nearer] >= 0).all()
    assert (depth <= bare + 1e-6).all()


def test_distractors_stand_on_their_ground() -> None:
    ground = Ground(low=(-1, 2), high=(1, 3), level=0.5, largest=0.1)
    for seed in range(20):
        for thing in place((ground,), Draws(np.random.default_rng(seed), None)):
            assert -1 <= thing.position[0] <= 1
            assert 2 <= thing.position[1] <= 3
            assert 0.5 < thing.position[2] <= 0.6
            assert thing.size.max() <= 0.1


@pytest.mark.parametrize("suite", TASKS)
def test_the_two_splits_look_different_everywhere(suite: str) -> None:
    """Of equal seeds, too: they never share a lamp's strength, a camera's zoom or a colour."""
    looks: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        env = make_env(suite, next(iter(TASKS[suite])), size=8, shift="strong", split=split)
        values = []
        for seed in range(6):
            env.reset(seed=seed)
            model = env.simulation.model
            color = model.mat_rgba if model.nmat else model.geom_rgba
            values.append([model.vis.headlight.diffuse[0], model.cam_fovy[0], color[0, 0]])
        looks[split] = np.round(values, 9)
        assert env.settings["split"] == split
        env.close()
    for train, test in zip(looks["train"].T, looks["test"].T, strict=True):
        assert len(set(train) | set(test)) > 6
        assert not set(train) & set(test)


def test_splits_cut_every_range_into_stripes_that_cover_it_from_end_to_end() -> None:
    drawn = {split: Draws(np.random.default_rng(0), split).uniform(2, 6, size=4000) for split in ("train", "test")}
    stripes = {split: set(np.floor((values - 2) / 4 * 16).astype(int)) for split, values in drawn.items()}
    assert stripes == {"train": set(range(0, 16, 2)), "test": set(range(1, 16, 2))}
    whole = Draws(np.random.default_rng(0), None).uniform(2, 6, size=4000)
    np.testing.assert_array_equal(whole, np.random.default_rng(0).uniform(2, 6, size=4000))
    patterns: dict[str, set[Any]] = {
        split: {Draws(np.random.default_rng(seed), split).choice(PATTERNS) for seed in range(50)}
        for split in ("train", "test")
    }
    assert not patterns["train"] & patterns["test"]
    assert patterns["train"] | patterns["test"] == set(PATTERNS)


@pytest.mark.parametrize("suite", TASKS)
def test_every_camera_moves_and_turns_as_far_as_its_level_says(suite: str) -> None:
    task, level = next(iter(TASKS[suite])), SHIFTS["cameras"]
    plain, shifted = make_env(suite, task, size=8), make_env(suite, task, size=8, shift="cameras")
    for seed in range(4):
        plain.reset(seed=seed)
        shifted.reset(seed=seed)
        model, here, there = plain.simulation.model, plain.simulation.data, shifted.simulation.data
        moved = np.linalg.norm(there.cam_xpos - here.cam_xpos, axis=1)
        turns = here.cam_xmat.reshape(-1, 3, 3).transpose(0, 2, 1) @ there.cam_xmat.reshape(-1, 3, 3)
        angles = np.rad2deg(np.arccos((np.trace(turns, axis1=1, axis2=2) - 1) / 2))
        reach = np.where(model.cam_bodyid > 0, level.camera / 10, level.camera)
        assert (moved > 0).all()
        assert (moved <= np.sqrt(3) * reach).all()
        assert (angles > 0.01).all()
        assert (angles <= level.angle).all()
    plain.close()
    shifted.close()


def test_a_split_needs_a_shift_and_a_name() -> None:
    with pytest.raises(SettingError, match="Name a shift"):
        make_env("metaworld", "reach", split="test")
    with pytest.raises(UnknownNameError) as caught:
        make_env("metaworld", "reach", shift="all", split="tset")
    assert caught.value.nearest == "test"


def test_settings_without_a_split_are_those_of_before(plain: ManipulationEnv) -> None:
    assert set(plain.settings) == {"suite", "task", "cameras", "size", "render", "shift", "max_episode_steps"}
    assert plain.settings["size"] == [64, 64]
