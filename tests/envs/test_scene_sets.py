from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from lerobot_env_pixio import render_rgbd, scene_sets
from lerobot_env_pixio.rgbd_stage import Stage
from pixio_robot.errors import UnknownNameError


def test_scenes_of_one_task_are_the_same_from_one_worker_or_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[Any] = []

    def here(function: Callable[[Any], Any], jobs: list[Any], *, workers: int) -> Iterator[Any]:
        shared.append([job[1:] for job in jobs])
        return map(function, jobs)

    monkeypatch.setattr(scene_sets, "run_jobs", here)
    settings: dict[str, Any] = {"tasks": ["drawer-open"], "scenes_per_task": 2, "moments": 1, "size": 32}
    one, two = (
        zarr.open_group(render_rgbd(tmp_path / str(workers), workers=workers, **settings), mode="r")
        for workers in (1, 2)
    )
    assert shared == [[(0, [0, 1])], [(0, [0]), (0, [1])]]
    assert dict(one.attrs) == dict(two.attrs)
    assert dict(one["bodies/drawer-open-v3"].attrs) == dict(two["bodies/drawer-open-v3"].attrs)
    assert two["scene"][:].tolist() == [0, 1]
    for name in set(one) - {"bodies"}:
        np.testing.assert_array_equal(one[name][:], two[name][:])


def test_a_stage_knows_a_task_by_its_short_name_and_answers_a_typo() -> None:
    settings: dict[str, Any] = {"cameras": ("corner2",), "free": 0, "size": (24, 32), "render": "fast"}
    stage = Stage("metaworld", "coffee-button", **settings)
    assert "coffee_machine" in " ".join(stage.cameras.bodies.values())
    stage.close()
    with pytest.raises(UnknownNameError) as caught:
        Stage("metaworld", "coffee-buton", **settings)
    assert caught.value.nearest == "coffee-button-v3"
