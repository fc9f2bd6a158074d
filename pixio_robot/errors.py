"""Every error that the project raises on purpose.

PixioRobotError
├── UnknownNameError (also KeyError)      a name that no registry holds; carries the nearest one
├── ImageError (also ValueError)          images of a wrong shape, type or range
├── SettingError (also ValueError)        a setting or an argument that cannot work
├── CheckpointError (also ValueError)     weights that are missing, truncated, foreign or unsafe
├── CacheError (also ValueError)          a feature cache of another encoder or data set, or an unfinished one
├── DataError (also ValueError)           a data set without what was asked of it
├── ExportError (also ValueError)         an exported model that answers otherwise than torch, or is damaged
└── RenderError (also RuntimeError)       this machine cannot render
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class PixioRobotError(Exception):
    """The root: catch this to catch everything that the project raises on purpose."""


class UnknownNameError(PixioRobotError, KeyError):
    """A name that no registry holds."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        self.kind, self.name, self.known = kind, name, known
        self.nearest = next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.4)), None)
        hint = f" Did you mean {self.nearest!r}?" if self.nearest else ""
        listed = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        self.message = f"No {kind} is called {name!r}.{hint} Known: {listed}."
        super().__init__(self.message)

    def __str__(self) -> str:
        """KeyError would show the message quoted."""
        return self.message

    def __reduce__(self) -> tuple[type, tuple[str, str, list[str]]]:
        """Let a worker process send it home."""
        return type(self), (self.kind, self.name, self.known)


class ImageError(PixioRobotError, ValueError):
    """Images of a wrong shape, type or range."""


class SettingError(PixioRobotError, ValueError):
    """A setting or an argument that cannot work."""


class CheckpointError(PixioRobotError, ValueError):
    """Weights that are missing, truncated, foreign or unsafe to read."""


class CacheError(PixioRobotError, ValueError):
    """A feature cache of another encoder or data set, or an unfinished one."""


class DataError(PixioRobotError, ValueError):
    """A data set without what was asked of it."""


class ExportError(PixioRobotError, ValueError):
    """An exported model that answers otherwise than torch, is damaged, or cannot be made or run."""


class RenderError(PixioRobotError, RuntimeError):
    """This machine cannot render."""


@contextmanager
def told_on_one_line(program: str) -> Iterator[None]:
    """End a program with what the user got wrong on one line, and exit code 1, rather than with a traceback.

    A context, or a decorator of what runs the program.

    Args:
        program: Its name, which the line begins with.
    """
    try:
        yield
    except PixioRobotError as error:
        raise SystemExit(f"{program}: {error}") from error
