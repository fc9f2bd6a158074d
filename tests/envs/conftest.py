"""One environment for all tests that only look at it."""

from collections.abc import Iterator

import pytest

from lerobot_env_pixio import ManipulationEnv, make_env


@pytest.fixture(scope="package")
def env() -> Iterator[ManipulationEnv]:
    env = make_env("metaworld", "pick-place-v3", cameras=("corner2", "gripperPOV"), size=(48, 64))
    yield env
    env.close()
