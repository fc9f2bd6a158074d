"""A comparison of policies that differ only in what they see: the place where policies and environments meet."""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import report
import torch
from circumstances import circumstances, versions
from rich.console import Console
from rich.table import Table
from small_policies import small_act

from lerobot_env_pixio import (
    EpisodeRecord,
    collect_demonstrations,
    find_task,
    make_env,
    read_records,
    rollout,
    seeds,
    write_records,
)
from lerobot_policy_pixio.acting import Actor
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.training import train
from pixio_robot import Encoder, build_cache, create_encoder, load_encoder
from pixio_robot.checkpoints import SHIPPED
from pixio_robot.errors import SettingError

SUITE = "metaworld"
CAMERAS = ("corner2", "gripperPOV")
SIZE = 128
PACKAGES = ("torch", "lerobot", "mujoco", "metaworld", "gymnasium", "numpy", "pixio-robot")
CONSOLE = Console()


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One policy of the comparison. All arms share demonstrations, settings, steps and evaluation seeds."""

    name: str
    label: str
    color: str
    encoder: Encoder | None
    source: str | None = None
    """What ``load_encoder`` reads to get the encoder again."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of one task's experiment, the same for every arm."""

    task: str
    demonstrations: int
    steps: int
    rollouts: int
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.demonstrations, self.steps, self.rollouts, self.batch_size) < 1:
            raise SettingError(f"{self}: demonstrations, steps, rollouts and batch_size must be at least 1.")


def run(plans: Sequence[Plan], folder: Path, *, workers: int) -> None:
    """Run every stage of every plan, print the tables, and write ``report.html``.

    Raises:
        SettingError: No workers.
    """
    if workers < 1:
        raise SettingError(f"workers={workers}: must be at least 1.")
    started = time.monotonic()
    folder = folder.resolve()  # so that the random arm is the same run from another working directory
    torch.set_num_threads(workers)
    CONSOLE.rule("[bold]pixio-robot: from rendered pixels to a measured policy")
    arms = make_arms(folder)
    tasks = [run_plan(plan, arms, folder / plan.task, workers) for plan in plans]
    for task in tasks:
        show(task)
    demonstrations = folder / plans[0].task / "demonstrations"
    minutes = f"{(time.monotonic() - started) / 60:.1f} minutes"
    report.write_report(
        folder / "report.html",
        tasks=tasks,
        pca=report.pca_picture(sample_frames(demonstrations), [arm.encoder for arm in arms if arm.encoder]),
        reconstructions=SHIPPED / "pixio_vitt16" / "picture.png",
        facts={**circumstances(), "duration": minutes},
        settings={
            "plans": [asdict(plan) for plan in plans],
            "policy": {key: str(value) for key, value in vars(small_act(arms[0].source, steps=plans[0].steps)).items()},
            "encoders": {arm.name: arm.encoder.provenance for arm in arms if arm.encoder},
            "demonstrations": json.loads((demonstrations / "generation.json").read_text()),
            "evaluation_seeds": [str(seeds.EVALUATION[: plan.rollouts]) for plan in plans],
            "packages": versions(*PACKAGES) | {"python": platform.python_version()},
        },
    )
    CONSOLE.print(f"\nReport: [bold]{folder / 'report.html'}[/], after {minutes}.")


def make_arms(folder: Path) -> list[Arm]:
    """Name the arms: the pre-trained encoder first, then no eyes at all, then the same network untrained."""
    pixio = load_encoder("shipped:pixio_vitt16")
    random = create_encoder("pixio_vitt16", seed=0, image_size=pixio.spec.image_size)
    random.save_pretrained(folder / "random_encoder")
    return [
        Arm(
            name="pixio",
            label="Pixio features, frozen",
            color="#1f6feb",
            encoder=pixio,
            source="shipped:pixio_vitt16",
        ),
        Arm(name="blind", label="Its own pose only (blind)", color="#8b949e", encoder=None),
        Arm(
            name="random",
            label="Random features, frozen",
            color="#e36209",
            encoder=random,
            source=str(folder / "random_encoder"),
        ),
    ]


def run_plan(plan: Plan, arms: Sequence[Arm], folder: Path, workers: int) -> report.TaskResult:
    """Collect demonstrations, then train and measure every arm on them."""
    CONSOLE.print(f"\n[bold]{plan.task}[/]: {plan.demonstrations} demonstrations of the scripted expert")
    demonstrations = collect_demonstrations(
        folder / "demonstrations",
        SUITE,
        plan.task,
        episodes=plan.demonstrations,
        cameras=CAMERAS,
        size=SIZE,
        workers=workers,
    )
    return report.TaskResult(
        name=plan.task,
        text=find_task(SUITE, plan.task).description,
        demonstrations=f"{plan.demonstrations} demonstrations ({len(DatasetFrames(demonstrations))} frames) of the "
        f"scripted expert, two cameras at {SIZE} pixels, on seeds that no evaluation uses.",
        training=f"{plan.steps} steps of {plan.batch_size} frames; the last checkpoint is the one that is measured.",
        arms=[run_arm(plan, arm, folder, workers) for arm in arms],
    )


def run_arm(plan: Plan, arm: Arm, folder: Path, workers: int) -> report.ArmResult:
    """Cache one encoder's features, train its policy, and roll it out on the held-out seeds."""
    CONSOLE.print(f"\n[bold]{plan.task}[/]: {arm.label}")
    demonstrations, home, cache = folder / "demonstrations", folder / arm.name, None
    config = small_act(arm.source, steps=plan.steps)
    if arm.encoder is not None:
        cache = home / "cache"
        build_cache(cache, arm.encoder, DatasetFrames(demonstrations), grid=config.grid)
    _, log = train(
        config,
        demonstrations,
        cache,
        home / "run",
        steps=plan.steps,
        batch_size=plan.batch_size,
        seed=plan.seed,
        encoder=arm.encoder,
    )
    records = measure(plan, arm, home, workers)
    film = home / "videos" / Path(records[0].video or "").name  # the record's path is of the working directory then
    return report.ArmResult(
        name=arm.name,
        label=arm.label,
        color=arm.color,
        records=records,
        losses=[(int(line["step"]), line["loss"]) for line in log],
        video=film.read_bytes() if film.is_file() else None,
    )


def measure(plan: Plan, arm: Arm, home: Path, workers: int) -> list[EpisodeRecord]:
    """Roll the last checkpoint out on the held-out seeds, or read the records of when that was done."""
    path = home / f"records_{plan.steps}_steps_{plan.rollouts}_episodes.jsonl"
    if path.exists():
        return read_records(path)
    records = rollout(
        Actor.from_pretrained(home / "run" / "checkpoints" / "last" / "pretrained_model"),
        partial(make_env, SUITE, plan.task, cameras=CAMERAS, size=SIZE),
        seeds=seeds.draw(seeds.EVALUATION, plan.rollouts),
        workers=workers,
        arm=arm.name,
        policy_seed=plan.seed,
        encoder=arm.encoder.fingerprint if arm.encoder else None,
        videos=1,
        video_folder=home / "videos",
    )
    write_records(path, records)
    return records


def sample_frames(demonstrations: Path) -> torch.Tensor:
    """Two frames of the first demonstration from each camera: uint8 [n 3 h w]."""
    source = DatasetFrames(demonstrations)
    return torch.cat([source.read(camera, row, row + 1) for camera in source.cameras for row in (10, 40)])


def show(task: report.TaskResult) -> None:
    """Print a task's table and what it says."""
    table = Table(title=f"\n{task.name}: success on held-out seeds", title_justify="left")
    for column in ("the policy sees", "success", "rate", "95 % Wilson interval"):
        table.add_column(column)
    for arm in task.arms:
        row = report.arm_row(arm)
        table.add_row(row["label"], f"{row['successes']}/{row['episodes']}", row["rate"], row["interval"])
    CONSOLE.print(table)
    for sentence in report.reading(task.arms)[len(task.arms) :]:
        CONSOLE.print(sentence)
