"""Which seeds a scene may be drawn from: four ranges that cannot meet.

A seed fixes where an episode's objects and goal stand. Demonstrations, evaluation and pre-training frames each draw
from a range of their own, so that no policy is measured on a scene that it, or its encoder, has seen. Settings that are
chosen by rollouts are chosen on the scenes for development, so that no measurement is on scenes that had a say either.
"""

from pixio_robot.errors import SettingError

DEMONSTRATION = range(1_000_000)
EVALUATION = range(1_000_000, 2_000_000)
FRAMES = range(2_000_000, 3_000_000)
DEVELOPMENT = range(3_000_000, 4_000_000)


def draw(purpose: range, count: int, *, first: int = 0) -> list[int]:
    """Give ``count`` seeds of a range, from its ``first``-th on.

    Raises:
        SettingError: The range does not hold that many.
    """
    if first < 0 or count < 0 or first + count > len(purpose):
        raise SettingError(
            f"first={first}, count={count}: the range holds {len(purpose)} seeds. "
            f"Ask for first >= 0, count >= 0 and first + count <= {len(purpose)}."
        )
    return list(purpose[first : first + count])
