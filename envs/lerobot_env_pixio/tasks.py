"""The tasks of every suite: names, the sentence that describes each, and how long an episode may take."""

from collections.abc import Sequence
from dataclasses import dataclass

from pixio_robot.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One row of the table of tasks.

    Attributes:
        suite: The simulator that runs it, a key of ``SUITES``.
        name: The task's name in that suite.
        description: One English sentence, the ``task`` of LeRobot data sets.
        max_episode_steps: The time limit; about twice what the scripted expert needs, where there is one.
        horizon: Steps after which the simulator refuses to go on, or the suite's own time limit.
        fps: Steps per second of simulated time.
        cameras: What it is looked at through, unless others are named.
        axes: How many numbers an action has, and a position.
        target_reward: None where a task can be solved, which ends the episode. Where it can only be done well all the
            time, the mean reward per step from which on an episode counts as a success when its time is up.
        milestones: What lies on the way to success, in its order, as far as the suite tells: records say how far an
            episode came.
    """

    suite: str
    name: str
    description: str
    max_episode_steps: int
    horizon: int
    fps: int
    cameras: tuple[str, ...]
    axes: int
    target_reward: float | None = None
    milestones: tuple[str, ...] = ()

    @property
    def gym_id(self) -> str:
        """What `gymnasium.make` knows it by."""
        return f"lerobot_env_pixio/{self.name if self.suite == 'metaworld' else f'{self.suite}-{self.name}'}"


_META_WORLD = {
    "assembly-v3": "Put the ring over the peg",
    "basketball-v3": "Drop the ball through the hoop",
    "bin-picking-v3": "Move the puck from one bin to the other",
    "box-close-v3": "Close the box with its lid",
    "button-press-topdown-v3": "Press the button from above",
    "button-press-topdown-wall-v3": "Reach over the wall and press the button from above",
    "button-press-v3": "Press the button",
    "button-press-wall-v3": "Reach around the wall and press the button",
    "coffee-button-v3": "Press the button of the coffee machine",
    "coffee-pull-v3": "Pull the mug away from the coffee machine",
    "coffee-push-v3": "Push the mug under the coffee machine",
    "dial-turn-v3": "Turn the dial",
    "disassemble-v3": "Lift the ring off the peg",
    "door-close-v3": "Close the door",
    "door-lock-v3": "Lock the door",
    "door-open-v3": "Open the door",
    "door-unlock-v3": "Unlock the door",
    "drawer-close-v3": "Close the drawer",
    "drawer-open-v3": "Open the drawer",
    "faucet-close-v3": "Close the faucet",
    "faucet-open-v3": "Open the faucet",
    "hammer-v3": "Hammer the nail into the wall",
    "hand-insert-v3": "Put the puck and the gripper into the hole",
    "handle-press-side-v3": "Press the handle down from the side",
    "handle-press-v3": "Press the handle down",
    "handle-pull-side-v3": "Pull the handle up from the side",
    "handle-pull-v3": "Pull the handle up",
    "lever-pull-v3": "Pull the lever up",
    "peg-insert-side-v3": "Push the peg into the hole from the side",
    "peg-unplug-side-v3": "Pull the peg out sideways",
    "pick-out-of-hole-v3": "Lift the puck out of the hole",
    "pick-place-v3": "Lift the puck to the goal",
    "pick-place-wall-v3": "Lift the puck over the wall to the goal",
    "plate-slide-back-side-v3": "Slide the plate sideways out of the cabinet",
    "plate-slide-back-v3": "Slide the plate out of the cabinet",
    "plate-slide-side-v3": "Slide the plate sideways into the cabinet",
    "plate-slide-v3": "Slide the plate into the cabinet",
    "push-back-v3": "Pull the puck back to the goal",
    "push-v3": "Push the puck to the goal",
    "push-wall-v3": "Push the puck around the wall to the goal",
    "reach-v3": "Move the gripper to the goal",
    "reach-wall-v3": "Move the gripper over the wall to the goal",
    "shelf-place-v3": "Put the puck on the shelf",
    "soccer-v3": "Push the ball into the goal",
    "stick-pull-v3": "Pull the box with the stick",
    "stick-push-v3": "Push the box with the stick",
    "sweep-into-v3": "Sweep the puck into the hole",
    "sweep-v3": "Sweep the puck off the table",
    "window-close-v3": "Close the window",
    "window-open-v3": "Open the window",
}

_SLOW = {
    "disassemble-v3": 300,
    "peg-insert-side-v3": 400,
    "peg-unplug-side-v3": 300,
    "pick-out-of-hole-v3": 300,
    "push-back-v3": 400,
    "stick-pull-v3": 300,
}
"""Time limits where the expert needs longer than elsewhere, in steps."""

_LIFTED = (
    "assembly-v3",
    "basketball-v3",
    "bin-picking-v3",
    "disassemble-v3",
    "peg-insert-side-v3",
    "pick-out-of-hole-v3",
    "pick-place-v3",
    "pick-place-wall-v3",
    "shelf-place-v3",
    "stick-pull-v3",
)
_MOVED = (
    "coffee-pull-v3",
    "coffee-push-v3",
    "peg-unplug-side-v3",
    "plate-slide-back-side-v3",
    "plate-slide-back-v3",
    "plate-slide-side-v3",
    "plate-slide-v3",
    "push-back-v3",
    "push-v3",
    "push-wall-v3",
    "soccer-v3",
    "sweep-into-v3",
)
_MILESTONES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_LIFTED, ("moved", "lifted")),
    **dict.fromkeys(_MOVED, ("moved",)),
}
"""What happens to the object on the way, where it lies still by itself and its place is observed."""

_ADROIT = {
    "door": ("Unlatch the door and pull it open", 28),
    "hammer": ("Take the hammer and drive the nail into the board", 26),
    "pen": ("Turn the pen in the hand to the direction of the green one", 24),
    "relocate": ("Carry the ball to the green sphere", 30),
}
"""Sentence, and how many joints."""

# What the experts of CortexBench's demonstrations earn per step, by the authors of that benchmark, is 0.759 for the
# cheetah and 0.743 for the finger, and 0.92 to 0.97 for the others. Four fifths of it count as a success.
_CONTROL_SUITE = {
    "cheetah-run": ("Run forward", 100, "side", 6, 0.61),
    "finger-spin": ("Spin the body with the finger", 50, "cam0", 2, 0.59),
    "reacher-easy": ("Keep the tip of the arm in the target", 50, "fixed", 2, 0.77),
    "walker-stand": ("Stand upright", 40, "side", 6, 0.78),
    "walker-walk": ("Walk forward", 40, "side", 6, 0.73),
}
"""Sentence, steps per second, camera, how many joints, target reward."""

_ALOHA = {
    "insertion": ("Insert the peg into the socket", ("touched", "lifted", "peg at the socket")),
    "transfer-cube": (
        "Pick up the cube with the right arm and hand it over to the left",
        ("touched", "lifted", "met by the left hand"),
    ),
}
"""Sentence, and what the library's rewards of 1, 2 and 3 stand for."""

TASKS: dict[str, dict[str, Task]] = {
    "metaworld": {
        name: Task(
            suite="metaworld",
            name=name,
            description=description,
            max_episode_steps=_SLOW.get(name, 200),
            horizon=500,
            fps=80,
            cameras=("corner2", "gripperPOV"),
            axes=4,
            milestones=_MILESTONES.get(name, ()),
        )
        for name, description in _META_WORLD.items()
    },
    "adroit": {
        name: Task(
            suite="adroit",
            name=name,
            description=description,
            max_episode_steps=200,
            horizon=500,
            fps=100,
            cameras=("vil_camera",),
            axes=axes,
        )
        for name, (description, axes) in _ADROIT.items()
    },
    "dmcontrol": {
        name: Task(
            suite="dmcontrol",
            name=name,
            description=description,
            max_episode_steps=1000,
            horizon=1000,
            fps=fps,
            cameras=(camera,),
            axes=axes,
            target_reward=target,
        )
        for name, (description, fps, camera, axes, target) in _CONTROL_SUITE.items()
    },
    "aloha": {
        name: Task(
            suite="aloha",
            name=name,
            description=description,
            max_episode_steps=500,
            horizon=1000,
            fps=50,
            cameras=("top", "left_wrist", "right_wrist"),
            axes=14,
            milestones=milestones,
        )
        for name, (description, milestones) in _ALOHA.items()
    },
}
"""Suite, then task name, to the task."""

TASK_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "metaworld": {
        "mt10": (
            "reach-v3",
            "push-v3",
            "pick-place-v3",
            "door-open-v3",
            "drawer-open-v3",
            "drawer-close-v3",
            "button-press-topdown-v3",
            "peg-insert-side-v3",
            "window-open-v3",
            "window-close-v3",
        ),
        "cortex-metaworld": (
            "assembly-v3",
            "bin-picking-v3",
            "button-press-topdown-v3",
            "drawer-open-v3",
            "hammer-v3",
        ),
    },
    "adroit": {"cortex-adroit": ("pen", "relocate")},
    "dmcontrol": {"cortex-dmcontrol": tuple(_CONTROL_SUITE)},
    "aloha": {},
}
"""Suite, then name of a set, to its tasks; every suite's set "all" is understood."""


def find_task(suite: str, name: str) -> Task:
    """Look a task up; Meta-World's version suffix may be left out.

    Raises:
        UnknownNameError: No such suite, or no such task in it; carries the nearest name.
    """
    tasks = _tasks_of(suite)
    task = tasks.get(name) or tasks.get(f"{name}-v3")
    if task is None:
        raise UnknownNameError(f"{suite} task", name, tasks)
    return task


def find_tasks(suite: str, names: str | Sequence[str] = "all") -> list[Task]:
    """Look up several tasks of a suite.

    Args:
        suite: A key of ``TASKS``.
        names: Names of tasks or of sets of them: "all", or a key of the suite's ``TASK_SETS``.

    Returns:
        The tasks, each once, in the order of their first mention.

    Raises:
        UnknownNameError: No such suite, task or set; carries the nearest name.
    """
    tasks = _tasks_of(suite)
    sets = {"all": tuple(tasks)} | TASK_SETS[suite]
    found: dict[str, Task] = {}
    for name in [names] if isinstance(names, str) else names:
        if name not in sets and name not in tasks and f"{name}-v3" not in tasks:
            raise UnknownNameError(f"{suite} task, or set of tasks,", name, [*tasks, *sets])
        for member in sets.get(name, (name,)):
            task = find_task(suite, member)
            found[task.name] = task
    return list(found.values())


def _tasks_of(suite: str) -> dict[str, Task]:
    if suite not in TASKS:
        raise UnknownNameError("suite", suite, TASKS)
    return TASKS[suite]
