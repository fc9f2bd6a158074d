from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from pixio_pretrain.evaluation import TASKS, EvalConfig, Recipe, evaluate, read_record
from pixio_pretrain.evaluation.report import write_report
from pixio_pretrain.evaluation.simulator.answers import CLASSES, true_answers
from pixio_pretrain.evaluation.simulator.linear import pose_of
from pixio_pretrain.evaluation.simulator.measures import angles, scene_values
from pixio_pretrain.evaluation.simulator.task import draw_frames
from pixio_pretrain.geometry.sets import RgbdSet
from pixio_pretrain.probe.labels import LabelReadOut
from pixio_robot import Tokens, create_encoder
from pixio_robot.errors import DataError, SettingError, UnknownNameError

SIDE, NEAR, FAR = 32, 1.0, 2.0
SMALL = Recipe(epochs=40, batch_size=16, lr=1e-2, warmup=0.1, decay="cosine")


def make_set(folder: Path, scenes: int, seed: int) -> None:
    """A red gripper and a green object at random places of a table below a grey wall; 1 and 2 m before the camera."""
    random, moments, views = np.random.default_rng(seed), 2, 2
    shape = (scenes * moments, views, SIDE, SIDE)
    color, depth = np.full((*shape, 3), 120, np.uint8), np.full(shape, 30.0, np.float32)
    body = np.full(shape, -1, np.int16)
    cam2world = np.tile(np.eye(4), (*shape[:2], 1, 1))
    for row in np.ndindex(shape[:2]):
        edge = int(random.integers(4, 12))  # the table's edge says where the camera is
        body[row][edge:], depth[row][edge:], color[row][edge:] = 0, FAR, (150, 110, 70)
        cam2world[row][2, 3] = edge / 10
        for number, colour in ((1, (250, 30, 30)), (2, (30, 250, 30))):
            top, left = random.integers(13, SIDE - 6), random.integers(16 * (number - 1), 16 * number - 6)
            where = (slice(top, top + 6), slice(left, left + 6))
            body[row][where], depth[row][where], color[row][where] = number, NEAR, colour
    attributes = {"tasks": ["push"], "suite": "squares", "complete": True}
    group = zarr.create_group(folder, attributes=attributes)
    intrinsics = np.tile(np.array([[20.0, 0, 16], [0, 20, 16], [0, 0, 1]]), (*shape[:2], 1, 1))
    arrays: dict[str, Any] = {"color": color, "depth": depth, "body": body, "cam2world": cam2world}
    arrays |= {"intrinsics": intrinsics, "task": np.zeros(len(color), np.int16)}
    arrays["scene"] = np.repeat(np.arange(scenes, dtype=np.int32), moments)
    for name, array in arrays.items():
        group.create_array(name, data=array)
    parts = {"names": ["tablelink", "hand", "obj"], "parts": ["scenery", "gripper", "object"]}
    group.create_group("bodies/push").attrs.update(parts)


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rgbd")
    make_set(root / "train", 40, 0)
    for number, name in enumerate(("seen", "all"), 1):
        make_set(root / "held_out" / name, 8, number)
    return root


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    sizes = {"width": 48, "depth": 2, "heads": 2, "patch_size": 4, "image_size": 32, "class_tokens": 2}
    create_encoder("pixio_vitt16", seed=0, **sizes).save_pretrained(folder)
    return folder


@pytest.fixture
def make(sets: Path, encoder: Path, tmp_path: Path) -> Callable[..., EvalConfig]:
    def config(name: str | None = None, *, seed: int = 0, **settings: Any) -> EvalConfig:
        task = TASKS["simulator"](**({"recipe": replace(SMALL)} | settings))
        facts: dict[str, Any] = {"precision": "fp32", "seed": seed, "task": task}
        return EvalConfig(encoder=name or str(encoder), data=str(sets), folder=str(tmp_path / "out"), **facts)

    return config


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "small"])
def test_probes_learn_far_more_than_the_constant_knows(make: Callable[..., EvalConfig], head: str) -> None:
    file = evaluate(make(head=head, grid=8))
    found, constant = (read_record(one)["metrics"] for one in (file, evaluate(make("constant", head=head))))
    for part in ("seen", "all"):
        for metric in ("gripper_px", "object_px", "gripper_cm", "object_cm", "camera_cm"):
            assert found[f"{part}/{metric}"] < 0.6 * constant[f"{part}/{metric}"], (part, metric)
        assert found[f"{part}/abs_rel"] < 0.8 * constant[f"{part}/abs_rel"]
        assert found[f"{part}/miou"] > constant[f"{part}/miou"] + 0.2
        assert found[f"{part}/camera_deg"] == pytest.approx(0, abs=1)  # it never turns
    assert sorted(path.name for path in (file.parent / "pictures").iterdir()) == ["all.png", "seen.png"]
    values = np.load(file.parent / "images.npz")
    assert values["seen/gripper_px"].mean() == pytest.approx(found["seen/gripper_px"])
    assert len(values["seen/miou"]) == 8  # scenes


@pytest.mark.slow
def test_a_killed_evaluation_ends_as_an_unbroken_one(
    make: Callable[..., EvalConfig], assert_resumes: Callable[[EvalConfig, int], None]
) -> None:
    assert_resumes(make(head="small", recipe=replace(SMALL, epochs=3)), 12)  # of 8 steps an epoch


def test_answers_are_those_of_the_geometry(sets: Path) -> None:
    frames = RgbdSet.read(sets / "train")
    true = true_answers(frames)
    group: Any = zarr.open_group(frames.folder, mode="r")
    for frame in (0, 17):
        body = group["body"][:].reshape(-1, SIDE, SIDE)[frame]
        ys, xs = np.nonzero(body == 1)
        centre = np.array([xs.mean() + 0.5, ys.mean() + 0.5])
        np.testing.assert_allclose(true.pixels["gripper"][frame], centre, atol=1e-4)
        np.testing.assert_allclose(true.metres["gripper"][frame, :2], (centre - 16) / 20 * NEAR, atol=1e-5)
        assert true.metres["gripper"][frame, 2] == pytest.approx(NEAR)
        for name, number in (("table", 0), ("object", 2), ("rest", -1)):
            assert torch.equal(true.labels[frame] == CLASSES.index(name), torch.from_numpy(body == number))


def test_the_truth_has_no_error_and_what_is_invisible_does_not_count(sets: Path) -> None:
    frames = RgbdSet.read(sets / "held_out/seen")
    scenes, true = frames.scenes(np.arange(len(frames))), true_answers(frames)
    gone = true.pixels["gripper"].clone()
    gone[scenes == 3] = torch.nan
    known = replace(true, pixels={**true.pixels, "gripper": gone})
    values = scene_values(true, known, scenes)
    assert np.flatnonzero(np.isnan(values["gripper_px"])).tolist() == [3]
    for metric in ("gripper_px", "object_cm", "abs_rel", "camera_cm", "camera_deg"):
        assert np.nanmax(values[metric]) == 0
    counts = values["miou"].sum(axis=0)
    assert (counts[:, 0] == counts[:, 1]).all()


def test_rotations_are_projected_and_compared() -> None:
    turn = torch.linalg.qr(torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(0)))[0]
    turn *= torch.det(turn)[:, None, None]
    poses = pose_of(torch.zeros(20, 3), 3 * turn.flatten(1))
    torch.testing.assert_close(poses[:, :3, :3], turn)
    mirrored = pose_of(torch.zeros(20, 3), torch.randn(20, 9))[:, :3, :3]
    torch.testing.assert_close(torch.det(mirrored), torch.ones(20))
    ten = torch.tensor(np.deg2rad(10.0))
    about_z = torch.eye(3)
    about_z[:2, :2] = torch.tensor([[ten.cos(), -ten.sin()], [ten.sin(), ten.cos()]])
    np.testing.assert_allclose(angles(turn @ about_z.float(), turn), 10, atol=1e-3)


def test_a_seed_draws_whole_scenes(sets: Path) -> None:
    frames = RgbdSet.read(sets / "train")
    drawn = [draw_frames(frames, 0.5, seed).numpy() for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    counts = np.bincount(frames.scenes(drawn[0]), minlength=40)
    assert sorted(set(counts)) == [0, 4]
    assert (counts > 0).sum() == 20


def test_softmax_regression_finds_what_is_there_and_falls_back_on_shares() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (60, 4, 4), generator=random)
    told = torch.nn.functional.one_hot(labels.flatten(1), 3).float()
    for patches, share in ((told, 0.99), (torch.zeros_like(told), 0.0)):
        read = LabelReadOut.fit(patches, (4, 4), labels, 3)(Tokens(patches[:, :0], patches, (4, 4)))
        assert (read == labels).float().mean() >= share
        if not share:
            best = torch.stack([(labels == c).sum(dim=0) for c in range(3)])
            assert (best.gather(0, read[:1].long())[0] == best.amax(dim=0)).all()


@pytest.mark.slow
def test_features_are_shared_and_seeds_share_a_line_of_the_report(make: Callable[..., EvalConfig]) -> None:
    files = [evaluate(make(name, seed=seed, dense_frames=8)) for seed in (0, 1) for name in ("pixels", "constant")]
    folder = files[0].parent.parent.parent
    assert len(list((folder / "simulator-features").iterdir())) == 2
    first, second = (read_record(files[number])["metrics"]["all/gripper_px"] for number in (0, 2))
    assert first != second
    page = write_report(folder).read_text()
    assert page.count("<h3>") == 2
    assert page.count("2 seeds") == 4
    assert f"<td>{(first + second) / 2:.1f} [" in page


def test_what_cannot_be_asked_is_refused(make: Callable[..., EvalConfig], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'linear'"):
        make(head="liner")
    with pytest.raises(SettingError, match=r"task\.scenes must lie in"):
        make(scenes=0.0)
    config = make("constant")
    config.data = str(tmp_path)
    with pytest.raises(DataError, match="no zarr group of colour and depth"):
        evaluate(config)
    make_set(tmp_path / "train", 2, 0)
    with pytest.raises(DataError, match="holds no sets to measure on"):
        evaluate(config)
    group: Any = zarr.open_group(tmp_path / "train", mode="r+")
    body = group["body"][:]
    group["body"][:] = np.where(body == 2, -1, body)
    with pytest.raises(DataError, match="shows no pixel of object in any frame"):
        true_answers(RgbdSet.read(tmp_path / "train"))
