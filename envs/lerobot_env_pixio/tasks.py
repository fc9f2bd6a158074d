"""The tasks of every suite: names, the sentence that describes each, and how long an episode may take."""

from dataclasses import dataclass

from pixio_robot.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One row of the table of tasks.

    Attributes:
        suite: the simulator that runs it, a key of `TASKS`.
        name: the task's name in that suite.
        description: one English sentence, the `task` of LeRobot data sets.
        max_episode_steps: the time limit, about twice what the scripted expert needs.
        horizon: steps after which the simulator refuses to go on.
    """

    suite: str
    name: str
    description: str
    max_episode_steps: int
    horizon: int = 500


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

TASKS: dict[str, dict[str, Task]] = {
    "metaworld": {
        name: Task(suite="metaworld", name=name, description=description, max_episode_steps=_SLOW.get(name, 200))
        for name, description in _META_WORLD.items()
    }
}
"""Suite, then task name, to the task."""


def find_suite(suite: str) -> dict[str, Task]:
    """Give a suite's tasks by name.

    Raises:
        UnknownNameError: No such suite; carries the nearest name.
    """
    if suite not in TASKS:
        raise UnknownNameError("suite", suite, TASKS)
    return TASKS[suite]


def find_task(suite: str, name: str) -> Task:
    """Look a task up; Meta-World's version suffix may be left out.

    Raises:
        UnknownNameError: No such suite, or no such task in it; carries the nearest name.
    """
    tasks = find_suite(suite)
    task = tasks.get(name) or tasks.get(f"{name}-v3")
    if task is None:
        raise UnknownNameError(f"{suite} task", name, tasks)
    return task
