import os
import subprocess
import sys
from pathlib import Path

import pytest

from lerobot_env_pixio.processes import run_jobs
from pixio_robot.errors import RenderError

JOBS = """
import math
from lerobot_env_pixio.processes import run_jobs
print(*sorted(run_jobs(math.sqrt, [4.0, 9.0], workers=2)))
"""
ROLLOUT = """
from functools import partial
import numpy as np
from lerobot_env_pixio import make_env, rollout
make = partial(make_env, "metaworld", "reach", size=16, max_episode_steps=4)
print(len(rollout(lambda seen: np.zeros((len(seen["agent_pos"]), 4)), make, seeds=[1, 2], workers=2)))
"""
OWN = """
from lerobot_env_pixio.processes import run_jobs
def double(number):
    return 2 * number
if __name__ == "__main__":
    print(*sorted(run_jobs(double, [4, 9], workers=2)))
"""


@pytest.mark.parametrize(("rest", "answer"), [(JOBS, "2.0 3.0"), (ROLLOUT, "2")])
def test_a_script_without_a_guard_runs_once(rest: str, answer: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"print('begun')\n{rest}")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split("\n") == ["begun", answer, ""], done.stderr


def test_a_function_of_the_main_script_is_found(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(OWN)
    for words in ([str(tmp_path / "script.py")], ["-m", "script"]):
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.stdout == "8 18\n", done.stderr


def test_a_process_that_dies_is_told_in_the_projects_own_words() -> None:
    with pytest.raises(RenderError, match=r"One of 1 processes died.*fewer workers"):
        list(run_jobs(os._exit, [3], workers=1))
