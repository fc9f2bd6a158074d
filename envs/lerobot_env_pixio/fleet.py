"""Environments in worker processes: what `rollouts` plays on."""

import contextlib
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_env_pixio.environment import ManipulationEnv, Observation
from lerobot_env_pixio.processes import SPAWN, settle_in, without_main_script
from lerobot_env_pixio.videos import side_by_side, write_video
from pixio_robot.errors import RenderError

_START = 300.0  # seconds that a process may take to its first picture
_FILMED = 50  # steps of a film, which is one answer, that one patience is for


@dataclass(frozen=True, kw_only=True)
class Start:
    """Ask for a new episode in a slot."""

    slot: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Advance:
    """Ask for actions [k a] to be taken in a slot."""

    slot: int
    actions: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Film:
    """Ask for an episode that has ended to be taken again, this time with every step looked at.

    Physics follow scene and actions exactly, so a film shows what happened, and only episodes that are worth a film
    cost the rendering of one.
    """

    slot: int
    seed: int
    actions: NDArray[np.float32]
    path: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an episode ended. With an error it broke off, and says nothing about the policy.

    Attributes:
        success: Whether the task was solved; None if the episode broke off.
        total_reward: Sum of the rewards.
        steps: Steps that were taken.
        milestone: The furthest of the task's milestones that was passed; see ``EpisodeRecord``.
        error: Why it broke off.
        actions: What was done, float32 [t a]; None if it broke off.
    """

    success: bool | None
    total_reward: float
    steps: int
    milestone: str | None = None
    error: str | None = None
    actions: NDArray[np.float32] | None = None


Request = Start | Advance | Film
Answer = Observation | Outcome | Path
"""What is seen, how the episode ended, or where its film is."""


class Fleet:
    """Worker processes that share out slots, each slot an environment of its own. A lost worker is replaced.

    Args:
        make: Makes one environment; must be picklable.
        workers: Processes; slot s lives in worker s modulo their number.
        patience: Seconds without any answer after which the awaited workers count as hung.

    Raises:
        Exception: Whatever making an environment, or its first picture, raised in a worker.
        RenderError: A worker died of it, or hung.
    """

    def __init__(self, make: Callable[[], ManipulationEnv], *, workers: int, patience: float) -> None:
        self._make, self._patience = make, patience
        self._workers: list[_Worker] = []
        try:
            self._workers += [_Worker(make) for _ in range(workers)]
            for worker in self._workers:
                worker.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()

    def ask(self, requests: Sequence[Request]) -> dict[int, Answer]:
        """Have requests carried out, at most one per slot, in the order of their slots.

        Returns:
            Slot to what is seen there, how the episode ended, or where its film is. Slots that a lost worker held
            without being at fault are missing: their episodes have to start anew.
        """
        requests = sorted(requests, key=lambda request: request.slot)
        awaited: dict[int, deque[int]] = {}
        for number, worker in enumerate(self._workers):
            mine = [request for request in requests if request.slot % len(self._workers) == number]
            if mine:
                worker.send(mine)
                awaited[number] = deque(request.slot for request in mine)
        answers: dict[int, Answer] = {}
        films = [len(request.actions) for request in requests if isinstance(request, Film)]
        patience = self._patience * max([1.0, *(steps / _FILMED for steps in films)])
        while awaited:
            pipes = {self._workers[number].pipe: number for number in awaited}
            answering = [pipes[pipe] for pipe in wait(list(pipes), patience)]  # pyright: ignore[reportArgumentType]
            for number in answering or list(awaited):
                try:
                    if not answering:
                        raise _WorkerLostError(f"no answer within {patience:g} seconds")
                    slot, answers[slot] = self._workers[number].receive()
                    awaited[number].popleft()
                except _WorkerLostError as error:
                    ended = {slot: answer for slot, answer in answers.items() if isinstance(answer, Outcome | Path)}
                    others = {slot: answer for slot, answer in answers.items() if slot % len(self._workers) != number}
                    answers = ended | others  # what still went on in this worker is gone
                    culprit = awaited.pop(number)[0]
                    answers[culprit] = Outcome(success=None, total_reward=0.0, steps=0, error=str(error))
                    self._replace(number)
                else:
                    if not awaited[number]:
                        del awaited[number]
        return answers

    def _replace(self, number: int) -> None:
        self._workers[number].close()
        self._workers[number] = _Worker(self._make)
        self._workers[number].wait_until_ready()


class _WorkerLostError(RuntimeError):
    """A worker process has died or no longer answers."""


class _Worker:
    """This side of a worker process."""

    def __init__(self, make: Callable[[], ManipulationEnv]) -> None:
        self.pipe, far = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_serve, args=(far, make), daemon=True)
        with without_main_script(make):
            self._process.start()
        far.close()  # the pipe ends when the process does

    def wait_until_ready(self) -> None:
        try:
            slow = RenderError(f"No picture within {_START:g} seconds. See check_rendering().")
            error = self.receive() if self.pipe.poll(_START) else slow
        except _WorkerLostError as lost:
            raise RenderError(f"A worker failed at its first picture: {lost}. See check_rendering().") from lost
        if error is not None:
            raise error

    def send(self, requests: list[Request]) -> None:
        with contextlib.suppress(OSError):  # one that has died is noticed when it does not answer
            self.pipe.send(requests)

    def receive(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=5)
            raise _WorkerLostError(f"the process died, exit status {self._process.exitcode}") from error

    def close(self) -> None:
        self._process.kill()  # it holds nothing that could be lost
        self._process.join()
        self.pipe.close()


class _Slot:
    """One environment and the episode in it."""

    def __init__(self, env: ManipulationEnv) -> None:
        self.env = env

    def answer(self, request: Request) -> Answer:
        if isinstance(request, Start):
            self.total_reward, self.actions = 0.0, np.empty((0, self.env.action_size), np.float32)
            return self.env.reset(seed=request.seed)[0]
        if isinstance(request, Advance):
            return self._advance(request.actions)
        write_video(request.path, self._frames(request))
        return request.path

    def _advance(self, actions: NDArray[np.float32]) -> Observation | Outcome:
        observation, reward, terminated, truncated, info = self.env.advance(actions)
        self.total_reward += reward
        self.actions = np.concatenate([self.actions, actions[: info["steps"]]])
        if terminated or truncated:
            return Outcome(
                success=info["is_success"],
                total_reward=self.total_reward,
                steps=len(self.actions),
                milestone=self.env.milestone,
                actions=self.actions,
            )
        return observation

    def _frames(self, request: Film) -> Iterator[NDArray[np.uint8]]:
        yield side_by_side(self.env.reset(seed=request.seed)[0]["pixels"])
        for action in request.actions:
            yield side_by_side(self.env.step(action)[0]["pixels"])


def _serve(pipe: Connection, make: Callable[[], ManipulationEnv]) -> None:
    """Answer requests until the other side is gone."""
    settle_in()
    try:
        spare = make()
        spare.reset(seed=0)  # renders: a machine that cannot is told at once
    except Exception as error:
        pipe.send(error)
        return
    pipe.send(None)
    spares, slots = [spare], dict[int, _Slot]()
    while True:
        try:
            requests = pipe.recv()
        except EOFError:
            return
        for request in requests:
            try:
                if request.slot not in slots:
                    slots[request.slot] = _Slot(spares.pop() if spares else make())
                answer = slots[request.slot].answer(request)
            except Exception:
                slots.pop(request.slot, None)  # its state is anyone's guess: the next episode gets a fresh one
                answer = Outcome(success=None, total_reward=0.0, steps=0, error=traceback.format_exc(limit=-3))
            pipe.send((request.slot, answer))
