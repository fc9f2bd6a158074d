"""What the four distributions promise together: arrows, a light core, discovery by LeRobot, public names."""

import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PLUGINS = ("lerobot_policy_pixio", "lerobot_env_pixio")
PACKAGES = ("pixio_robot", *PLUGINS, "pixio_pretrain")
FRAMEWORKS = {"lerobot", "transformers", "gymnasium", "mujoco", "metaworld", "hydra", "omegaconf", "torchvision"}


def run(*command: str | Path) -> str:
    """What the command prints on either stream; the test fails with it if the command does."""
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.returncode == 0, process.stdout
    return process.stdout


def test_imports_follow_the_arrows() -> None:
    run(Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo")


def test_importing_the_core_loads_no_framework() -> None:
    loaded = run(sys.executable, "-c", "import sys; from pixio_robot import *; print(*sys.modules)").split()
    assert "torch" in loaded
    assert FRAMEWORKS.isdisjoint(loaded)


@pytest.mark.parametrize("package", ["pixio_robot", "lerobot_env_pixio"])
def test_a_simulator_process_loads_no_pytorch(package: str) -> None:
    assert "torch" not in run(sys.executable, "-c", f"import sys, {package}; print(*sys.modules)").split()


def test_the_core_needs_eight_packages_and_nothing_more() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {Requirement(dependency).name for dependency in project["dependencies"]}
    assert names == {"torch", "numpy", "einops", "filelock", "zarr", "safetensors", "huggingface-hub", "pillow"}


def test_lerobot_discovers_and_imports_both_plugins() -> None:
    # LeRobot logs a plug-in that fails to import and goes on, so its log is what tells.
    log = run(
        sys.executable,
        "-c",
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from lerobot.utils.import_utils import register_third_party_plugins as discover; discover()",
    )
    assert {name for name in PLUGINS if f"Imported third-party plugin: {name}\n" in log} == set(PLUGINS), log


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports(package: str) -> None:
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(found.__path__, prefix=f"{package}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_listed_once_and_real(package: str) -> None:
    module = importlib.import_module(package)
    listed = module.__all__  # its order is ruff's RUF022
    assert listed
    assert len(set(listed)) == len(listed)
    assert [name for name in listed if not hasattr(module, name)] == []
    ours = {name for name, value in vars(module).items() if getattr(value, "__module__", "").startswith(PACKAGES)}
    assert {name for name in ours if not name.startswith("_")} <= set(listed)
