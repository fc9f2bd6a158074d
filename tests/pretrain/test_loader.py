import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixio_pretrain.data import Frames, Loaded, Loader, Source, open_source
from pixio_pretrain.data.lanes import Lane, Mark
from pixio_pretrain.data.samples import Sample
from pixio_pretrain.data.source import Entry, Stream
from pixio_pretrain.data.synthetic import Synthetic
from pixio_pretrain.objectives.masking import crop_with_noise
from pixio_robot.errors import DataError, ImageError, SettingError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # two workers on one core


def make_sample(image: Image.Image, random: np.random.Generator) -> Sample:
    return {"images": np.asarray(image), "noise": random.random(3)}


class Runs(Stream):
    """Runs of given lengths, whose images are their numbers; some of them are damaged."""

    def __init__(self, *lengths: int, damaged: tuple[str, ...] = ()) -> None:
        self.lengths = lengths
        self.damaged = damaged

    @property
    def runs(self) -> int:
        return len(self.lengths)

    def read(self, run: int, start: int = 0) -> Iterator[Entry]:
        for number in range(start, self.lengths[run]):
            key = f"{run}/{number}"
            pixels = np.full((2, 2, 3), [run, number, 0], dtype=np.uint8)
            yield Entry(number, key, ImageError("is damaged") if key in self.damaged else pixels)

    def split(self, share: float) -> tuple["Runs", "Runs"]:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        return {"lengths": self.lengths}


class Damaged(Synthetic):
    """Generated images of which some are damaged."""

    def __init__(self, count: int, *damaged: int) -> None:
        super().__init__(0, count, side=4)
        self.damaged = damaged

    def image(self, index: int) -> Image.Image:
        if index in self.damaged:
            raise ImageError("is damaged")
        return super().image(index)


SOURCES: dict[str, Callable[[], Source]] = {
    "frames": lambda: Synthetic(0, 23, side=4),
    "stream": lambda: Runs(5, 9, 1, 7, 8, damaged=("1/3",)),
    "damaged frames": lambda: Damaged(23, 3, 4),
}


def load(source: Source, **changes: Any) -> Loader:
    return Loader(source, make_sample, **({"batch_size": 3, "seed": 0, "buffer": 6} | changes))


def take(loader: Loader, count: int) -> list[Loaded]:
    return list(islice(loader, count))


def keys(loaded: list[Loaded]) -> list[str]:
    return [key for part in loaded for key in part.keys]


def assert_same(first: list[Loaded], second: list[Loaded]) -> None:
    assert keys(first) == keys(second)
    for one, other in zip(first, second, strict=True):
        assert one.batch.keys() == other.batch.keys()
        assert all(torch.equal(one.batch[name], other.batch[name]) for name in one.batch)


def half(key: str) -> float:
    return 0.5


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("keep", [None, half])
def test_a_loader_resumes_at_the_exact_next_sample_from_any_point(kind: str, keep: Any) -> None:
    source, unbroken = SOURCES[kind](), load(SOURCES[kind](), keep=keep)
    states, batches = [unbroken.state_dict()], []
    for loaded in islice(unbroken, 30):
        batches.append(loaded)
        states.append(json.loads(json.dumps(unbroken.state_dict())))
    for at in range(27):
        resumed = load(source, keep=keep)
        resumed.load_state_dict(states[at])
        assert_same(take(resumed, 3), batches[at : at + 3])
        assert resumed.skipped == states[at + 3]["skipped"]


@pytest.mark.parametrize("kind", SOURCES)
def test_a_loader_with_workers_resumes_at_the_exact_next_sample_whatever_they_prefetch(kind: str) -> None:
    batches = take(load(SOURCES[kind](), workers=2), 9)
    for at in (1, 4):
        first, second = load(SOURCES[kind](), workers=2), load(SOURCES[kind](), workers=2)
        assert_same(take(first, at), batches[:at])
        second.load_state_dict(first.state_dict())
        assert_same(take(second, 3), batches[at : at + 3])


def test_asking_again_goes_on_where_the_last_batch_ended() -> None:
    loader = load(Synthetic(0, 23, side=4))
    assert_same(take(loader, 2) + take(loader, 2), take(load(Synthetic(0, 23, side=4)), 4))


@pytest.mark.parametrize("source", [Synthetic(0, 23, side=4), Damaged(23, 3, 4)])
@pytest.mark.parametrize("keep", [None, half])
def test_ranks_share_out_the_samples_that_one_rank_sees(source: Frames, keep: Any) -> None:
    alone = take(load(source, batch_size=6, keep=keep), 9)
    ranks = [take(load(source, batch_size=3, rank=rank, world=2, keep=keep), 9) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert whole.keys == [key for part in parts for key in part.keys]
        for name in whole.batch:
            assert torch.equal(whole.batch[name], torch.cat([part.batch[name] for part in parts]))


def test_the_chance_of_a_sample_follows_from_seed_and_position() -> None:
    for number, loaded in enumerate(take(load(Damaged(23, 3, 4), seed=5), 9)):
        expected = [np.random.default_rng([5, 1, 3 * number + place]).random(3) for place in range(3)]
        assert np.array_equal(loaded.batch["noise"].numpy(), np.stack(expected))


def test_frames_do_not_depend_on_workers() -> None:
    assert_same(take(load(Synthetic(0, 23, side=4), workers=2), 9), take(load(Synthetic(0, 23, side=4)), 9))


def test_every_frame_is_seen_once_per_pass_and_each_pass_has_its_own_order() -> None:
    order = keys(take(load(Synthetic(0, 24, side=4)), 16))
    assert sorted(map(int, order[:24])) == sorted(map(int, order[24:])) == list(range(24))
    assert order[:24] != order[24:]
    assert order != keys(take(load(Synthetic(0, 24, side=4), seed=1), 16))


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(lambda lengths: min(lengths) > 3),
    lanes=st.integers(1, 4),
    buffer=st.integers(1, 15),
)
def test_lanes_share_every_pass_among_them_to_the_last_sample(lengths: list[int], lanes: int, buffer: int) -> None:
    stream = Runs(*lengths)
    seen: Counter[tuple[int, str]] = Counter()
    for number in range(lanes):
        lane = Lane(stream, number=number, of=lanes, buffer=buffer, seed=0, keep=None)
        for slot, _ in lane.draw(Mark()):
            if slot.turn == 2:
                break
            seen[slot.turn, slot.entry.key] += 1
    whole = [f"{run}/{number}" for run, length in enumerate(lengths) for number in range(length)]
    assert seen == Counter((turn, key) for turn in range(2) for key in whole)


def test_a_buffer_holds_no_more_than_it_may() -> None:
    read: list[str] = []

    class Watched(Runs):
        def read(self, run: int, start: int = 0) -> Iterator[Entry]:
            for entry in super().read(run, start):
                read.append(entry.key)
                yield entry

    lane = Lane(Watched(50, 50), number=0, of=1, buffer=10, seed=0, keep=None)
    for drawn, (slot, _) in enumerate(islice(lane.draw(Mark()), 80), 1):
        assert slot.turn == 0
        assert len(read) - drawn <= 10


def test_a_buffer_mixes_runs_and_one_of_a_single_sample_leaves_their_order() -> None:
    in_order = keys(take(load(Runs(6, 6, 6), buffer=1), 6))
    assert [key.split("/")[1] for key in in_order] == [str(number) for number in range(6)] * 3
    mixed = keys(take(load(Runs(6, 6, 6), buffer=12), 6))
    assert len({key.split("/")[0] for key in mixed[:6]}) > 1


def test_a_stream_does_not_go_on_with_another_division() -> None:
    state = load(Runs(9, 9), workers=0).state_dict()
    with pytest.raises(DataError, match="saved with world=1, and this loader has 2"):
        load(Runs(9, 9), world=2).load_state_dict(state)
    with pytest.raises(DataError, match="lanes=1"):
        load(Runs(9, 9), workers=2).load_state_dict(state)
    with pytest.raises(DataError, match="kind='stream'"):
        load(Synthetic(0, 9)).load_state_dict(state)


def test_more_lanes_than_samples_are_refused() -> None:
    with pytest.raises(DataError, match=r"no sample for lane 3 of 3 .*Use fewer workers"):
        take(load(Runs(2), rank=2, world=3), 1)


@pytest.mark.parametrize("source", [Synthetic(0, 40, side=4), Runs(20, 20)])
def test_curation_drops_samples_by_their_probability_and_draws_anew_for_each_pass(source: Source) -> None:
    chances = {0: 0.0, 1: 0.5, 2: 1.0, 3: 2.0}
    passes = 60
    number = {key: place for place, (key, _) in enumerate(source.visit())}

    loader = load(source, batch_size=1, keep=lambda key: chances[number[key] % 4])
    seen: Counter[int] = Counter()
    for loaded in islice(loader, 25 * passes):
        seen[number[loaded.keys[0]] % 4] += 1
    assert seen[0] == 0
    assert seen[2] == pytest.approx(10 * passes, rel=0.05)
    assert seen[3] == pytest.approx(10 * passes, rel=0.05)
    assert seen[1] == pytest.approx(5 * passes, rel=0.2)


@pytest.mark.parametrize("source", [Synthetic(0, 9, side=4), Runs(9)])
def test_a_curation_that_keeps_nothing_is_refused(source: Source) -> None:
    with pytest.raises(DataError, match="keep gives every sample the probability 0"):
        take(load(source, keep=lambda key: 0.0), 1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", [Damaged(23, 3, 4), Runs(9, 9, damaged=("0/3", "1/4"))])
def test_unreadable_samples_are_named_and_others_take_their_places(source: Source, workers: int) -> None:
    loader = load(source, workers=workers)
    batches = take(loader, 16)
    assert set(loader.skipped) == ({"3", "4"} if isinstance(source, Frames) else {"0/3", "1/4"})
    assert set(loader.skipped.values()) == {"is damaged"}
    assert set(loader.skipped).isdisjoint(keys(batches))
    assert all(len(loaded.keys) == len(loaded.batch["images"]) == 3 for loaded in batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", [Damaged(40, *range(9)), Runs(40, damaged=tuple(f"0/{n}" for n in range(9)))])
def test_too_many_unreadable_samples_stop_a_loader(source: Source, workers: int) -> None:
    with pytest.raises(DataError, match=r"\d samples cannot be read; max_skipped=5 allows 5\. The first: .*is damaged"):
        take(load(source, workers=workers, max_skipped=5), 40)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", [Damaged(6, *range(6)), Runs(6, damaged=tuple(f"0/{n}" for n in range(6)))])
def test_a_loader_of_nothing_readable_is_an_error(source: Source, workers: int) -> None:
    with pytest.raises(DataError, match="Not one sample can be read"):
        take(load(source, workers=workers), 1)


def test_a_loader_of_which_nothing_that_is_kept_is_readable_is_an_error() -> None:
    with pytest.raises(DataError, match="Not one sample can be read"):
        take(load(Damaged(60, *range(5)), keep=lambda key: float(int(key) < 5)), 1)
    (loaded,) = take(load(Damaged(60, *range(5)), keep=lambda key: float(int(key) < 6)), 1)
    assert loaded.keys == ["5"] * 3


@pytest.mark.skipif("forkserver" not in get_all_start_methods(), reason="there is none on this system")
def test_what_workers_run_can_be_sent_to_those_that_are_not_forked() -> None:
    context, samples = get_context("forkserver"), crop_with_noise(8, blocks=4, crop_scale=0.5, mirror=True)
    image, outcome = Image.new("RGB", (16, 16), "red"), []
    with context.Pool(1) as pool:
        outcome = pool.apply(samples, (image, np.random.default_rng(3)))
    assert (outcome["noise"] == samples(image, np.random.default_rng(3))["noise"]).all()


def test_a_corrupt_jpeg_costs_one_sample(tmp_path: Path) -> None:
    for number in range(6):
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(tmp_path / f"{number}.jpg")
    (tmp_path / "2.jpg").write_bytes((tmp_path / "2.jpg").read_bytes()[:300])
    loader = load(open_source(tmp_path))
    assert set(keys(take(loader, 4))) == {f"{number}.jpg" for number in (0, 1, 3, 4, 5)}
    assert list(loader.skipped) == ["2.jpg"]


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"buffer": 0}, {"workers": -1}, {"rank": 2, "world": 2}])
def test_impossible_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="must be at least 1"):
        load(Synthetic(0, 9), **wrong)
