"""How a cell's policy is measured, with rollouts that are made up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark import measuring
from benchmark.arms import Sight, draw_cnn
from benchmark.cells import Cell
from benchmark.settings import Benchmark

from lerobot_env_pixio import EpisodeRecord, find_task, read_records, seeds
from lerobot_policy_pixio.train_cli import EvalOptions
from pixio_robot.errors import RenderError
from pixio_robot.images import resize


@pytest.mark.parametrize(("renders", "scenes"), [(True, "evaluation"), (False, "development")])
def test_an_episode_that_broke_off_is_played_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renders: bool, scenes: str
) -> None:
    """Of four scenes the second is lost at first, and the third each time; or nothing can be played again."""
    asked: list[list[int]] = []

    def roll_out(*_: Any, seeds: list[int], arm: str, policy_seed: int, **_named: Any) -> list[EpisodeRecord]:
        asked.append(seeds)
        if len(asked) == 2 and not renders:
            raise RenderError("No picture.")
        lost = {1: asked[0][1:3], 2: asked[0][2:3]}[len(asked)]
        settings: dict[str, Any] = {"suite": "metaworld", "task": "reach-v3", "arm": arm, "encoder": None}
        settings |= {"policy_seed": policy_seed, "total_reward": 0.0, "steps": 1, "settings": {}, "versions": {}}
        played = [EpisodeRecord(env_seed=seed, success=True, **settings) for seed in seeds]
        return [replace(one, success=None, error="killed") if one.env_seed in lost else one for one in played]

    monkeypatch.setattr(measuring, "rollout", roll_out)
    cell = Cell(task=find_task("metaworld", "reach"), policy="act", arm="blind", seed=0)
    config = Benchmark(folder=str(tmp_path), episodes=4, scenes=scenes, size=16, slots=2, videos=1)
    actor: Any = None
    measuring._measure(actor, cell, tmp_path, "clean", None, Sight(), config)
    records = read_records(tmp_path / "records_clean.jsonl")
    first = {"evaluation": seeds.EVALUATION, "development": seeds.DEVELOPMENT}[scenes][0]
    played = [record.env_seed for record in records]
    assert played == [first, first + 1, first + 2, first + 3]
    assert asked == [played, played[1:3]]
    assert [record.success for record in records] == [True, True if renders else None, None, True]


def test_what_is_looked_at_while_training_is_not_what_is_measured() -> None:
    assert EvalOptions.first_seed == seeds.DEVELOPMENT[0]


class TwoCameras:
    """A user's data set, whose cameras have pictures of their own sizes."""

    cameras = ("top", "wrist")

    def __len__(self) -> int:
        return 8

    def read(self, camera: str, start: int, stop: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(len(camera))
        height, width = {"top": (48, 64), "wrist": (40, 40)}[camera]
        return torch.randint(0, 256, (8, 3, height, width), dtype=torch.uint8, generator=random)[start:stop]


@pytest.mark.parametrize(("options", "side"), [({}, 32), ({"cnn": {"image_size": 64}}, 64)])
def test_a_fresh_cnn_is_calibrated_at_the_size_at_which_it_sees(
    tmp_path: Path, options: dict[str, Any], side: int
) -> None:
    cell = Cell(task=find_task("metaworld", "reach"), policy="act", arm="cnn", seed=3)
    config = Benchmark(folder=str(tmp_path), arms={"pixio": "shipped:pixio_vitt16"}, options=options, size=32)
    frames: Any = TwoCameras()
    sight = measuring._open_sight(cell, frames, config)
    seen = torch.cat([resize(frames.read(camera, 0, 8), (side, side)) for camera in frames.cameras])
    assert sight.encoder is not None
    assert sight.options["image_size"] == side
    assert sight.encoder.fingerprint == draw_cnn(3, seen).fingerprint
