"""Descriptors of every second pixel, and keypoints learnt from a few pictures."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixio_robot import Encoder, create_encoder, learn_keypoints, load_encoder
from pixio_robot.descriptors import WIDTH, KeypointNet, find
from pixio_robot.encoder import DESCRIPTORS
from pixio_robot.errors import CheckpointError, ImageError, SettingError
from pixio_robot.keypoints import _choose, _farthest, _moving, _settle

SIDE, THING = 128, 10
RED = torch.tensor([220, 20, 20], dtype=torch.uint8)[:, None, None]


@pytest.fixture(scope="module")
def descriptors() -> Encoder:
    encoder = Encoder(DESCRIPTORS, provenance={"name": "untrained", "licence": "apache-2.0"})
    encoder.backbone.initialize(torch.Generator().manual_seed(0))
    return encoder


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A red square somewhere on a fixed ground: pictures, and the square's middle from -1 to 1, right and down."""
    chance = torch.Generator().manual_seed(seed)
    ground = torch.randint(90, 130, (3, SIDE // 16, SIDE // 16), generator=torch.Generator().manual_seed(9))
    ground = ground.repeat_interleave(16, 1).repeat_interleave(16, 2).to(torch.uint8)
    pictures, corners = ground.repeat(count, 1, 1, 1), torch.randint(SIDE - THING, (count, 2), generator=chance)
    for picture, (left, top) in zip(pictures, corners.tolist(), strict=True):
        picture[:, top : top + THING, left : left + THING] = torch.tensor([220, 20, 20], dtype=torch.uint8)[
            :, None, None
        ]
    return pictures, (corners + THING / 2) / SIDE * 2 - 1


def test_descriptors_have_length_one_and_move_with_what_they_describe(descriptors: Encoder) -> None:
    chance = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, SIDE, SIDE), generator=chance).to(torch.uint8)
    tokens, moved = descriptors(image), descriptors(image.roll((8, 4), dims=(2, 3)))
    assert tokens.grid == (SIDE // 2, SIDE // 2)
    assert tokens.classes.shape == (1, 0, WIDTH)
    torch.testing.assert_close(tokens.patches.norm(dim=-1), torch.ones(1, tokens.patches.shape[1]))
    maps, there = (one.patches.view(64, 64, WIDTH) for one in (tokens, moved))
    inside = slice(20, 44)
    torch.testing.assert_close(there[24:48, 22:46], maps[inside, inside], atol=0.05, rtol=0)  # norms see all
    assert (there[inside, inside] - maps[inside, inside]).abs().mean() > 0.1


@pytest.mark.parametrize(("shipped", "least"), [(True, 0.1), (False, 0.25)])
def test_some_keypoint_is_where_the_only_thing_is_that_moves(
    descriptors: Encoder, *, shipped: bool, least: float
) -> None:
    """Within 6 pixels, and of untrained descriptors within 16."""
    source = load_encoder("shipped:descriptors") if shipped else descriptors
    keypoints = learn_keypoints(source, [scenes(24, seed=0)[0]], count=16)
    pictures, places = scenes(40, seed=1)
    tokens = keypoints(pictures)
    assert tokens.grid == (1, 1)
    assert tokens.patches.shape == (40, 1, 3 * 16)
    found = tokens.patches[:, 0, :32].unflatten(1, (16, 2))
    errors = (found - places[:, None]).norm(dim=-1).median(dim=0).values  # of each keypoint
    assert errors.min() < least
    assert (places - places.mean(dim=0)).norm(dim=1).median() > 0.5  # a keypoint that stays would be this far off


def test_a_keypoint_is_the_mean_place_of_what_is_like_its_reference(descriptors: Encoder) -> None:
    pictures, _ = scenes(3, seed=2)
    keypoints = learn_keypoints(descriptors, [pictures], count=5)
    net = keypoints.backbone
    assert isinstance(net, KeypointNet)
    patches = descriptors(pictures).patches  # 3 4096 d
    torch.testing.assert_close(net.references.norm(dim=-1), torch.ones(1, 5))
    for picture, described in zip(keypoints(pictures).patches[:, 0], patches, strict=True):
        for number, reference in enumerate(net.references[0]):
            alike = described @ reference
            weights = (alike / 0.02).exp() / (alike / 0.02).exp().sum()
            steps = torch.linspace(-1, 1, 64)
            right, down = (weights.view(64, 64).sum(dim=side) @ steps for side in (0, 1))
            expected = torch.stack([right, down, alike.max()])
            torch.testing.assert_close(picture[[2 * number, 2 * number + 1, 10 + number]], expected, atol=1e-4, rtol=0)


def test_references_are_of_both_cameras_and_differ(descriptors: Encoder) -> None:
    one, other = scenes(6, seed=3)[0], scenes(5, seed=4)[0].flip(1)  # a blue thing
    keypoints = learn_keypoints(descriptors, [one, other], count=8)
    net = keypoints.backbone
    assert isinstance(net, KeypointNet)
    assert keypoints.provenance["pictures"] == [6, 5]
    assert keypoints.provenance["licence"] == "apache-2.0"
    assert net.references.shape == (2, 8, WIDTH)
    everything = [descriptors(some).patches.flatten(0, 1) for some in (one, other)]
    for own, references in zip(everything, net.references.detach(), strict=True):
        assert (references @ own.T).amax(dim=1).min() > 0.9  # each is the mean of some of its camera's descriptors
        by_chance = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0))[:8]]
        assert torch.pdist(references).min() > torch.pdist(by_chance).min()
    again = learn_keypoints(descriptors, [one, other], count=8)
    assert again.fingerprint == keypoints.fingerprint


def test_a_picture_is_answered_by_the_keypoints_of_its_own_camera(descriptors: Encoder) -> None:
    one, other = scenes(12, seed=8)[0], scenes(12, seed=9)[0].flip(1)
    keypoints = learn_keypoints(descriptors, [one, other], count=8)
    alone = learn_keypoints(descriptors, [one], count=8)
    assert keypoints.spec.heads == 2
    mixed = keypoints(torch.cat([one[:3], other[:3]])).patches[:, 0]
    places, cosines = mixed[:, :32].unflatten(1, (2, 16)), mixed[:, 32:].unflatten(1, (2, 8))
    for own, rows in enumerate([slice(0, 3), slice(3, 6)]):
        assert not places[rows, 1 - own].any()
        assert not cosines[rows, 1 - own].any()
        assert cosines[rows, own].min() > 0.5
    expected = alone(one[:3]).patches[:, 0]  # the first camera's draws do not depend on the second
    torch.testing.assert_close(torch.cat([places[:3, 0], cosines[:3, 0]], dim=1), expected)


def test_cameras_that_look_alike_share_their_references(descriptors: Encoder) -> None:
    """As on two like wrists: each picture would else be answered by either camera's, as chance has it."""
    left, front, right = scenes(12, seed=8)[0], scenes(12, seed=9)[0].flip(1), scenes(12, seed=10)[0]
    keypoints = learn_keypoints(descriptors, [left, front, right], count=8)
    assert keypoints.provenance["cameras"] == [[0, 2], [1]]
    assert keypoints.spec.heads == 2
    cosines = keypoints(torch.cat([left, right, front])).patches[:, 0, 32:].unflatten(1, (2, 8))
    assert cosines[:24, 0].all()
    assert cosines[24:, 1].all()
    chance = torch.Generator().manual_seed(0)
    maps = [descriptors(some).patches.mT.unflatten(2, (64, 64)) for some in (left, front, right)]
    for alone in maps:
        _choose(alone, 8, chance)
    expected = _choose(torch.cat([maps[0], maps[2]]), 8, chance)
    assert isinstance(keypoints.backbone, KeypointNet)
    torch.testing.assert_close(keypoints.backbone.references[0].detach(), expected)


def test_descriptors_and_keypoints_come_back_as_they_were_written(descriptors: Encoder, tmp_path: Path) -> None:
    pictures, _ = scenes(4, seed=5)
    learnt = learn_keypoints(descriptors, [pictures, pictures.flip(1)], count=7)
    for name, encoder in (("d", descriptors), ("k", learnt)):
        encoder.save_pretrained(tmp_path / name)
        read = load_encoder(tmp_path / name)
        assert read.spec == encoder.spec
        assert read.fingerprint == encoder.fingerprint
        torch.testing.assert_close(read(pictures).patches, encoder(pictures).patches, rtol=0, atol=0)
        drawn = read.redrawn(3)
        assert drawn.fingerprint != read.fingerprint
        assert drawn(pictures).patches.isfinite().all()
    (tmp_path / "k" / "model.safetensors").write_bytes((tmp_path / "d" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        load_encoder(tmp_path / "k")


def test_what_keypoints_cannot_be_learnt_from_is_refused(descriptors: Encoder) -> None:
    pictures, _ = scenes(2, seed=6)
    with pytest.raises(SettingError, match="family 'pixio': take 'shipped:descriptors'"):
        learn_keypoints(create_encoder("pixio_vitt16", seed=0, image_size=64), [pictures])
    for few in ([], [pictures, pictures[:1]]):
        with pytest.raises(SettingError, match="at least two pictures of every camera"):
            learn_keypoints(descriptors, few)
    with pytest.raises(SettingError, match=r"count=5000: .* 1 to \d+ keypoints"):
        learn_keypoints(descriptors, [pictures], count=5000)
    keypoints = learn_keypoints(descriptors, [pictures], count=4)
    with pytest.raises(ImageError, match="128 x 128 pixels"):
        keypoints(F.pad(pictures, (0, SIDE, 0, SIDE)))


def test_of_four_times_as_many_those_are_kept_that_are_found_in_one_spot_that_moves(descriptors: Encoder) -> None:
    pictures, _ = scenes(24, seed=7)
    maps = descriptors(pictures).patches.mT.unflatten(2, (64, 64))
    candidates = _settle(maps, _farthest(_moving(maps, torch.Generator().manual_seed(0)), 32))
    found = find(maps, candidates)
    ways = found.means.std(dim=0).norm(dim=1)
    merits = (ways > 0.02) * ways / (found.spreads.mean(dim=0) + 0.02)
    net = learn_keypoints(descriptors, [pictures], count=8).backbone
    assert isinstance(net, KeypointNet)
    torch.testing.assert_close(net.references[0].detach(), candidates[merits.argsort(descending=True)[:8]])
    assert merits.max() > 3 * merits.median()  # there is something to choose


def test_a_reference_far_out_settles_in_the_middle_of_what_it_finds() -> None:
    chance = torch.Generator().manual_seed(0)
    things = F.normalize(torch.eye(WIDTH)[3] + 0.15 * torch.randn(40, WIDTH, generator=chance), dim=1)  # one a picture
    maps = F.normalize(torch.randn(40, WIDTH, 8, 8, generator=chance), dim=1)
    maps[:, 3] = 0  # nothing else is at all like it
    maps = F.normalize(maps, dim=1)
    maps[torch.arange(40), :, torch.arange(40) % 8, torch.arange(40) // 8] = things
    outmost = things[(things @ things.mean(dim=0)).argmin()]
    (settled,) = _settle(maps, outmost[None])
    torch.testing.assert_close(settled, F.normalize(things.mean(dim=0), dim=0))
    assert settled @ outmost < 0.8


def test_the_spread_of_what_is_at_two_places_is_half_of_their_distance() -> None:
    maps = torch.zeros(1, WIDTH, 5, 5)
    maps[:, 0] = 1
    maps[0, :, 0, 0] = maps[0, :, 4, 4] = torch.eye(WIDTH)[1]
    found = find(maps, torch.eye(WIDTH)[1:2])
    torch.testing.assert_close(found.means, torch.zeros(1, 1, 2))
    torch.testing.assert_close(found.spreads, torch.full((1, 1), 2**0.5))
    torch.testing.assert_close(found.cosines, torch.ones(1, 1))
