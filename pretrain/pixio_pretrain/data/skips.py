"""Samples that cannot be read: counted and named, and too many of them are an error."""

import logging

from pixio_robot.errors import DataError, SettingError

logger = logging.getLogger(__name__)

FREE = 10
"""Samples that a limit given as a share lets pass in any case."""


class Skipped(dict[str, str]):
    """Samples that could not be read: key to reason.

    Args:
        limit: How many may be skipped; below 1, the share of those read so far that may be, and ten in any case.

    Raises:
        SettingError: If the limit is negative.
    """

    def __init__(self, limit: float = 100) -> None:
        if limit < 0:
            raise SettingError(f"max_skipped must be a number of samples or a share below 1, not {limit}.")
        super().__init__()
        self.limit = limit

    def add(self, key: str, reason: str, *, seen: int) -> None:
        """Note a sample that could not be read, and say so in the log.

        Args:
            key: Its name.
            reason: What is wrong with it.
            seen: Samples read so far.

        Raises:
            DataError: If it is one too many.
        """
        if key not in self:
            logger.warning("Skipped %s: %s", key, reason)
        self[key] = reason
        self.check(seen)

    def check(self, seen: int) -> None:
        """Refuse too many.

        Raises:
            DataError: If there are more than the limit allows.
        """
        allowed = max(FREE, int(self.limit * seen)) if 0 < self.limit < 1 else int(self.limit)
        if len(self) > allowed:
            raise DataError(f"{len(self)} samples cannot be read; max_skipped={self.limit:g} allows {allowed}. {self}")

    def refuse_empty(self, seen: int) -> None:
        """Refuse a source of which nothing was read.

        Raises:
            DataError: If no sample was read.
        """
        if not seen:
            raise DataError(f"Not one sample can be read. {self}" if self else "There is not one sample.")

    def __str__(self) -> str:
        """The first few, in a sentence each."""
        first = [f"{key}: {reason}" for key, reason in list(self.items())[:3]]
        return f"{'The first: ' if len(self) > 3 else ''}{'; '.join(first)}."
