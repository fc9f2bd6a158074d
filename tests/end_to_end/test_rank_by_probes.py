"""Whether probes and rollouts agree: from the records of both to a rank correlation."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import rank_by_probes
from benchmark.cells import cell_folder, finish, plan_cells
from benchmark.claims import claim, read_benchmark
from benchmark.settings import Benchmark, Training

from lerobot_env_pixio import EpisodeRecord, write_records
from pixio_pretrain import probe
from pixio_robot.errors import DataError, UnknownNameError

SCENES = 20
ERRORS = {"good": 0.01, "fair": 0.02, "poor": 0.03}
RATES = {"good": 0.8, "fair": 0.5, "poor": 0.2}


def write_benchmark(folder: Path, rates: Mapping[str, float]) -> Benchmark:
    """A finished benchmark in which every arm solves the easiest scenes."""
    config = Benchmark(
        tier="test",
        folder=str(folder),
        tasks=["metaworld/reach"],
        policies=["act"],
        arms={name: name for name in rates},
        without=["blind", "state", "random", "cnn"],
        seeds=[0, 1],
        demonstrations=2,
        training={"act": Training(steps=3, batch_size=4)},
        episodes=SCENES,
        shifts=[],
        size=32,
        slots=4,
        videos=0,
        save_every=2,
    )
    claim(config)
    for cell in plan_cells(config):
        home = cell_folder(folder, cell)
        facts = {"suite": "metaworld", "task": cell.task.name, "arm": cell.arm, "encoder": cell.arm, "settings": {}}
        facts |= {"policy_seed": cell.seed, "total_reward": 0.0, "steps": 9, "versions": {}}
        solved = round(rates[cell.arm] * SCENES)
        played = [EpisodeRecord(**facts, env_seed=scene, success=scene < solved) for scene in range(SCENES)]
        home.mkdir(parents=True)
        write_records(home / "records_clean.jsonl", played)
        finish(home, {"encoder": cell.arm})
    return config


def write_probes(folder: Path, errors: Mapping[str, float], task: str = "reach-v3") -> None:
    (folder / "records").mkdir(parents=True)
    spread = np.linspace(0.9, 1.1, 12)
    for name, error in errors.items():
        where = {"camera": "corner2", "task": task, "target": "object", "features": "fine grid", "metric": "distance"}
        found = probe.Measurement(**where, ridge=1.0, episodes=list(range(12)), values=(error * spread).tolist())
        facts = {"arm": name, "seed": 0, "encoder": name.split("@")[0], "training": {}, "store": "f00"}
        probe.write_records(folder / "records" / f"{name}.jsonl", [probe.ProbeRecord(**facts, measurement=found)])


@pytest.mark.parametrize(("order", "said"), [(1, "+1.00 (+1.00 to +1.00)"), (-1, "-1.00 (-1.00 to -1.00)")])
def test_orders_that_agree_and_orders_that_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, order: int, said: str
) -> None:
    write_benchmark(tmp_path / "benchmark", RATES)
    write_probes(tmp_path / "probes", dict(zip(ERRORS, list(ERRORS.values())[::order], strict=True)))
    picture = tmp_path / "ranks.png"
    words = ["rank_by_probes", str(tmp_path / "probes"), str(tmp_path / "benchmark"), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", words)
    rank_by_probes.main()
    assert f"| corner2 | object | fine grid | {said} | {said} |" in capsys.readouterr().out
    assert picture.stat().st_size > 1000


def test_rates_that_are_close_leave_the_order_open(tmp_path: Path) -> None:
    config = write_benchmark(tmp_path / "benchmark", {"good": 0.5, "fair": 0.45, "poor": 0.4})
    write_probes(tmp_path / "probes", {"good": 0.0201, "fair": 0.0200, "poor": 0.03})
    rates = rank_by_probes.read_rates(config, "act", "clean")["reach-v3"]
    errors = rank_by_probes.read_errors(tmp_path / "probes")["reach-v3", ("corner2", "object", "fine grid")]
    found = rank_by_probes.agreement([errors[name] for name in ERRORS], [rates[name][1] for name in ERRORS])
    assert found[0] == pytest.approx(0.5)
    _, low, high = probe.resampling.interval(found)
    assert low <= 0 < 0.5 <= high


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    config = write_benchmark(tmp_path / "benchmark", RATES)
    write_probes(tmp_path / "probes", ERRORS, task="door-open-v3")
    rates, errors = rank_by_probes.read_rates(config, "act", "clean"), rank_by_probes.read_errors(tmp_path / "probes")
    with pytest.raises(DataError, match=r"Probed: door-open-v3\. Rolled out, with encoders: reach-v3 \(3\)"):
        rank_by_probes.tabulate(errors, rates)
    with pytest.raises(UnknownNameError):
        rank_by_probes.read_rates(config, "act", "strong")
    with pytest.raises(DataError, match="no folder of run_benchmark"):
        read_benchmark(tmp_path / "probes")


def test_an_arm_that_sees_in_its_own_way_is_left_out(tmp_path: Path) -> None:
    config = write_benchmark(tmp_path / "benchmark", RATES)
    config.options = {"good": {"train_encoder": "full"}}
    assert rank_by_probes.read_rates(config, "act", "clean")["reach-v3"].keys() == {"fair", "poor"}


def test_an_arm_that_was_shown_other_sizes_does_not_stand_for_the_encoder(tmp_path: Path) -> None:
    write_probes(tmp_path / "probes", ERRORS | {"good@192": 0.5})
    read = rank_by_probes.read_errors(tmp_path / "probes")["reach-v3", ("corner2", "object", "fine grid")]
    assert read.keys() == ERRORS.keys()
