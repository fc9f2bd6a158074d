"""Choosing the references of keypoints: different things that come and go in a few pictures, without any labels."""

from collections.abc import Sequence

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor
from torch.nn import functional as F

from pixio_robot.descriptors import NUMBERS, DescriptorNet, Found, KeypointNet, camera_of, compare, find
from pixio_robot.encoder import Encoder, EncoderSpec
from pixio_robot.errors import SettingError
from pixio_robot.images import resize

COUNT = 128
"""Keypoints of each camera that are learnt unless another number is asked for."""

_MOVING = 0.15  # share of the places of all pictures whose descriptors are furthest from what is usually there
_SAMPLES = 8_000  # descriptors of a camera among which references are chosen
_CANDIDATES = 4  # references that are looked at for one that is kept
_ROUNDS = 3  # of moving candidates to the middle of what they find
_STILL = 0.02  # of a picture's half: what moves less is still, and a spread may be so wide
_MIXED = 0.01  # share of a camera's pictures that another may be taken to have made before the two count as one
_BATCH = 16


def learn_keypoints(encoder: Encoder, pictures: Sequence[Tensor], *, count: int = COUNT, seed: int = 0) -> Encoder:
    """Give a frozen encoder that says where things are, of those that some pictures show moving.

    Of each camera, candidates are descriptors far from one another (farthest point sampling; Gonzalez 1985) among those
    that differ most from the median descriptor of their place, each then moved to the mean of what it finds in all
    pictures, as k-means does: what is furthest out is like nothing else. Those are kept that are found in one spot, and
    in another spot of another picture: with the least spread for the way that they move. Each camera has its own, but
    cameras share theirs whose pictures these cannot tell apart, such as those on two like wrists.

    Args:
        encoder: Descriptors, such as "shipped:descriptors".
        pictures: Of each camera, some hundred pictures of the task from where it stands, uint8 [n 3 h w]; other sizes
            than the encoder's square are resized. Spread over many scenes, the more so the fewer there are.
        count: How many keypoints are kept of each camera.
        seed: Draws the samples.

    Returns:
        An encoder of width 3 k, for k keypoints of all cameras together, without class tokens: its one patch holds x
        and y of every keypoint, from -1 to 1 to the right and down, then how like its reference the best match is; 0
        for those of other cameras than the one that the picture is most like. A policy reads it as any other encoder.
        Its provenance has, as "cameras", the places in ``pictures`` of those that share references.

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
    maps = [_describe(encoder, resize(one, (side, side))) for one in tqdm(pictures, desc="descriptors", unit="camera")]
    groups, references = _choose_groups(maps, count, chance)
    spec = EncoderSpec(
        family="keypoints",
        width=NUMBERS * count * len(groups),
        depth=1,
        heads=len(groups),
        patch_size=side,
        image_size=side,
        class_tokens=0,
    )
    backbone = KeypointNet(spec.width, side, spec.heads)
    backbone.net.load_state_dict(net.state_dict())
    backbone.references.data = references
    name = f"{count * len(groups)} keypoints of {encoder.provenance.get('name', 'descriptors')}"
    counts = [len(one) for one in pictures]
    facts = {"name": name, "descriptors": encoder.fingerprint, "pictures": counts, "cameras": groups}
    licence = {"licence": encoder.provenance["licence"]} if "licence" in encoder.provenance else {}
    return Encoder(spec, backbone, provenance=facts | licence)


def _describe(encoder: Encoder, pictures: Tensor) -> Tensor:
    """Descriptors [n d h w] of pictures, on the CPU."""
    parts = [encoder(part) for part in pictures.split(_BATCH)]
    return torch.cat([tokens.patches.float().cpu().mT.unflatten(2, tokens.grid) for tokens in parts])


def _choose_groups(maps: Sequence[Tensor], count: int, chance: torch.Generator) -> tuple[list[list[int]], Tensor]:
    """Choose references of each camera's descriptors [n d h w], and of cameras that look alike together.

    Returns:
        The cameras of each group, and references [groups count d].
    """
    maps, groups = list(maps), [[camera] for camera in range(len(maps))]
    references = [_choose(one, count, chance) for one in tqdm(maps, desc="keypoints", unit="camera")]
    while True:
        chosen = torch.stack(references)
        mixed = torch.stack([_answers(one, chosen) for one in maps]).fill_diagonal_(0)
        if mixed.max() <= _MIXED:
            return groups, chosen
        one, other = sorted(divmod(int(mixed.argmax()), len(groups)))
        groups[one].extend(groups.pop(other))
        maps[one] = torch.cat([maps[one], maps.pop(other)])
        del references[other]
        references[one] = _choose(maps[one], count, chance)


def _answers(maps: Tensor, references: Tensor) -> Tensor:
    """Shares [v] of the pictures with descriptors [n d h w] that each camera's references [v k d] would answer."""
    asked = torch.cat([camera_of(compare(part, references)) for part in maps.split(_BATCH)])
    return asked.bincount(minlength=len(references)) / len(asked)


def _choose(maps: Tensor, count: int, chance: torch.Generator) -> Tensor:
    """Choose references [count d] from the descriptors [n d h w] of one camera's pictures."""
    moving = _moving(maps, chance)
    if not 1 <= count <= len(moving):
        raise SettingError(f"count={count}: from these pictures, 1 to {len(moving)} keypoints can be learnt.")
    candidates = _settle(maps, _farthest(moving, min(_CANDIDATES * count, len(moving))))
    found = Found(*map(torch.cat, zip(*(find(part, candidates) for part in maps.split(_BATCH)), strict=True)))
    ways = found.means.std(dim=0).norm(dim=1)
    merit = torch.where(ways > _STILL, ways / (found.spreads.mean(dim=0) + _STILL), 0)
    return candidates[merit.topk(count).indices]


def _settle(maps: Tensor, references: Tensor) -> Tensor:
    """Move references [k d] to the middle of what they find: to the mean of their best matches in every picture."""
    for _ in range(_ROUNDS):
        total = torch.zeros_like(references)
        for part in maps.flatten(2).split(_BATCH):  # b d n
            best = torch.einsum("bdn,kd->bkn", part, references).argmax(dim=-1)
            total += part.gather(2, best.unsqueeze(1).expand(-1, part.shape[1], -1)).sum(dim=0).mT
        references = F.normalize(total, dim=1)
    return references


def _moving(maps: Tensor, chance: torch.Generator) -> Tensor:
    """Descriptors [m d] that are not what is usually there, of those [n d h w] of one camera's pictures."""
    strange = (maps - maps.median(dim=0).values).square().sum(dim=1).flatten()  # n h w
    count = max(1, round(_MOVING * len(strange)))
    moving = maps.movedim(1, -1).flatten(0, 2)[strange.topk(count).indices]
    return moving[torch.randperm(count, generator=chance)[:_SAMPLES]]


def _farthest(points: Tensor, count: int) -> Tensor:
    """Choose points [n d] one by one, each as far as can be from those before it: [count d], of length 1."""
    chosen = [points[0]]
    distance = (points - points[0]).square().sum(dim=1)
    for _ in range(count - 1):
        chosen.append(points[distance.argmax()])
        distance = torch.minimum(distance, (points - chosen[-1]).square().sum(dim=1))
    return F.normalize(torch.stack(chosen), dim=1)
