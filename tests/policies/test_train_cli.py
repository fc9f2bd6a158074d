"""``pixio-train``: the words of lerobot-train, a cache that makes itself, evaluation, and runs that outlive a kill."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.utils.constants import HF_LEROBOT_HOME
from statsmodels.stats.proportion import proportion_confint

from lerobot_policy_pixio import PixioACTConfig, train_cli
from lerobot_policy_pixio.augmentation import ImageAugmentation
from lerobot_policy_pixio.cache_folders import cache_folder, find_caches
from lerobot_policy_pixio.evaluation import Evaluation, wilson
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.train_cli import find_or_build_cache
from lerobot_policy_pixio.training import make_policy, make_processors, train
from pixio_robot import FeatureCache, build_cache
from pixio_robot.errors import CacheError, CheckpointError, DataError, SettingError

ACT = ["--policy.type=pixio_act", "--policy.dim_model=32", "--policy.n_heads=2", "--policy.chunk_size=5"]
ACT += ["--policy.n_action_steps=5", "--policy.dim_feedforward=64", "--policy.n_encoder_layers=1"]
DIFFUSION = ["--policy.type=pixio_diffusion", "--policy.horizon=8", "--policy.n_action_steps=4"]
DIFFUSION += ["--policy.down_dims=[16,32]", "--policy.n_groups=4", "--policy.feature_dim=16"]
DIFFUSION += ["--policy.drop_n_last_frames=3", "--policy.num_train_timesteps=10"]

WALK_ENV = '''
"""An environment whose episodes succeed at their third step if a fourth of their seed is a whole number."""

import gymnasium
import numpy as np
from dataclasses import dataclass, field
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

CAMERAS = ("top", "wrist")


class Walk(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    task = task_description = "walk"
    observation_space = gymnasium.spaces.Dict(
        pixels=gymnasium.spaces.Dict({name: gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8) for name in CAMERAS}),
        agent_pos=gymnasium.spaces.Box(-10, 10, (3,), np.float64),
    )
    action_space = gymnasium.spaces.Box(-10, 10, (3,), np.float32)

    def _look(self):
        pixels = {name: self.np_random.integers(0, 255, (64, 64, 3), dtype=np.uint8) for name in CAMERAS}
        return {"pixels": pixels, "agent_pos": self.np_random.uniform(-1, 1, 3)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.good, self.steps = seed is not None and seed % 4 == 0, 0
        return self._look(), {"is_success": False}

    def step(self, action):
        self.steps += 1
        done = self.good and self.steps == 3
        return self._look(), float(done), done, False, {"is_success": done}

    def render(self):
        return np.zeros((64, 64, 3), np.uint8)


gymnasium.register("walk_env/walk", Walk, max_episode_steps=5)


@EnvConfig.register_subclass("walk_env")
@dataclass
class WalkConfig(EnvConfig):
    task: str | None = "walk"
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (3,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (3,)),
            **{f"pixels/{name}": PolicyFeature(FeatureType.VISUAL, (64, 64, 3)) for name in CAMERAS},
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            "action": "action",
            "agent_pos": "observation.state",
            **{f"pixels/{name}": f"observation.images.{name}" for name in CAMERAS},
        }
    )

    @property
    def package_name(self):
        return "walk_env"

    @property
    def gym_kwargs(self):
        return {}
'''


@pytest.fixture(scope="session")
def walk_env(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package ``walk_env``, in the way of a LeRobot plug-in."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "walk_env").mkdir()
    (folder / "walk_env" / "__init__.py").write_text(WALK_ENV)
    return folder


@pytest.fixture
def walk(walk_env: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(walk_env)
    return importlib.import_module("walk_env").WalkConfig()


@pytest.fixture
def pixio_train(walk_env: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run ``pixio-train`` in this process."""
    monkeypatch.syspath_prepend(walk_env)

    def call(*words: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", ["pixio-train", *map(str, words)])
        train_cli.run()

    return call


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 10), (100, 100), (1, 1)])
def test_intervals_are_wilsons(k: int, n: int) -> None:
    assert wilson(k, n) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-7)


@pytest.mark.parametrize("batch", [1, 2])
def test_an_evaluation_meets_the_same_scenes_every_time(
    make_config: Callable[..., PixioACTConfig], dataset_root: Path, walk: Any, batch: int
) -> None:
    frames = DatasetFrames(dataset_root)
    policy = make_policy(make_config(), frames, seed=0).train()
    evaluation = Evaluation(env=walk, every=5, n_episodes=6, first_seed=100, batch_size=batch)
    before = torch.random.get_rng_state()
    found = evaluation.run(policy, make_processors(policy, frames))
    assert torch.equal(torch.random.get_rng_state(), before)  # training draws the same numbers with or without it
    assert policy.training
    assert found["eval_success"] == 2 / 6  # 100 and 104
    assert (found["eval_success_low"], found["eval_success_high"]) == wilson(2, 6)
    assert found["eval_episodes"] == 6
    assert found["eval_s"] > 0


def test_an_evaluation_of_nothing_is_refused(walk: Any) -> None:
    with pytest.raises(SettingError, match=r"n_episodes of an evaluation must be at least 1, not 0"):
        Evaluation(env=walk, every=5, n_episodes=0)


def test_a_cache_is_made_beside_the_data_set_and_found_again(
    pixio_train: Callable[..., None], make_dataset: Callable[..., Path], encoder_folder: Path, tmp_path: Path
) -> None:
    root, run = make_dataset(tmp_path / "walks"), tmp_path / "run"
    words = [*ACT, f"--policy.encoder={encoder_folder}", "--policy.grid=2", "--policy.device=cpu", "--batch_size=8"]
    words += [f"--dataset.root={root}", "--log_freq=1", "--save_freq=2", "--env.discover_packages_path=walk_env"]
    words += ["--env.type=walk_env", "--env_eval_freq=2", "--eval.n_episodes=2"]
    pixio_train(*words, "--steps=4", f"--output_dir={run}")
    (made,) = find_caches(root)
    built = (made / "zarr.json").stat().st_mtime_ns
    pixio_train(*words, "--steps=4", f"--output_dir={tmp_path / 'again'}", "--seed=1")
    assert find_caches(root) == [made]
    assert (made / "zarr.json").stat().st_mtime_ns == built
    assert [row["step"] for row in rows(run) if "eval_success" in row] == [2, 4]
    assert {row["eval_success"] for row in rows(run) if "eval_success" in row} == {0.5}
    assert [row["loss"] for row in rows(run)] != [row["loss"] for row in rows(tmp_path / "again")]
    saved = json.loads((run / "checkpoints" / "last" / "pretrained_model" / "train_config.json").read_text())
    assert (saved["env"]["type"], saved["env_eval_freq"], saved["eval"]["n_episodes"]) == ("walk_env", 2, 2)


def test_a_policy_takes_a_cache_that_fits_or_has_its_own_built_beside_the_others(
    make_config: Callable[..., PixioACTConfig], make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_dataset(tmp_path / "walks")
    one, both = DatasetFrames(root, ["observation.images.top"]), DatasetFrames(root)
    narrow, _ = find_or_build_cache(one, make_config())
    narrow = narrow.rename(narrow.with_name("tiny-grid2.zarr"))  # as it was called before names held all that matters
    assert find_or_build_cache(one, make_config())[0] == narrow
    wide, _ = find_or_build_cache(both, make_config())
    assert find_or_build_cache(both, make_config())[0] == wide != narrow
    narrow.rename(tmp_path / "elsewhere.zarr")
    assert find_or_build_cache(one, make_config())[0] == wide
    rough, encoder = find_or_build_cache(both, make_config(encoder_dtype="bfloat16"))
    assert rough not in (narrow, wide)
    assert FeatureCache.open(rough).attributes["encoder_dtype"] == "bfloat16"
    build_cache(cache_folder(root) / "a.zarr", encoder, both, variants=1, augment=ImageAugmentation())
    assert find_or_build_cache(both, make_config(encoder_dtype="bfloat16"))[0] == rough
    with pytest.raises(CacheError, match=r"built in bfloat16, and the policy's encoder computes in float32"):
        train(make_config(), both, rough, tmp_path / "run", steps=1)


def test_no_cache_is_built_by_another_encoder_than_the_policys(
    make_config: Callable[..., PixioACTConfig], make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_dataset(tmp_path / "walks")
    with pytest.raises(CheckpointError, match=r"trained on the encoder .*; the one at hand has"):
        find_or_build_cache(DatasetFrames(root), make_config(encoder_hash="0" * 64))
    assert find_caches(root) == []


def test_what_a_run_would_refuse_is_refused_before_a_cache_is_built(
    pixio_train: Callable[..., None], make_dataset: Callable[..., Path], encoder_folder: Path, tmp_path: Path
) -> None:
    root, run = make_dataset(tmp_path / "walks"), tmp_path / "run"
    words = [*ACT, f"--policy.encoder={encoder_folder}", "--policy.device=cpu", "--batch_size=8"]
    words += [f"--dataset.root={root}", "--steps=1", f"--output_dir={run}"]
    pixio_train(*words, "--policy.grid=2")
    made = find_caches(root)
    with pytest.raises(SettingError, match=r"holds another run \(grid is 2 there, 1 here\)"):
        pixio_train(*words, "--policy.grid=1")
    with pytest.raises(SettingError, match=r"leave the policy blind"):
        pixio_train(*words, "--policy.classes=none", "--policy.patches=none", f"--output_dir={tmp_path / 'blind'}")
    assert find_caches(root) == made
    with pytest.raises(DataError, match=r"no LeRobotDataset at .*walsk"):
        pixio_train(*words, "--dataset.repo_id=local/walks", f"--dataset.root={tmp_path / 'walsk'}")
    assert not (tmp_path / "walsk").exists()


def test_a_blind_policy_may_be_given_a_cache_and_a_rate_without_effect_makes_no_other_run(
    pixio_train: Callable[..., None], make_dataset: Callable[..., Path], encoder_folder: Path, tmp_path: Path
) -> None:
    root = make_dataset(tmp_path / "walks")
    words = [*ACT, f"--policy.encoder={encoder_folder}", "--policy.device=cpu", "--batch_size=8", "--steps=1"]
    words += [f"--dataset.root={root}", f"--output_dir={tmp_path / 'run'}"]
    pixio_train(*words, "--policy.optimizer_lr_backbone=1e-4")
    pixio_train(*words)
    known = json.loads((tmp_path / "run" / "checkpoints" / "last" / "pretrained_model" / "config.json").read_text())
    assert (known["optimizer_lr_backbone"], known["grid"]) == (1e-4, 4)
    (made,) = find_caches(root)
    words[-1] = f"--output_dir={tmp_path / 'blind'}"
    pixio_train(*words, "--policy.blind=true", f"--policy.cache={made}")


def test_caches_of_the_hubs_data_sets_lie_outside_its_snapshots(tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "datasets--me--pick--cubes" / "snapshots" / "0123"
    assert cache_folder(hub) == HF_LEROBOT_HOME / "me" / "pick--cubes.pixio_cache"
    assert cache_folder(tmp_path / "snapshots" / "walks") == tmp_path / "snapshots" / "walks.pixio_cache"


def test_what_pixio_train_does_not_do_is_refused(
    pixio_train: Callable[..., None], make_config: Callable[..., PixioACTConfig], dataset_root: Path, tmp_path: Path
) -> None:
    root = f"--dataset.root={dataset_root}"
    with pytest.raises(SettingError, match=r"pixio_act or pixio_diffusion; given: act.*lerobot-train"):
        pixio_train("--policy.type=act", "--policy.device=cpu", "--policy.push_to_hub=false", root)
    with pytest.raises(SettingError, match=r"given: none"):
        pixio_train(root)
    with pytest.raises(SettingError, match=r"hf upload"):
        pixio_train(*ACT, "--policy.device=cpu", "--policy.push_to_hub=true", root)
    make_config(use_peft=True).save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=rf"no --peft, by which {tmp_path} was trained.*lerobot-train, from images"):
        pixio_train(f"--policy.path={tmp_path}", root)
    with pytest.raises(SettingError, match=r"Which demonstrations\?"):
        pixio_train(*ACT, "--policy.device=cpu")


def program(name: str, *words: str | Path, plugins: Path, wait: bool = True) -> Any:
    """Run one of the environment's programs in a process of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(plugins)
    place = Path(sys.executable).with_name(name)
    process = subprocess.Popen(
        [place, *map(str, words)], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    if wait:
        _, told = process.communicate(timeout=900)
        assert process.returncode == 0, told[-3000:]
    return process


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ACT, DIFFUSION], ids=["act", "diffusion"])
def test_a_run_outlives_kill_9_and_lerobots_own_programs_go_on_with_it(
    kind: list[str], dataset_root: Path, encoder_folder: Path, cache: Path, walk_env: Path, tmp_path: Path
) -> None:
    """Train, kill, train on; evaluate with lerobot-eval, train on with lerobot-train, load with bare LeRobot."""
    words = [*kind, f"--policy.encoder={encoder_folder}", "--policy.grid=2", "--policy.device=cpu", f"--cache={cache}"]
    words += [f"--dataset.root={dataset_root}", "--batch_size=8", "--log_freq=1", "--save_freq=20", "--steps=160"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    program("pixio-train", *words, f"--output_dir={whole}", plugins=walk_env)
    process = program("pixio-train", *words, f"--output_dir={killed}", plugins=walk_env, wait=False)
    while not (killed / "checkpoints" / "last").is_symlink():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(rows(killed)) < 160
    program("pixio-train", *words, f"--output_dir={killed}", plugins=walk_env)
    assert [row["loss"] for row in rows(killed)] == [row["loss"] for row in rows(whole)]

    policy = whole / "checkpoints" / "last" / "pretrained_model"
    environment = ["--env.discover_packages_path=walk_env", "--env.type=walk_env", "--eval.n_episodes=4"]
    measured = tmp_path / "measured"
    program(
        "lerobot-eval",
        f"--policy.path={policy}",
        "--policy.device=cpu",
        *environment,
        "--eval.batch_size=1",
        "--seed=100",
        f"--output_dir={measured}",
        plugins=walk_env,
    )
    assert json.loads((measured / "eval_info.json").read_text())["overall"]["pc_success"] == 25

    program(
        "lerobot-train",
        f"--config_path={policy / 'train_config.json'}",
        "--resume=true",
        "--steps=161",
        "--num_workers=0",
        plugins=walk_env,
    )
    last = whole / "checkpoints" / "last"
    assert last.resolve().name == "000161"

    config = PreTrainedConfig.from_pretrained(last / "pretrained_model")
    before, after = (
        get_policy_class(config.type).from_pretrained(place, config=config).state_dict()
        for place in (policy.parent.parent / "000160" / "pretrained_model", last / "pretrained_model")
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
