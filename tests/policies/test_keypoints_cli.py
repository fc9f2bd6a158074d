"""``pixio-keypoints``: from a data set to an encoder of its own, and a policy that sees through it."""

import sys
from collections.abc import Callable
from colorsys import hsv_to_rgb
from pathlib import Path

import pytest
import torch
from PIL import Image

from lerobot_policy_pixio import keypoints_cli
from lerobot_policy_pixio.frames import DatasetFrames
from pixio_robot import Encoder, load_encoder
from pixio_robot.encoder import DESCRIPTORS
from pixio_robot.images import resize


@pytest.fixture
def descriptors(tmp_path: Path) -> Path:
    encoder = Encoder(DESCRIPTORS, provenance={"name": "untrained"})
    encoder.backbone.initialize(torch.Generator().manual_seed(0))
    encoder.save_pretrained(tmp_path / "descriptors")
    return tmp_path / "descriptors"


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["pixio-keypoints", *map(str, words)])
    keypoints_cli.main()


def test_keypoints_of_a_data_set_lie_beside_it_and_a_policy_acts_on_them(
    descriptors: Path,
    make_dataset: Callable[..., Path],
    make_config: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_dataset(tmp_path / "walks")
    frames = DatasetFrames(root)
    call(monkeypatch, root, "--encoder", descriptors, "--count", 8, "--pictures", 9)
    folder = tmp_path / "walks.keypoints"
    told = capsys.readouterr().out
    top, wrist = frames.cameras
    assert told.startswith(f"8 keypoints of untrained, learnt from 9 pictures of each of {top}, {wrist}.\n")
    assert f"{top} and {wrist} look alike, and share theirs." in told
    assert f"pixio-train --policy.encoder={folder}" in told
    encoder = load_encoder(folder)
    assert encoder.spec.width == 3 * 8
    assert encoder.provenance["pictures"] == [9, 9]
    with Image.open(folder / "keypoints.png") as picture:
        assert picture.size == (6 * 128 * 3, len(frames.cameras) * 128 * 3)
        first = encoder(resize(frames.spread(top, 9)[:1], (128, 128))).patches[0, 0, :16].unflatten(0, (8, 2))
        marks = {picture.getpixel(tuple(place)) for place in ((first + 1) / 2 * 384).round().int().tolist()}
    hues = {tuple(round(255 * part) for part in hsv_to_rgb(0.618033988 * number % 1, 1, 1)) for number in range(8)}
    assert len(hues) == 8
    assert marks & hues
    assert marks <= hues | {(0, 0, 0)}  # or another one's rim
    config = make_config(encoder=str(folder), grid=None, image_size=None)
    assert config.settle_grid(encoder.spec) == 1  # pyright: ignore[reportAttributeAccessIssue]

    call(monkeypatch, root, "--encoder", descriptors, "--count", 4, "--pictures", 5, "--to", tmp_path / "other")
    assert load_encoder(tmp_path / "other").spec.width == 3 * 4


def test_what_cannot_be_learnt_from_is_told_on_one_line(
    descriptors: Path, dataset_root: Path, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, said in (
        ((tmp_path,), "no LeRobotDataset"),
        ((dataset_root, "--encoder", encoder_folder), "learnt from descriptors"),
        ((dataset_root, "--encoder", descriptors, "--pictures", 1), "at least two pictures"),
        ((dataset_root, "--encoder", descriptors, "--cameras", "top"), "no camera 'top'"),
    ):
        with pytest.raises(SystemExit) as ended:
            call(monkeypatch, *words, "--to", tmp_path / "never")
        assert said in str(ended.value)
    assert not (tmp_path / "never").exists()
