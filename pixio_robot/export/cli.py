"""``pixio-export``: write an encoder, with depth and a policy's adapter, as a checked ONNX file; check it; time it.

pixio-export shipped:pixio_vitt16 outputs/eyes --depth outputs/depth/model --size 128 128
pixio-export verify outputs/eyes
pixio-export latency outputs/eyes --bfloat16
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pixio_robot.checkpoints import load_encoder
from pixio_robot.errors import told_on_one_line
from pixio_robot.export.adapters import load_adapter
from pixio_robot.export.backends import BACKENDS
from pixio_robot.export.folder import read_facts
from pixio_robot.export.latency import REPORT, measure, show
from pixio_robot.export.runtime import verify
from pixio_robot.export.write import IMAGE_TYPES, export
from pixio_robot.geometry.depth import load_depth

COMMANDS = ("write", "verify", "latency")


@told_on_one_line("pixio-export")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, or 1 for an error or an export that is not sound."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] not in (*COMMANDS, "-h", "--help"):
        given.insert(0, "write")
    options = _parser().parse_args(given)
    _say(options.run(options))
    return 0


def write(options: argparse.Namespace) -> str:
    """Export, and say what passed the gate."""
    encoder = load_encoder(options.encoder)
    eyes = None if options.adapter is None else load_adapter(options.adapter, encoder)
    size = tuple(options.size) if options.size else (eyes.size if eyes else None)
    _say("Tracing, writing and checking; up to a minute, or a few for a large encoder.")
    folder = export(
        encoder,
        options.out,
        depth=None if options.depth is None else load_depth(options.depth, encoder=encoder),
        adapter=None if eyes is None else eyes.adapter,
        size=size,
        batch=options.batch or None,
        images=options.images,
        overwrite=options.overwrite,
    )
    facts = read_facts(folder)
    lines = [f"{folder} is whole. Licence of the encoder: {facts.encoder['licence']}."]
    lines += [f"Cameras, in this order: {', '.join(eyes.cameras)}."] if eyes else []
    for kind, tensors in (("in", facts.inputs), ("out", facts.outputs)):
        lines += [f"  {kind:3} {name:10} {one['dtype']} {one['shape']}" for name, one in tensors.items()]
    for backend, found in facts.deviations.items():
        lines.append(f"  {backend}: off by {max(found.values()):.1e} at most; {facts.tolerance:g} is allowed")
    return "\n".join(lines)


def check(options: argparse.Namespace) -> str:
    """Check bytes and answers."""
    found = verify(options.folder, options.backend)
    lines = [f"{options.folder}: every file is as it was written."]
    for backend, deviations in found.items():
        told = ", ".join(f"{one.output} {one.absolute:.1e}" for one in deviations)
        lines.append(f"  {backend}: largest difference from torch: {told}")
    return "\n".join(lines)


def time(options: argparse.Namespace) -> str:
    """Measure and show."""
    report = measure(
        options.folder,
        threads=options.threads,
        rounds=options.rounds,
        backends=options.backend,
        bfloat16=options.bfloat16,
    )
    return f"{show(report)}\n\nFigures: {options.folder / REPORT}"


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pixio-export", description=__doc__, formatter_class=_Help)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], str], told: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=told, description=told, formatter_class=_Help)
        made.set_defaults(run=run)
        return made

    made = command(
        "write",
        write,
        "Export one encoder pass. The word 'write' may be left out. Nothing is written unless every runtime that is "
        "installed answers a self-test as torch does.",
    )
    made.add_argument("encoder", metavar="ENCODER", help="anything that load_encoder reads: a name, a folder, a hub id")
    made.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    made.add_argument("--depth", type=Path, metavar="FOLDER", help="a depth model that was trained on this encoder")
    made.add_argument(
        "--adapter", type=Path, metavar="FOLDER", help="a policy's pretrained_model folder: export its adapter, too"
    )
    made.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="pixels of the images; default: the policy's, or else the encoder's native size",
    )
    made.add_argument("--batch", type=int, default=1, help="observations at once; 0 leaves it open")
    made.add_argument("--images", choices=list(IMAGE_TYPES), default="uint8", help="type of the images; floats: 0 to 1")
    made.add_argument("--overwrite", action="store_true", help="replace an export that is there already")

    made = command("verify", check, "Check an export's files, and its answers against torch's. Exit code 1: not sound.")
    _add_folder(made)

    made = command("latency", time, f"Time an export beside eager torch on this CPU, in turns; writes {REPORT}, too.")
    _add_folder(made)
    made.add_argument("--threads", type=int, default=1, help="of torch and of every runtime")
    made.add_argument("--rounds", type=int, default=15, help="turns of each")
    made.add_argument("--bfloat16", action="store_true", help="OpenVINO in bfloat16, too")
    return parser


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what pixio-export wrote")
    parser.add_argument("--backend", nargs="+", choices=list(BACKENDS), help="default: all that are installed")


if __name__ == "__main__":
    sys.exit(main())
