from typing import Any

import numpy as np
import pytest

from lerobot_env_pixio.aloha import AlohaSimulation
from lerobot_env_pixio.expert_table import measure_experts, write_table


def succeed(simulation: Any, seed: int) -> tuple[int, int, float]:
    """Play the expert: steps to the library's full reward and to our success, and the seconds between."""
    simulation.reset(seed)
    touched, passed = None, {0}
    for step in range(500):
        reward, success = simulation.step(simulation.expert_action())
        passed.add(simulation.passed())
        if reward == 4 and touched is None:
            touched = step
        if success:
            assert touched is not None
            assert {0, 1, 2} < passed  # milestones, one after the other
            return touched, step, (step - touched) / 50
    raise AssertionError("the expert failed")


@pytest.mark.parametrize("task", ["transfer-cube", "insertion"])
def test_the_expert_succeeds_and_half_a_second_of_holding_is_more_than_a_touch(task: str) -> None:
    touched, succeeded, seconds = succeed(AlohaSimulation(task), seed=0)
    assert succeeded > touched
    assert 0.4 < seconds < 2


def test_a_touch_is_no_success() -> None:
    """The library pays in full for a cube in the air that the left finger touches while the right hand holds it."""
    simulation: Any = AlohaSimulation("transfer-cube")
    simulation.reset(0)
    rewards = []
    for _ in range(270):  # the left hand has closed, the right one has not let go
        reward, success = simulation.step(simulation.expert_action())
        rewards.append(reward)
        assert not success
    assert max(rewards) == 4
    action = simulation.expert_action()
    for _ in range(100):
        assert not simulation.step(action)[1]


@pytest.mark.parametrize("task", ["transfer-cube", "insertion"])
def test_the_expert_goes_the_same_way_in_every_scene(task: str) -> None:
    """A straight wrist can be passed with the forearm as it is, or half a turn to either side."""
    simulation = AlohaSimulation(task)
    for seed in range(4):
        simulation.reset(seed)
        actions = [simulation.expert_action() for _ in range(190)]  # planned by the clock, from where the parts are
        rolls = np.stack(actions)[:, [3, 10]]
        assert np.abs(rolls).max() < np.pi / 3
        assert np.abs(np.diff(rolls, axis=0)).max() < 0.05


def test_two_environments_do_not_share_their_scene() -> None:
    one, two = (AlohaSimulation("transfer-cube") for _ in range(2))
    one.reset(1)
    where = one.data.body("box").xpos.copy()
    two.reset(2)
    assert (two.data.body("box").xpos != where).any()
    one.reset(1)
    np.testing.assert_array_equal(one.data.body("box").xpos, where)


def test_actions_are_joint_angles_beyond_one() -> None:
    simulation = AlohaSimulation("insertion")
    simulation.reset(0)
    assert simulation.rest[2] == pytest.approx(1.16)
    assert simulation.action_high[0] > 3
    assert simulation.action_low[6] == simulation.action_low[13] == 0
    np.testing.assert_allclose(simulation.position(), simulation.rest, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_both_experts_succeed_nearly_always(noise: float) -> None:
    trials = measure_experts("aloha", episodes=10, noise=noise, workers=2)
    assert trials.keys() == {"transfer-cube", "insertion"}
    for played in trials.values():
        assert sum(trial.solved_at is not None for trial in played) >= 9
    assert "| transfer-cube | " in write_table(trials)
