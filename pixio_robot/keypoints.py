"""Choosing the references of keypoints: different things that come and go in a few pictures, without any labels."""

from collections.abc import Sequence

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor
from torch.nn import functional as F

from pixio_robot.descriptors import NUMBERS, DescriptorNet, KeypointNet
from pixio_robot.encoder import Encoder, EncoderSpec
from pixio_robot.errors import SettingError
from pixio_robot.images import resize

COUNT = 128
"""Keypoints that are learnt unless another number is asked for."""

_MOVING = 0.15  # share of the places of all pictures whose descriptors are furthest from what is usually there
_SAMPLES = 8_000  # descriptors of a camera among which references are chosen
_BATCH = 16


def learn_keypoints(encoder: Encoder, pictures: Sequence[Tensor], *, count: int = COUNT, seed: int = 0) -> Encoder:
    """Give a frozen encoder that says where things are, of those that some pictures show moving.

    References are descriptors far from one another (farthest point sampling; Gonzalez 1985) among those that differ
    most from the median descriptor of their place. All cameras share them.

    Args:
        encoder: Descriptors, such as "shipped:descriptors".
        pictures: Of each camera, some hundred pictures of the task from where it stands, uint8 [n 3 h w]; other sizes
            than the encoder's square are resized. Spread over many scenes, the more so the fewer there are.
        count: How many keypoints k.
        seed: Draws the samples.

    Returns:
        An encoder of width 3 k without class tokens: its one patch holds x and y of every keypoint, from -1 to 1 to the
        right and down, then how like its reference the best match is. A policy reads it as any other encoder.

    Raises:
        SettingError: If the encoder has no descriptors, or there are fewer than two pictures of a camera or too few to
            find so many keypoints in.
    """
    net, side = encoder.backbone, encoder.spec.image_size
    if not isinstance(net, DescriptorNet):
        raise SettingError(
            f"Keypoints are learnt from descriptors, and {encoder.provenance.get('name', 'this encoder')} is of family "
            f"{encoder.spec.family!r}: take 'shipped:descriptors', or train some (run=descriptors_metaworld)."
        )
    if not pictures or min(map(len, pictures)) < 2:
        raise SettingError("Keypoints are learnt from at least two pictures of every camera, better some hundred.")
    chance = torch.Generator().manual_seed(seed)
    samples = [
        _moving(encoder, resize(one, (side, side)), chance) for one in tqdm(pictures, desc="keypoints", unit="camera")
    ]
    seen = torch.cat(samples)
    if not 1 <= count <= len(seen):
        raise SettingError(f"count={count}: from these pictures, 1 to {len(seen)} keypoints can be learnt.")
    spec = EncoderSpec(
        family="keypoints",
        width=NUMBERS * count,
        depth=1,
        heads=1,
        patch_size=side,
        image_size=side,
        class_tokens=0,
    )
    backbone = KeypointNet(spec.width, side)
    backbone.net.load_state_dict(net.state_dict())
    backbone.references.data = _farthest(seen, count)
    name = f"{count} keypoints of {encoder.provenance.get('name', 'descriptors')}"
    facts = {"name": name, "descriptors": encoder.fingerprint, "pictures": [len(one) for one in pictures]}
    licence = {"licence": encoder.provenance["licence"]} if "licence" in encoder.provenance else {}
    return Encoder(spec, backbone, provenance=facts | licence)


def _moving(encoder: Encoder, pictures: Tensor, chance: torch.Generator) -> Tensor:
    """Descriptors [m d] of one camera's pictures that are not what is usually there."""
    parts = [encoder(part).patches.float().cpu() for part in pictures.split(_BATCH)]
    seen = torch.cat(parts)  # n p d
    strange = (seen - seen.median(dim=0).values).square().sum(dim=-1).flatten()
    count = max(1, round(_MOVING * len(strange)))
    moving = seen.flatten(0, 1)[strange.topk(count).indices]
    return moving[torch.randperm(count, generator=chance)[:_SAMPLES]]


def _farthest(points: Tensor, count: int) -> Tensor:
    """Choose points [n d] one by one, each as far as can be from those before it: [count d], of length 1."""
    chosen = [points[0]]
    distance = (points - points[0]).square().sum(dim=1)
    for _ in range(count - 1):
        chosen.append(points[distance.argmax()])
        distance = torch.minimum(distance, (points - chosen[-1]).square().sum(dim=1))
    return F.normalize(torch.stack(chosen), dim=1)
