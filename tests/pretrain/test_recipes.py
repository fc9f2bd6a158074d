from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from pixio_pretrain import cli
from pixio_pretrain.config import RunConfig
from pixio_pretrain.costs import _builder, count_costs
from pixio_pretrain.manual import expectation, run_names

CONF = Path(cli.__file__).parent / "conf"


@cache
def config(name: str) -> RunConfig:
    with initialize_config_module("pixio_pretrain.conf", version_base="1.3"):
        loaded = OmegaConf.to_object(compose("config", [f"run={name}", "data=somewhere"]))
    assert isinstance(loaded, RunConfig)
    return loaded


@pytest.mark.parametrize("name", run_names())
def test_every_run_opens_with_its_command_and_what_to_expect(name: str) -> None:
    text = (CONF / f"run/{name}.yaml").read_text()
    assert text.splitlines()[0] == "# @package _global_"
    assert text.splitlines()[1].startswith(f"# pixio-pretrain run={name} data=PATH   -> ")
    assert expectation(name)
    assert yaml.safe_load(text)["folder"] == f"outputs/pretrain/{name}"


@pytest.mark.parametrize("name", run_names())
def test_every_run_builds(name: str) -> None:
    with torch.device("meta"):
        model = _builder(config(name).objective)()
    assert any(parameter.requires_grad for parameter in model.parameters())


# Learning rate, samples seen, share of warm-up, as the papers and their scripts have them.
PUBLISHED: dict[str, tuple[float, float, float]] = {
    "vith16_imagenet": (8e-4, 1605 * 400 * 8192, 0.1),
    "vit5b16_web": (8e-4, 1605 * 800 * 16384, 0.1),
    "mae_vitb16_imagenet": (2.4e-3, 312 * 800 * 4096, 0.05),
    "mae_vitl16_imagenet": (2.4e-3, 312 * 800 * 4096, 0.05),
    "mae_vith14_imagenet": (2.4e-3, 312 * 800 * 4096, 0.05),
    "pixpro_resnet50_100": (4.0, 1251 * 100 * 1024, 0.05),
    "pixpro_resnet50_400": (4.0, 1251 * 400 * 1024, 0.0125),
    "distill_vit1b16_vith16": (1e-3, 1605 * 400 * 8192, 0.1),
    "distill_vitl16_vitb16": (1e-3, 1605 * 400 * 8192, 0.1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_recipes_have_their_rates_and_lengths(name: str) -> None:
    recipe, (lr, samples, warmup) = config(name), PUBLISHED[name]
    assert recipe.lr == pytest.approx(lr)
    assert recipe.steps * recipe.batch_size == samples
    assert recipe.optimizer.warmup / recipe.steps == pytest.approx(warmup)
    assert recipe.learning_rate(recipe.optimizer.warmup) == pytest.approx(lr)
    assert recipe.views.held_out == 0.001


def test_the_published_recipes_have_these_settings() -> None:
    wanted: dict[str, dict[str, Any]] = {
        "vith16_imagenet": {"drop_path": 0.4, "mask_block": 4, "mask_ratio": 0.75, "decoder_depth": 32},
        "vit5b16_web": {"drop_path": 0.4, "mask_block": 4, "mask_ratio": 0.75, "decoder_width": 512},
        "mae_vith14_imagenet": {"drop_path": 0, "mask_block": 1, "decoder_depth": 8, "mirror": True},
        "pixpro_resnet50_400": {"gamma": 2, "transform_layers": 1, "momentum": 0.99, "threshold": 0.7},
        "distill_vit1b16_vith16": {"mask_ratio": 0.5, "mask_block": 4},
        "distill_vitl16_vitb16": {"mask_ratio": 0},
    }
    for name, settings in wanted.items():
        objective = config(name).objective
        assert {key: getattr(objective, key) for key in settings} == settings
    assert [s.drop_path for s in config("distill_vit1b16_vith16").objective.students.values()] == [0.4, 0.4]
    assert [s.drop_path for s in config("distill_vitl16_vitb16").objective.students.values()] == [0.1, 0.1]
    web = config("vit5b16_web").curation
    assert (web.histogram_above, web.resolution_from, web.soft_sampling) == (4.5, 320, True)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.startswith("pixpro")])
def test_transformers_are_trained_by_adamw(name: str) -> None:
    optimizer = config(name).optimizer
    assert (optimizer.name, tuple(optimizer.betas), optimizer.weight_decay) == ("adamw", (0.9, 0.95), 0.05)
    assert (optimizer.min_lr, optimizer.warmup_from) == (0, 0)
    assert config(name).views.crop_scale == 0.2


@pytest.mark.parametrize("name", ["pixpro_resnet50_100", "pixpro_resnet50_400"])
def test_resnets_are_trained_by_lars(name: str) -> None:
    optimizer = config(name).optimizer
    assert (optimizer.name, optimizer.betas[0], optimizer.weight_decay) == ("lars", 0.9, 1e-5)
    assert (optimizer.min_lr, optimizer.warmup_from) == (1e-6, 0.01)
    assert config(name).views.crop_scale == 0.08


@pytest.mark.parametrize(("name", "parameters"), [("vith16_imagenet", 733_075_968), ("vit5b16_web", 5_543_919_360)])
def test_the_largest_models_are_as_large_as_the_published_ones(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = config(name).objective.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_two_tiny_autoencoders_cost_the_same() -> None:
    operations = []
    for name in ("vitt16_metaworld", "mae_vitt16_metaworld"):
        run = config(name)
        operations.append(count_costs(run.objective, precision="fp32").step_flops * run.batch_size * run.steps)
    assert operations[1] == pytest.approx(operations[0], rel=1e-3)


def test_a_slurm_job_is_composed_if_its_plugin_is_there() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ["run=vitt16_metaworld", "data=x", "launcher=slurm", "hydra.launcher.nodes=2", "hydra.launcher.partition=a"]
    with initialize_config_module("pixio_pretrain.conf", version_base="1.3"):
        loaded = compose("config", words, return_hydra_config=True)
    launcher = loaded.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.nodes, launcher.partition, launcher.tasks_per_node) == (2, "a", 8)
    assert loaded.hydra.mode.name == "MULTIRUN"
