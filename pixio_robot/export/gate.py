"""The gate: an exported model passes if it answers as torch does, and the error says where it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pixio_robot.errors import ExportError
from pixio_robot.export.backends import Session

TOLERANCE = 1e-4
"""How far an answer may be from torch's float32. Absolute up to 1 (a metre, for depth); beyond it, a share of the
value: at 8 m, 0.8 mm. float32 itself cannot resolve 1e-4 of a large number for long."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """How far one output is from torch's, at its worst.

    Attributes:
        output: Its name.
        absolute: Largest absolute difference, wherever that is.
        scaled: Largest difference by ``max(1, |expected|)``: what the gate judges.
        where: Index of that number; the first is the sample.
        expected: Torch's number there.
        found: The exported model's.
    """

    output: str
    absolute: float
    scaled: float
    where: tuple[int, ...]
    expected: float
    found: float


def ask(session: Session, inputs: Arrays, batch: int | None) -> dict[str, np.ndarray]:
    """Run samples through a session, in batches of the size that it was exported for.

    Args:
        session: The session.
        inputs: Samples by input name.
        batch: Of the graph; None for any, which is tried with two sizes.
    """
    count = len(inputs["images"])
    edges = [0, 1, count] if batch is None else list(range(0, count + 1, batch))
    parts = [session({name: values[start:stop] for name, values in inputs.items()}) for start, stop in pairwise(edges)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compare(found: Arrays, expected: Arrays) -> list[Deviation]:
    """Measure every output against torch's.

    Args:
        found: Answers by output.
        expected: Torch's.

    Raises:
        ExportError: An output that is missing, of another shape, or not finite.
    """
    deviations = []
    for name, right in expected.items():
        if name not in found:
            raise ExportError(f"There is no output {name!r}; there are: {', '.join(found)}.")
        answer = np.asarray(found[name], dtype=np.float64)
        if answer.shape != right.shape:
            raise ExportError(f"Output {name!r} is {list(answer.shape)}, and torch's is {list(right.shape)}.")
        if not np.isfinite(answer).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(answer))[0])
            raise ExportError(
                f"Output {name!r} is {answer[where]} at {list(where)}, where torch says {right[where]:g}."
            )
        difference = np.abs(answer - right)
        scaled = difference / np.maximum(1, np.abs(right))
        where = tuple(int(i) for i in np.unravel_index(scaled.argmax(), scaled.shape))
        deviations.append(
            Deviation(
                output=name,
                absolute=float(difference.max()),
                scaled=float(scaled[where]),
                where=where,
                expected=float(right[where]),
                found=float(answer[where]),
            )
        )
    return deviations


def check(deviations: Sequence[Deviation], backend: str, tolerance: float = TOLERANCE) -> None:
    """Let answers pass only if they are torch's.

    Raises:
        ExportError: An output is farther off than ``tolerance``; says which, how far and where.
    """
    wrong = [one for one in deviations if not one.scaled <= tolerance]
    if wrong:
        worst = max(wrong, key=lambda one: one.scaled)
        raise ExportError(
            f"{backend} does not answer as torch does: {worst.output!r} of self-test sample {worst.where[0]} is "
            f"{worst.found:.6g} at {list(worst.where[1:])}, and torch says {worst.expected:.6g}, off by "
            f"{abs(worst.found - worst.expected):.2g}; {tolerance:g} is allowed (beyond 1, that share of the value). "
            f"Outputs that are off: {', '.join(one.output for one in wrong)}."
        )
