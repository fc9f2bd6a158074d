"""``pixio-cache``: build, show, check and delete the feature caches of a LeRobotDataset."""

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Column, Table

from lerobot_policy_pixio.augmentation import ImageAugmentation
from lerobot_policy_pixio.cache_folders import cache_folder, cache_path, find_caches
from lerobot_policy_pixio.dataset_tables import export_tables, policy_inputs
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.options import EncoderDtype, default_grid
from pixio_robot.cache import Estimate, FeatureCache, build_cache, compare_with_encoder, estimate_cache, verify_cache
from pixio_robot.cache.build import sole_builder
from pixio_robot.cache.disk import check_disk, free_space, readable, size_on_disk
from pixio_robot.cache.layout import open_group
from pixio_robot.cache.reader import progress, token_files
from pixio_robot.cache.verify import TOLERANCE
from pixio_robot.checkpoints import load_encoder
from pixio_robot.encoder import Encoder
from pixio_robot.errors import CacheError, told_on_one_line

console = Console(soft_wrap=True)


@told_on_one_line("pixio-cache")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, or 1 for an error or a cache that is not sound."""
    options = _parser().parse_args(arguments)
    return options.run(options)


def build(options: argparse.Namespace) -> int:
    """Estimate, then build or continue."""
    frames = DatasetFrames(options.dataset, options.cameras)
    encoder = _encoder(options.encoder, options, options.dtype)
    side = options.size or encoder.spec.image_size
    grid = default_grid("average", side // encoder.spec.patch_size) if options.grid is None else options.grid
    settings: dict[str, Any] = {
        "grid": grid or None,
        "size": frames.resize_to(side),
        "variants": options.variants,
        "augment": ImageAugmentation() if options.variants else None,
    }
    path = options.folder or cache_path(options.dataset, encoder, frames, **settings)
    settings |= {"batch_size": options.batch_size}
    estimate = estimate_cache(encoder, frames, **settings)
    _show_estimate(path, frames, estimate)
    pooling = f"pool patches to a smaller --grid than {grid}" if grid else "pool patches, as with --grid 4"
    fewer = "choose fewer --variants" if options.variants else "choose fewer --cameras, or another disk with --folder"
    check_disk(path, estimate.nbytes, cure=f"{pooling}, {fewer}")
    if options.estimate:
        return 0
    cache = build_cache(path, encoder, frames, chunk=options.chunk, **settings)
    console.print(f"{cache.path} is whole: {readable(cache.nbytes)}. To train from it:")
    sight = f"--policy.encoder={options.encoder} --policy.encoder_dtype={options.dtype}"
    sight += f" --policy.grid={options.grid}" if options.grid else ""
    sight += f" --policy.image_size={options.size}" if options.size else ""
    sight += f" --policy.input_features='{policy_inputs(frames)}'" if options.cameras else ""
    line = f"  pixio-train --policy.type=pixio_act {sight} --dataset.root={options.dataset} --cache={path}"
    console.print(line, markup=False)
    return 0


def info(options: argparse.Namespace) -> int:
    """Show what caches are, one column each."""
    paths = _caches(options.place)
    table = Table(
        "", *[Column(path.name, overflow="fold") for path in paths], title=f"Feature caches in {paths[0].parent}"
    )
    columns = [_facts(path) for path in paths]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *[column.get(name, "-") for column in columns])
    console.print(table)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Compare bytes with checksums, and a sample of frames with the encoder."""
    path: Path = options.cache
    damages = verify_cache(path, repair=options.repair)
    for camera, variant, chunks in damages:
        console.print(f"[red]damaged[/]: {camera}, variant {variant}, {len(chunks)} chunk(s), first {chunks[0]}")
    if damages:
        told = "They were unmarked: build again" if options.repair else "Run with --repair, then build again"
        console.print(f"{told}, and only they are made anew.")
        return 1
    cache = FeatureCache.open(path)
    console.print(f"{path}: every chunk is there, finite, and as it was written ({readable(cache.nbytes)}).")
    if options.dataset is None:
        return 0
    known = cache.attributes
    frames = DatasetFrames(options.dataset, cache.cameras)
    source = options.encoder or known.get("encoder_source") or known["encoder"]
    encoder = _encoder(source, options, known["encoder_dtype"])
    cache = FeatureCache.open(path, encoder=encoder, source=frames)
    augment = ImageAugmentation.from_description(known["augmentation"]) if cache.variants else None
    generator = torch.Generator().manual_seed(options.seed)
    worst = compare_with_encoder(cache, encoder, frames, frames=options.frames, generator=generator, augment=augment)
    limit = TOLERANCE[known["encoder_dtype"]]
    sound = worst <= limit
    console.print(
        f"{min(options.frames, len(cache))} frames per camera, encoded again, deviate by at most {worst:.2g} "
        f"(limit {limit:g}): {'[green]the same features[/]' if sound else '[red]other features[/]'}."
    )
    return 0 if sound else 1


def prune(options: argparse.Namespace) -> int:
    """List caches that are of no more use, and delete them if told to."""
    frames = DatasetFrames(options.dataset)
    keep = load_encoder(options.keep).fingerprint if options.keep else None
    found = {path: _why_prune(path, frames, keep) for path in find_caches(options.dataset)}
    useless = {path: why for path, why in found.items() if why}
    for path, why in useless.items():
        size = readable(size_on_disk(path))
        console.print(f"{'deleting' if options.delete else 'would delete'} {path} ({size}): {why}")
        if options.delete:
            with sole_builder(path):
                shutil.rmtree(path)
    console.print(f"{len(useless)} of {len(found)} caches in {cache_folder(options.dataset)} are of no use.")
    if useless and not options.delete:
        console.print("Nothing was deleted; --delete does it.")
    return 0


def tables(options: argparse.Namespace) -> int:
    """Copy a data set without its images, for a ``lerobot-train`` that decodes no video."""
    frames = DatasetFrames(options.dataset)
    folder: Path = options.folder or cache_folder(options.dataset) / "tables"
    export_tables(frames, folder)
    console.print(f"{folder} holds all but the images. Train on it from a cache, and nothing is decoded:")
    console.print(f"  lerobot-train --dataset.repo_id=local/{folder.name} --dataset.root={folder} \\")
    console.print(
        "    --policy.type=pixio_act --policy.encoder=ENCODER --policy.encoder_dtype=DTYPE --policy.cache=CACHE \\"
    )
    console.print(f"    --policy.input_features='{policy_inputs(frames)}' ...", markup=False)
    return 0


def _encoder(name: str, options: argparse.Namespace, dtype: str) -> Encoder:
    return load_encoder(name, device=options.device, dtype=getattr(torch, dtype))


def _show_estimate(path: Path, frames: DatasetFrames, estimate: Estimate) -> None:
    table = Table("", Column(overflow="fold"), title="Before it starts", show_header=False)
    table.add_row("cache", str(path))
    table.add_row("cameras", ", ".join(frames.cameras))
    table.add_row("frames per camera", f"{len(frames):,}")
    table.add_row("to encode, variants included", f"{estimate.frames:,}")
    table.add_row("on disk", f"{readable(estimate.nbytes)}, of {readable(free_space(path))} free")
    table.add_row("time", f"about {estimate.seconds / 60:.1f} minutes, from scratch")
    console.print(table)


def _caches(place: Path) -> list[Path]:
    """The cache at a place, or those of the data set there."""
    if (place / "zarr.json").is_file():
        return [place]
    if found := find_caches(place):
        return found
    raise CacheError(f"{place} is no cache, and there are none in {cache_folder(place)}.")


def _facts(path: Path) -> dict[str, str]:
    """What is to be known of a cache, by name."""
    known: dict[str, Any] = dict(open_group(path).attrs)
    done, chunks = progress(path, known)
    facts = {
        "complete": "yes" if done == chunks else f"{done} of {chunks} chunks: build again, it continues",
        "on disk": readable(size_on_disk(path)),
        "encoder": f"{known['encoder']} ({known['encoder_sha256'][:12]}, {known['encoder_dtype']})",
        "licence": known["encoder_licence"] or "not stated",
        "data set": known["dataset_sha256"][:12],
        "frames per camera": f"{known['frames']:,}",
        "tokens": f"{known['class_tokens']} class tokens and "
        + (f"patches pooled to {known['pooled_to']} x {known['pooled_to']}" if known["pooled_to"] else "every patch")
        + f", {known['width']} wide",
        "variants": f"{known['variants']} besides the clean frames",
    }
    if known["augmentation"]:
        facts["augmentation"] = ", ".join(known["augmentation"].get("tfs", known["augmentation"]))
    for file in token_files(path, known):
        if file.variant == 0:
            height, width = file.seen if file.exists else ("?", "?")
            facts[file.camera] = f"{np.count_nonzero(file.marks())} of {file.chunks} chunks, seen at {height} x {width}"
    return facts


def _why_prune(path: Path, frames: DatasetFrames, keep: str | None) -> str | None:
    """Why a cache is of no more use; None if it is."""
    try:
        known: dict[str, Any] = dict(open_group(path).attrs)
    except CacheError as error:
        return str(error)
    if known["dataset_sha256"] != frames.fingerprint:
        return "of another state of the data set"
    if keep is not None and known["encoder_sha256"] != keep:
        return f"of the encoder {known['encoder']}"
    done, chunks = progress(path, known)
    return None if done == chunks else f"unfinished, {done} of {chunks} chunks"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pixio-cache", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], told: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=told, description=told, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        made.set_defaults(run=run)
        return made

    made = command(
        "build", build, "Run a frozen encoder over every frame of a data set, once. A killed build continues."
    )
    _add_dataset(made)
    made.add_argument("--encoder", required=True, help="anything that load_encoder reads: a name, a folder, a hub id")
    made.add_argument("--folder", type=Path, help="the cache; default: one beside the data set, named for what made it")
    made.add_argument("--cameras", nargs="+", metavar="KEY", help="such as observation.images.top; default: all")
    made.add_argument(
        "--grid", type=int, help="average patches to GRID x GRID tokens (default: 8, or all if fewer); 0 keeps all"
    )
    made.add_argument("--size", type=int, help="pixels a side that the encoder sees; default: its native size")
    made.add_argument("--variants", type=int, default=0, help="augmented copies of each frame, to train with later")
    made.add_argument("--batch-size", type=int, default=64, help="frames per encoder pass")
    made.add_argument("--chunk", type=int, default=256, help="frames per chunk, the unit that is lost by a kill")
    made.add_argument("--dtype", choices=get_args(EncoderDtype), default="float32", help="what the encoder computes in")
    made.add_argument("--estimate", action="store_true", help="stop after the estimate of size and time")
    _add_device(made)

    made = command("info", info, "Show what a cache is, or all caches of a data set.")
    made.add_argument("place", type=Path, metavar="CACHE_OR_DATASET", help="a cache, or a LeRobotDataset's folder")

    made = command(
        "verify", verify, "Check a cache's bytes and, with --dataset, a sample of its frames. Exit code 1: bad."
    )
    made.add_argument("cache", type=Path, metavar="CACHE", help="the cache's folder")
    made.add_argument("--repair", action="store_true", help="forget damaged chunks, so that a build makes them anew")
    made.add_argument("--dataset", type=Path, help="encode a sample of this data set's frames again, and compare")
    made.add_argument("--encoder", help="the encoder that made the cache; default: by the name that the cache knows")
    made.add_argument("--frames", type=int, default=16, help="size of the sample, per camera")
    made.add_argument("--seed", type=int, default=0, help="draws the sample")
    _add_device(made)

    made = command("prune", prune, "List caches that are unfinished, of a changed data set, or not of --keep.")
    _add_dataset(made)
    made.add_argument("--keep", metavar="ENCODER", help="caches of any other encoder are of no use either")
    made.add_argument("--delete", action="store_true", help="delete them; without it nothing is touched")

    made = command(
        "export-tables", tables, "Copy a data set without its images, so that lerobot-train decodes nothing."
    )
    _add_dataset(made)
    made.add_argument("--folder", type=Path, help="the copy; default: 'tables' among the data set's caches")
    return parser


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="the folder of a LeRobotDataset v3")


def _add_device(parser: argparse.ArgumentParser) -> None:
    fastest = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=fastest, help="where the encoder runs")
