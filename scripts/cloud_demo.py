#!/usr/bin/env python
"""Turn cameras of a simulated scene into one coloured cloud in the robot's base frame.

MODEL is a depth head, which measures each camera by itself, or a model of several views, which compares them. Writes
FOLDER/cloud.ply (what it says) and FOLDER/truth.ply (what the simulator knows), for MeshLab,
CloudCompare or Open3D; FOLDER/CAMERA.png, depth as 16 bits of millimetres; FOLDER/depth.png, a figure of image, truth,
prediction and error; and prints how far the cloud is off, in centimetres, without any alignment. With --knock, the
model is told wrong where all cameras but the first are, and has to find them. With --rerun, the same is shown in
rerun's viewer, with the cameras.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pixio_robot.errors import told_on_one_line

if TYPE_CHECKING:
    from torch import Tensor


@told_on_one_line("cloud_demo")
def main() -> None:
    """Read the command line, look, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="FOLDER/model of pixio-geometry depth or views")
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--suite", default="metaworld", help="metaworld or aloha (metaworld)")
    parser.add_argument("--task", default="coffee-button-v3", help="a task of the suite (coffee-button-v3)")
    parser.add_argument("--cameras", nargs="+", default=["corner2"], help="cameras of the model (corner2)")
    parser.add_argument("--free", type=int, default=1, help="further cameras around the table (1)")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side (128)")
    parser.add_argument("--seed", type=int, default=2_900_000, help="the scene, its looks and its cameras")
    parser.add_argument("--steps", type=int, default=40, help="steps of the expert before the picture (40)")
    parser.add_argument("--farthest", type=float, default=2.5, help="metres; what is farther stays out (2.5)")
    most = ("DEGREES", "METRES")
    parser.add_argument("--knock", type=float, nargs=2, metavar=most, help="knock cameras by up to so much, as 15 .05")
    parser.add_argument("--rerun", action="store_true", help="show it in rerun's viewer: pip install rerun-sdk")
    args = parser.parse_args()

    import torch
    from cloud_figure import draw_depth

    from lerobot_env_pixio.rgbd_stage import ASPECTS, Stage
    from pixio_pretrain.geometry.robot_metrics import f_scores, point_errors
    from pixio_pretrain.geometry.scene_metrics import camera_errors
    from pixio_robot.geometry.cameras import transform, unproject
    from pixio_robot.geometry.clouds import write_depth_png, write_ply

    size = (args.size, args.size)
    stage = Stage(
        args.suite, args.task, cameras=args.cameras, free=args.free, size=size, render="fast", held_out=ASPECTS
    )
    stage.reset(args.seed)
    for _ in range(args.steps):
        stage.simulation.step(stage.simulation.expert_action())
    look = stage.look()
    names, parts = stage.cameras.names, np.array(stage.parts())
    stage.close()

    images = torch.from_numpy(look["color"]).permute(0, 3, 1, 2)
    intrinsics = torch.from_numpy(look["intrinsics"]).float()
    poses = torch.from_numpy(look["cam2world"]).float()
    told = poses if args.knock is None else knock(poses, *args.knock, seed=args.seed)
    depth, confidence, found_poses = measure(args.model, images, intrinsics, told, knocked=args.knock is not None)
    points = transform(found_poses, unproject(depth, intrinsics))
    true_depth = torch.from_numpy(look["depth"])
    truth = transform(poses, unproject(true_depth, intrinsics))

    args.folder.mkdir(parents=True, exist_ok=True)
    near, known = depth <= args.farthest, true_depth <= args.farthest
    colors = torch.from_numpy(look["color"])
    write_ply(args.folder / "cloud.ply", points[near], colors=colors[near], confidence=confidence[near])
    write_ply(args.folder / "truth.ply", truth[known], colors=colors[known])
    for name, one in zip(names, depth, strict=True):
        write_depth_png(args.folder / f"{name}.png", one)
    draw_depth(args.folder / "depth.png", look["color"], true_depth, depth, farthest=args.farthest, names=names)
    regions = {part: np.isin(look["body"], np.flatnonzero(parts == part)) for part in ("gripper", "object")}
    found = point_errors(points, truth, known, regions=regions) | f_scores(points[near], truth[known])
    print(f"{len(names)} cameras ({', '.join(names)}), {int(near.sum())} points")
    print(", ".join(f"{name} {value:.3g}" for name, value in found.items()))
    if args.knock is not None:
        before, after = (np.stack(camera_errors(one, poses)).T for one in (told, found_poses))
        for name, was, now in zip(names[1:], before, after, strict=True):
            said = " to ".join(f"{degrees:.1f} degrees and {100 * metres:.1f} cm" for degrees, metres in (was, now))
            print(f"{name} was knocked, and is corrected from {said}")
    if args.rerun:
        from pixio_robot.geometry.perception import Calibration
        from pixio_robot.geometry.viewer import show

        cameras = {name: Calibration(k, pose) for name, k, pose in zip(names, intrinsics, found_poses, strict=True)}
        pictures = dict(zip(names, images, strict=True))
        show(pictures, cameras, depth=dict(zip(names, depth, strict=True)), points=points[near], colors=colors[near])


def knock(poses: "Tensor", degrees: float, metres: float, *, seed: int) -> "Tensor":
    """Move all cameras but the first; poses [v 4 4]."""
    import torch

    from pixio_pretrain.geometry.drift import knocks
    from pixio_robot.geometry.cameras import compose

    moved = knocks(len(poses) - 1, torch.Generator().manual_seed(seed), degrees, metres)
    return torch.cat([poses[:1], compose(poses[1:], moved)])


def measure(
    folder: Path, images: "Tensor", intrinsics: "Tensor", poses: "Tensor", *, knocked: bool
) -> "tuple[Tensor, Tensor, Tensor]":
    """Give depth and confidence of views, each [v h w], and poses [v 4 4], by whatever model the folder holds."""
    import torch

    from pixio_robot.errors import SettingError
    from pixio_robot.geometry.depth import load_depth
    from pixio_robot.geometry.multiview import load_multiview
    from pixio_robot.geometry.storage import kind_of

    with torch.no_grad():
        if kind_of(folder) == "multiview":
            told = {"pose_prior" if knocked else "cam2world": poses[None]}
            together = load_multiview(folder)(images[None], intrinsics[None], **told)
            return together.depth_z[0], together.confidence[0], together.cam2world[0]
        if knocked:
            raise SettingError(f"{folder} holds a depth head for one camera at a time: --knock takes several views.")
        measured = load_depth(folder)(images, intrinsics, poses)
        return measured.depth, measured.confidence, poses


if __name__ == "__main__":
    main()
