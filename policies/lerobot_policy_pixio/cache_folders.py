"""Where the caches of a data set lie: in a folder beside it, so that it can be found, pushed or deleted alone."""

import re
from pathlib import Path

from pixio_robot.encoder import Encoder


def cache_folder(dataset_root: str | Path) -> Path:
    """The folder of a data set's caches: ``walks.pixio_cache`` beside ``walks``."""
    root = Path(dataset_root).absolute()
    return root.with_name(f"{root.name}.pixio_cache")


def cache_path(
    dataset_root: str | Path,
    encoder: Encoder,
    *,
    grid: int | None = None,
    size: tuple[int, int] | None = None,
    variants: int = 0,
) -> Path:
    """The place of one cache, named for what made it, such as ``pixio_vitb16-1f6c5d3a-256x256-grid4.zarr``.

    Arguments as for ``pixio_robot.build_cache``.
    """
    name = Path(str(encoder.provenance.get("name", encoder.spec.family))).name
    parts = [re.sub(r"[^\w.]+", "_", name), encoder.fingerprint[:8]]
    parts += [f"{size[0]}x{size[1]}"] if size else []
    parts += [f"grid{grid}" if grid else "all"]
    parts += [f"{variants}variants"] if variants else []
    return cache_folder(dataset_root) / f"{'-'.join(parts)}.zarr"


def find_caches(dataset_root: str | Path) -> list[Path]:
    """All caches in a data set's folder of caches, finished or not."""
    return sorted(cache_folder(dataset_root).glob("*.zarr"))
