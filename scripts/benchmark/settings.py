"""What a benchmark is made of."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from omegaconf import MISSING

from lerobot_env_pixio import Task, find_task, seeds
from lerobot_env_pixio.shifts import SHIFTS
from pixio_robot.errors import SettingError, UnknownNameError

CLEAN = "clean"
"""The condition without a shift."""
POLICIES = ("act", "diffusion", "mlp")

SCENES = {"evaluation": seeds.EVALUATION, "development": seeds.DEVELOPMENT}

READ_OUT = ("image_size", "classes", "patches", "grid", "standardize")
"""Options that random weights take over from the first arm, which they are the control of."""

SIGHT_OPTIONS = (*READ_OUT, "train_encoder", "train_blocks", "lora_rank", "optimizer_lr_encoder", "use_amp")
"""Fields of a policy in which arms may differ; see ``PixioOptions``."""

INCIDENTAL = (
    *("folder", "tier", "note", "reference", "videos", "save_every"),
    *("workers", "threads", "device", "report_only", "worker"),
)
"""Settings that decide no result: what the report tells of, and where and how fast cells are computed."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """An arm that says what an encoder's result is worth.

    Attributes:
        label: Its name on the page.
        color: Its colour there.
        answers: What is left open without it.
    """

    label: str
    color: str
    answers: str


CONTROLS = {
    "blind": Control(
        label="Blind: its own pose only", color="#8b949e", answers="how far the task is solved without seeing"
    ),
    "state": Control(
        label="Ground-truth state",
        color="#2da44e",
        answers="whether the policy, rather than its eyes, is what fails",
    ),
    "random": Control(
        label="Random weights",
        color="#e36209",
        answers="what pre-training buys over the same architecture with random weights",
    ),
    "cnn": Control(
        label="Small CNN, end to end",
        color="#cf222e",
        answers="what a small network of the task's own would have done",
    ),
}
"""The control arms, by name."""


@dataclass
class Training:
    """How long a policy is trained, the same for every arm.

    Attributes:
        steps: Optimizer steps; the last weights are measured.
        batch_size: Frames per step.
    """

    steps: int = MISSING
    batch_size: int = MISSING


@dataclass
class Benchmark:
    """Every setting of ``scripts/run_benchmark.py``.

    Attributes:
        tier: Name of the file that the settings come from, for the report.
        note: A sentence for the head of the report.
        folder: Where everything goes. Give the same command again to go on after a kill.
        tasks: SUITE/TASK, such as metaworld/pick-place-v3.
        policies: Of act, diffusion, mlp.
        arms: Name to encoder: whatever load_encoder reads, such as shipped:pixio_vitt16 or a folder; or what is learnt
            from the task's demonstrations: keypoints:128@shipped:descriptors, so many keypoints of each camera, with
            "random" for untrained descriptors; colors:64, the places of so many colours. The first one is what the
            others are compared with.
        options: Arm to fields of its policies in which it differs from the others, such as how tokens are read or
            what is trained: '+options.pixio={patches: spatial_softmax}', '+options.tuned={train_encoder: full}'.
        without: Control arms to leave out, of blind, state, random, cnn. Each leaves a question open.
        seeds: Training seeds; two at least for an interval that answers for training.
        demonstrations: Episodes of the expert per task.
        variants: Augmented copies of each picture of a demonstration that arms with eyes are trained on, beside the
            clean one: other light and colours, a nudged camera. All arms see the same ones.
        datasets: SUITE/TASK to the folder of a LeRobotDataset of yours, where the suite has no expert:
            '+datasets={adroit/pen: FOLDER}'.
        training: For each policy, steps and batch_size.
        episodes: Held-out scenes per condition.
        scenes: Which ones: evaluation, or development, on which to choose what is then measured on the others.
        shifts: Changes of looks to measure under, beside the clean scenes; never trained on.
        cameras: SUITE/TASK to cameras, the task's own where it is not named: '+cameras={aloha/insertion: [top]}'.
        size: Pixels of a side of every picture.
        encoder_dtype: What frozen encoders compute in, in caches and rollouts: float32, or bfloat16, which GPUs and
            CPUs with AVX512-BF16 or AMX do faster.
        slots: Episodes that a policy plays at once.
        videos: How many first failures, and first successes, are filmed for each condition of a cell.
        save_every: Steps between checkpoints, where a killed training goes on.
        workers: Processes for simulation.
        threads: Threads of PyTorch.
        device: Where policies train and act.
        report_only: Run nothing, and write the report of the cells that are done.
        reference: Arm that the report compares the others with, if not the first one.
        worker: Nothing by itself; it gives hydra something to start several processes by: -m worker=0,1,2,3.
    """

    tier: str = MISSING
    note: str = ""
    folder: str = MISSING
    tasks: list[str] = MISSING
    policies: list[str] = MISSING
    arms: dict[str, str] = MISSING
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    seeds: list[int] = MISSING
    demonstrations: int = MISSING
    variants: int = 0
    datasets: dict[str, str] = field(default_factory=dict)
    training: dict[str, Training] = MISSING
    episodes: int = MISSING
    scenes: str = "evaluation"
    shifts: list[str] = MISSING
    cameras: dict[str, list[str]] = field(default_factory=dict)
    size: int = MISSING
    encoder_dtype: str = "float32"
    slots: int = MISSING
    videos: int = MISSING
    save_every: int = MISSING
    workers: int = 1
    threads: int = 1
    device: str = "cpu"
    report_only: bool = False
    reference: str = ""
    worker: int = 0

    @property
    def conditions(self) -> dict[str, str | None]:
        """Name of each condition to the shift that ``make_env`` takes."""
        return {CLEAN: None} | {shift: shift for shift in self.shifts}

    @property
    def controls(self) -> list[str]:
        """The control arms that are on."""
        return [name for name in CONTROLS if name not in self.without]

    @property
    def arm_names(self) -> list[str]:
        """All arms: encoders, then controls."""
        return [*self.arms, *self.controls]

    @property
    def compared_with(self) -> str:
        """The arm that the report compares the others with."""
        return self.reference or next(iter(self.arms))

    def find_tasks(self) -> list[Task]:
        """Look the tasks up."""
        return [parse_task(name) for name in self.tasks]

    def cameras_of(self, task: Task) -> tuple[str, ...]:
        """The cameras that a task is looked at through."""
        named = {task_name(parse_task(name)): tuple(cameras) for name, cameras in self.cameras.items()}
        return named.get(task_name(task), task.cameras)

    def dataset_of(self, task: Task) -> Path | None:
        """The user's own demonstrations of a task, if there are any."""
        named = {task_name(parse_task(name)): Path(folder) for name, folder in self.datasets.items()}
        return named.get(task_name(task))

    def options_of(self, arm: str) -> dict[str, Any]:
        """In what an arm's policy differs from the default."""
        first = self.options.get(next(iter(self.arms)), {}) if arm == "random" else {}
        return {name: value for name, value in first.items() if name in READ_OUT} | dict(self.options.get(arm, {}))

    def train_encoder_of(self, arm: str) -> str:
        """How an arm has its encoder trained with the policy; "frozen" where its options do not say."""
        return self.options_of(arm).get("train_encoder", "frozen")

    def check(self) -> None:
        """Refuse what cannot be run, before anything is.

        Raises:
            UnknownNameError: A suite, task, policy, control or shift that does not exist; carries the nearest name.
            SettingError: Names given twice, numbers below 1, or entries for what is not run.
        """
        from lerobot_policy_pixio.options import EncoderDtype  # loads LeRobot, which --help need not wait for

        for kind, given, known in (
            ("policy", self.policies, POLICIES),
            ("control arm", self.without, CONTROLS),
            ("visual shift", self.shifts, SHIFTS),
            ("encoder_dtype", [self.encoder_dtype], get_args(EncoderDtype)),
            ("kind of scenes", [self.scenes], SCENES),
        ):
            for name in given:
                if name not in known:
                    raise UnknownNameError(kind, name, known)
        full = [task_name(task) for task in self.find_tasks()]
        for name in self.cameras:
            parse_task(name)  # a tier's file may name cameras of tasks that are not run here
        for name in self.datasets:
            if task_name(parse_task(name)) not in full:
                raise SettingError(f"datasets names {name!r}, which is not among tasks: {', '.join(full)}.")
        for key, values in (("tasks", full), ("policies", self.policies), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise SettingError(f"{key}={list(values)}: name at least one, and none twice.")
        taken = [name for name in self.arms if name in CONTROLS]
        if taken or not self.arms:
            raise SettingError(
                f"arms={dict(self.arms)}: at least one encoder is needed, under another name than the controls' "
                f"({', '.join(CONTROLS)})."
            )
        if self.compared_with not in self.arm_names:
            raise UnknownNameError("arm", self.reference, self.arm_names)
        for arm, options in self.options.items():
            seeing = [name for name in self.arm_names if name not in ("blind", "state")]
            if arm not in seeing:
                raise UnknownNameError("arm with eyes", arm, seeing)
            for name in options:
                if name not in SIGHT_OPTIONS:
                    raise UnknownNameError(f"option of {arm}", name, SIGHT_OPTIONS)
            if "mlp" in self.policies and (unread := {"classes", "patches", "grid", "standardize"} & options.keys()):
                raise SettingError(
                    f"options.{arm} sets {', '.join(sorted(unread))}, but the policy mlp always reads the mean token, "
                    f"as CortexBench does: leave them out ('~options.{arm}' where the tier's file sets them), and give "
                    "mlp a folder of its own if other policies are to keep them."
                )
        absent = [name for name in self.policies if name not in self.training]
        if absent:
            raise SettingError(f"training has no entry for the policy {absent[0]!r}: give its steps and batch_size.")
        numbers = ("demonstrations", "episodes", "size", "slots", "save_every", "workers", "threads")
        low = [name for name in numbers if getattr(self, name) < 1]
        low += [f"training.{name}" for name, one in self.training.items() if min(one.steps, one.batch_size) < 1]
        negative = [name for name in ("variants", "videos") if getattr(self, name) < 0]
        negative += ["seeds"] if min(self.seeds) < 0 else []
        if low or negative:
            raise SettingError(f"{', '.join(low or negative)}: must be at least {1 if low else 0}.")

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide a folder's results; where and how fast they are computed does not."""
        facts = json.loads(json.dumps(asdict(self)))
        for key in INCIDENTAL:
            del facts[key]
        for key in ("datasets", "cameras"):
            facts[key] = {task_name(parse_task(name)): value for name, value in facts[key].items()}
        facts["tasks"] = [task_name(task) for task in self.find_tasks()]
        facts["cameras"] = {name: facts["cameras"][name] for name in facts["tasks"] if name in facts["cameras"]}
        facts["training"] = {name: facts["training"][name] for name in self.policies}
        if self.variants:
            from lerobot_policy_pixio.augmentation import ImageAugmentation  # loads LeRobot

            facts["augmentation"] = dict(ImageAugmentation().description)
        else:
            del facts["variants"]  # a folder of before there were any is one without
        return facts


def parse_task(name: str) -> Task:
    """Look up SUITE/TASK.

    Raises:
        SettingError: It is not of that form.
        UnknownNameError: No such suite, or no such task in it.
    """
    suite, slash, task = name.partition("/")
    if not slash:
        raise SettingError(f"{name!r} is no task: write SUITE/TASK, such as metaworld/pick-place-v3.")
    return find_task(suite, task)


def task_name(task: Task) -> str:
    """SUITE/TASK in full."""
    return f"{task.suite}/{task.name}"


def counted(count: int, thing: str) -> str:
    """1 THING, or so many THINGs."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
