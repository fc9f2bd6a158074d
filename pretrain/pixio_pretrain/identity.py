"""What decides a result, and in what two of these differ."""

import json
from collections.abc import Mapping
from typing import Any


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Name what is not the same, with both values; empty where all is.

    Args:
        theirs: As read from a JSON.
        ours: In JSON's types.
    """
    ours = json.loads(json.dumps(ours))
    return ", ".join(
        f"{key} (there {theirs.get(key)!r}, now {ours.get(key)!r})"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    )
