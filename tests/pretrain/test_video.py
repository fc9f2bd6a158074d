import json
import os
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
from PIL import Image

from pixio_pretrain.data import Loader, open_frames, open_source
from pixio_pretrain.data.samples import Sample
from pixio_pretrain.data.skips import Skipped
from pixio_pretrain.data.video import LeRobotVideo, _Video
from pixio_robot.errors import DataError, SettingError, UnknownNameError

CAMERAS = ("observation.images.top", "observation.images.wrist")
LENGTHS = (9, 40, 75)
SIDE = 64

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # two workers on one core
    pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing"),  # LeRobot has threads, workers fork
]


def write_dataset(root: Path, codec: str, keyframes: int) -> Path:
    """Ramps that move, in LeRobot's own format."""
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    image = {"dtype": "video", "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]}
    state = {"dtype": "float32", "shape": (1,), "names": ["time"]}
    encoder = RGBEncoderConfig(vcodec=codec, g=keyframes)
    features = {"observation.state": state, "action": state, **dict.fromkeys(CAMERAS, image)}
    dataset = LeRobotDataset.create("local/ramps", fps=10, features=features, root=root, rgb_encoder=encoder)
    rows, columns = np.mgrid[:SIDE, :SIDE] * 2
    for episode, length in enumerate(LENGTHS):
        for frame in range(length):
            picture = np.stack([rows, columns, np.full_like(rows, 3 * frame + 10 * episode)], axis=-1).astype(np.uint8)
            picture[:, frame % SIDE] = 255
            pictures = {camera: np.rot90(picture, turns).copy() for turns, camera in enumerate(CAMERAS)}
            time = np.array([frame], dtype=np.float32)
            dataset.add_frame({"observation.state": time, "action": time, "task": "move", **pictures})
        dataset.save_episode()
    dataset.finalize()
    return root


ENCODINGS = {"h264, 2": ("h264", 2), "h264, 25": ("h264", 25), "av1, 2": ("libsvtav1", 2)}


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Data sets by encoding, written when asked for."""
    folder = tmp_path_factory.mktemp("video")

    def record(encoding: str) -> Path:
        root = folder / encoding.replace(", ", "-")
        return root if root.exists() else write_dataset(root, *ENCODINGS[encoding])

    return record


def make_sample(image: Image.Image, random: np.random.Generator) -> Sample:
    return {"images": np.asarray(image), "noise": random.random(2)}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_frame_is_the_one_that_lerobot_gives(encoding: str, recorded: Callable[[str], Path]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = recorded(encoding)
    theirs = LeRobotDataset("local/ramps", root=root, video_backend="pyav", return_uint8=True)
    ours = dict(open_source(root).visit())
    assert len(ours) == len(CAMERAS) * sum(LENGTHS)
    for row in range(0, sum(LENGTHS), 7):
        item = theirs[row]
        for camera in CAMERAS:
            image = ours[f"{camera}/{int(item['episode_index'])}/{int(item['frame_index'])}"]
            assert np.array_equal(np.asarray(image).transpose(2, 0, 1), item[camera].numpy())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_stride_and_a_later_start_give_the_same_frames(encoding: str, recorded: Callable[[str], Path]) -> None:
    source = open_source(recorded(encoding), cameras=CAMERAS[:1])
    assert isinstance(source, LeRobotVideo)
    whole = dict(source.visit())
    for stride in (3, 50):
        strided = open_source(recorded(encoding), cameras=CAMERAS[:1], stride=stride)
        some = dict(strided.visit())
        assert strided.describe()["frames"] == len(some)
        assert list(some) == [key for key in whole if int(key.split("/")[2]) % stride == 0]
        assert all(image == whole[key] for key, image in some.items())
    for run in range(source.runs):
        entries = list(source.read(run))
        for start in (1, 5, len(entries)):
            assert [entry.key for entry in source.read(run, start)] == [entry.key for entry in entries[start:]]
        for entry in source.read(run, 3):
            assert entry.image() == whole[entry.key]


@pytest.mark.parametrize("fps", [10, 24, 30, 29.97])
def test_one_frame_after_the_other_is_read_without_seeking(
    fps: float, recorded: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "ramps"
    _copy(recorded("h264, 2"), root)
    info = json.loads((root / "meta/info.json").read_text())
    for camera in CAMERAS:
        del info["features"][camera]["info"]["video.g"]
    (root / "meta/info.json").write_text(json.dumps(info))
    source = open_source(root)
    assert isinstance(source, LeRobotVideo)
    assert {camera.keyframes for camera in source.episodes.cameras} == {2}
    sought, begins = [], 40.0

    def forward(video: _Video, time: float) -> np.ndarray:
        video._time = round(time * 15360) / 15360  # as a stream stores it
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(_Video, "_seek", lambda _, time: sought.append(time))
    monkeypatch.setattr(_Video, "_forward", forward)
    video = _Video(source.episodes.cameras[0].files[0], fps=fps, keyframes=1)
    for frame in range(500):
        video.frame(begins + frame / fps)
    assert sought == [begins]


def test_runs_can_be_read_side_by_side(recorded: Callable[[str], Path]) -> None:
    source = open_source(recorded("h264, 2"))
    assert isinstance(source, LeRobotVideo)
    whole = dict(source.visit())
    for first, second in zip(source.read(1), source.read(3), strict=False):
        assert first.image() == whole[first.key]
        assert second.image() == whole[second.key]


def test_whole_episodes_are_held_out_with_all_cameras(recorded: Callable[[str], Path]) -> None:
    source = open_source(recorded("h264, 2"))
    train, held_out = ([key for key, _ in part.visit()] for part in source.split(0.3))
    assert sorted(train + held_out) == sorted(key for key, _ in source.visit())
    episodes = [{key.split("/")[1] for key in part} for part in (train, held_out)]
    assert len(episodes[1]) == 1
    assert episodes[0].isdisjoint(episodes[1])
    assert {key.split("/")[0] for key in held_out} == set(CAMERAS)


@pytest.mark.parametrize("workers", [0, 2])
def test_video_resumes_at_the_exact_next_sample(workers: int, recorded: Callable[[str], Path]) -> None:
    def loader() -> Loader:
        source = open_source(recorded("h264, 25"), stride=4)
        return Loader(source, make_sample, batch_size=5, seed=0, buffer=16, workers=workers)

    unbroken = loader()
    batches, states = [], [unbroken.state_dict()]
    for loaded in islice(unbroken, 20):
        batches.append(loaded)
        states.append(unbroken.state_dict())
    for at in range(1, 18) if not workers else (5,):
        resumed = loader()
        resumed.load_state_dict(states[at])
        for loaded, expected in zip(islice(resumed, 2), batches[at : at + 2], strict=True):
            assert loaded.keys == expected.keys
            assert all(loaded.batch[name].equal(expected.batch[name]) for name in loaded.batch)


def test_a_video_cut_short_costs_the_frames_beyond_the_cut(recorded: Callable[[str], Path], tmp_path: Path) -> None:
    root = tmp_path / "cut"
    _copy(recorded("h264, 2"), root)
    video = next((root / "videos" / CAMERAS[0]).rglob("*.mp4"))
    os.truncate(video, video.stat().st_size * 2 // 3)
    whole, skipped = dict(open_source(recorded("h264, 2")).visit()), Skipped(1000)
    found = dict(open_source(root).visit(skipped))
    assert found.keys() | skipped.keys() == whole.keys()
    assert found.keys().isdisjoint(skipped)
    assert skipped
    assert all(key.startswith(CAMERAS[0]) for key in skipped)
    assert all(image == whole[key] for key, image in found.items() if key.startswith(CAMERAS[1]))
    assert next(iter(skipped.values())).startswith(video.name)


def test_absent_videos_are_named(recorded: Callable[[str], Path], tmp_path: Path) -> None:
    root = tmp_path / "absent"
    _copy(recorded("h264, 2"), root)
    next((root / "videos" / CAMERAS[0]).rglob("*.mp4")).unlink()
    skipped = Skipped(1000)
    found = [key for key, _ in open_source(root).visit(skipped)]
    assert len(found) == len(skipped) == sum(LENGTHS)
    assert "No such file" in skipped[f"{CAMERAS[0]}/0/0"]


def test_unknown_cameras_and_strides_are_refused(recorded: Callable[[str], Path]) -> None:
    root = recorded("h264, 2")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'observation\.images\.top'"):
        open_source(root, cameras=["observation.image.top"])
    with pytest.raises(SettingError, match="stride must be at least 1, not 0"):
        open_source(root, stride=0)
    with pytest.raises(DataError, match="LeRobot videos"):
        open_frames(root)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ("{", "no LeRobotDataset that can be read"),
        ('{"codebase_version": "v2.1", "fps": 10, "features": {}}', "LeRobotDataset v2.1; convert it"),
        ('{"codebase_version": "v3.0", "fps": 10, "features": {"a": {"dtype": "image"}}}', "no camera .* as video"),
    ],
)
def test_other_data_sets_are_refused(info: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text(info)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path)


def test_a_data_set_that_is_neither_here_nor_on_the_hub_is_refused() -> None:
    with pytest.raises(DataError, match="nobody/nothing is no folder, and the hub"):
        open_source("lerobot:nobody/nothing")


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)


def test_what_decodes_videos_is_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"needs av: pip install 'pixio-pretrain\[video\]'"):
        LeRobotVideo(tmp_path)
