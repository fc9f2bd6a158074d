"""Where the caches of a data set lie: in a folder beside it, so that it can be found, pushed or deleted alone."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from lerobot.utils.constants import HF_LEROBOT_HOME

from pixio_robot.cache import Augmentation, FrameSource
from pixio_robot.cache.build import cache_identity, differing
from pixio_robot.encoder import Encoder
from pixio_robot.errors import CacheError


def cache_folder(dataset_root: str | Path) -> Path:
    """The folder of a data set's caches: ``walks.pixio_cache`` beside ``walks``.

    Those of a data set that came from the hub lie in LeRobot's home, ``HF_LEROBOT_HOME/me/walks.pixio_cache``: beside
    it, among the hub's snapshots, ``hf cache prune`` would delete them.
    """
    root = Path(dataset_root).absolute()
    owner, _, name = root.parent.parent.name.removeprefix("datasets--").partition("--")
    if root.parent.name == "snapshots" and name:
        return HF_LEROBOT_HOME / owner / f"{name}.pixio_cache"
    return root.with_name(f"{root.name}.pixio_cache")


def cache_path(
    dataset_root: str | Path,
    encoder: Encoder,
    source: FrameSource,
    *,
    grid: int | None = None,
    size: tuple[int, int] | None = None,
    variants: int = 0,
    augment: Augmentation | None = None,
) -> Path:
    """The place of one cache in a data set's folder of caches: where it lies, finished or not, or else is to be built.

    A new one is named for what makes it, such as ``pixio_vitb16-1f6c5d3a-256x256-grid4-9be07d3c.zarr``: the last part
    stands for all that must agree, cameras and frames included. One of any other name is found, too.

    Arguments but the first as for ``pixio_robot.build_cache``.
    """
    identity = cache_identity(encoder, source, grid=grid, size=size, variants=variants, augment=augment)
    for path in find_caches(dataset_root):
        if _is(path, identity):
            return path
    name = Path(str(encoder.provenance.get("name", encoder.spec.family))).name
    parts = [re.sub(r"[^\w.]+", "_", name), encoder.fingerprint[:8]]
    parts += [f"{size[0]}x{size[1]}"] if size else []
    parts += [f"grid{grid}" if grid else "all"]
    parts += [f"{variants}variants"] if variants else []
    parts += [hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]]
    return cache_folder(dataset_root) / f"{'-'.join(parts)}.zarr"


def find_caches(dataset_root: str | Path) -> list[Path]:
    """All caches in a data set's folder of caches, finished or not."""
    return sorted(cache_folder(dataset_root).glob("*.zarr"))


def _is(path: Path, identity: dict[str, Any]) -> bool:
    try:
        return not differing(path, identity)
    except CacheError:
        return False
