"""What the commands that make data ask the library for; nothing is rendered."""

import sys
from pathlib import Path
from typing import Any

import collect_demos
import pytest
import render_rgbd

from lerobot_env_pixio import demos, find_tasks, rgbd


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The settings of every set that would have been rendered, by its name."""
    found: dict[str, dict[str, Any]] = {}

    def note(folder: Path, **settings: Any) -> Path:
        found[folder.name] = settings
        return folder

    monkeypatch.setattr(rgbd, "render_rgbd", note)
    return found


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["render_rgbd", "outputs", *words])
    render_rgbd.main()


def scenes(settings: dict[str, Any]) -> set[int]:
    """The scenes of a set, as `rgbd` counts them: every task of a named set has its own."""
    count = len(find_tasks(settings["suite"], settings["tasks"])) * settings["scenes_per_task"]
    return {settings["first_seed"] + number for number in range(count)}


@pytest.mark.parametrize("words", [[], ["--tasks", "mt10"], ["--held-out-tasks", "cortex-metaworld"]])
def test_no_two_sets_have_a_scene_in_common_even_if_sets_of_tasks_are_named(
    words: list[str], rendered: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(monkeypatch, *words)
    assert [*rendered] == ["train", "seen", "scenes", "textures", "lights", "cameras", "all"]
    everything = [scenes(settings) for settings in rendered.values()]
    assert len(set.union(*everything)) == sum(map(len, everything))
    assert not {*rendered["train"]["tasks"]} & {*rendered["scenes"]["tasks"]}


def test_tasks_that_are_trained_on_cannot_be_held_out(
    rendered: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="door-open-v3, drawer-open-v3: in --tasks and"):
        command(monkeypatch, "--tasks", "mt10", "--held-out-tasks", "drawer-open", "door-open")
    assert not rendered


def test_every_suite_with_an_expert_has_tasks_to_hold_out_and_cameras_to_look_through(
    rendered: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(monkeypatch, "--suite", "aloha")
    assert (rendered["train"]["tasks"], rendered["all"]["tasks"]) == (["transfer-cube"], ["insertion"])
    collected: list[tuple[Any, ...]] = []
    monkeypatch.setattr(demos, "collect_demonstrations", lambda *given, **named: collected.append((given, named)))
    monkeypatch.setattr(sys, "argv", ["collect_demos", "insertion", "--suite", "aloha"])
    collect_demos.main()
    (((folder, *what), named),) = collected
    assert (folder, what) == (Path("outputs/demos/insertion"), ["aloha", "insertion"])
    assert rendered["train"]["cameras"] is named["cameras"] is None  # the tasks' own
