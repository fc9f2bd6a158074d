"""Caches that were cut short, overwritten or built twice at once, and their augmented variants."""

import errno
import pickle
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
import zarr

from pixio_robot import FeatureCache, build_cache, runs
from pixio_robot.cache import compare_with_encoder, disk, estimate_cache, layout, verify_cache
from pixio_robot.errors import CacheError, SettingError

CAMERAS = ("front", "wrist")

SIZED = 1
"""Reads of a build before its first chunk: one frame, to know how large it is when encoded."""


class Frames:
    """Random frames of two cameras, and how often they were read."""

    cameras, fingerprint = CAMERAS, "abc"

    def __init__(self, frames=40):
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (2, frames, 3, 32, 32), dtype=torch.uint8, generator=generator)
        self.reads = 0

    def __len__(self):
        return self.pixels.shape[1]

    def row_checksums(self):
        return np.arange(len(self), dtype="u4")

    def read(self, camera, start, stop):
        self.reads += 1
        return self.pixels[CAMERAS.index(camera), start:stop]


class Noise:
    """An augmentation of uniform noise, and the frames that it was given."""

    def __init__(self, strength=40, die_after=None):
        self.strength, self.die_after, self.calls = strength, die_after, 0

    @property
    def description(self):
        return {"noise": self.strength}

    def __call__(self, frames, generator):
        self.calls += 1
        if self.calls == self.die_after:
            raise KeyboardInterrupt
        noise = torch.randint(0, self.strength, frames.shape, generator=generator)
        return (frames.int() + noise).clamp(max=255).to(torch.uint8)


@pytest.fixture
def path(encoder, tmp_path):
    build_cache(tmp_path / "cache", encoder, Frames(), chunk=16)
    return tmp_path / "cache"


def token_file(path, camera="front"):
    return path / camera / "c" / "0" / "0" / "0"


def cut(path):
    with token_file(path).open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)


def remove(path):
    token_file(path).unlink()


def spoil(path):
    with token_file(path).open("r+b") as file:
        file.seek(20 * 7 * 32 * 2)  # frame 20: three class tokens and four patches
        file.write(np.full(4, np.nan, "<f2").tobytes())


def flip(path):
    with token_file(path).open("r+b") as file:
        file.seek(20 * 7 * 32 * 2)
        file.write(b"\x00")


@pytest.mark.parametrize(("damage", "told"), [(cut, "bytes, not"), (remove, "is missing")])
def test_a_file_that_is_cut_short_or_missing_is_refused_and_built_anew(damage, told, encoder, path):
    whole = FeatureCache.open(path).load("front").patches
    damage(path)
    with pytest.raises(CacheError, match=f"{told}.*Run the build again"):
        FeatureCache.open(path)
    source = Frames()
    cache = build_cache(path, encoder, source, chunk=16)
    assert torch.equal(cache.load("front").patches, whole)
    assert 0 < source.reads <= SIZED + 3, "the other camera is whole"


def test_nan_is_refused_where_it_is_read(encoder, path):
    spoil(path)
    cache = FeatureCache.open(path)
    cache.read("front", [0, 19, 21])
    with pytest.raises(CacheError, match=r"NaN or infinity for 'front'.*--repair"):
        cache.read("front", [0, 20])
    with pytest.raises(CacheError, match="NaN or infinity"):
        cache.load("front")


@pytest.mark.parametrize("damage", [spoil, flip])
def test_verification_finds_what_repair_makes_anew(damage, encoder, path):
    assert verify_cache(path) == []
    whole = FeatureCache.open(path).load("front").patches
    damage(path)
    assert verify_cache(path) == [("front", 0, [1])]
    assert verify_cache(path, repair=True) == [("front", 0, [1])]
    with pytest.raises(CacheError, match="lacks 1 of its chunks"):
        FeatureCache.open(path)
    source = Frames()
    assert torch.equal(build_cache(path, encoder, source).load("front").patches, whole)
    assert source.reads == SIZED + 1


def test_a_chunk_is_marked_by_the_checksum_of_its_bytes(path):
    marks = zarr.open_array(path / "marks" / "front", mode="r")[:]
    frames = zarr.open_array(path / "front", mode="r")[:]
    assert list(marks) == [zlib.crc32(frames[start : start + 16].tobytes()) for start in (0, 16, 32)]


def test_two_builds_at_once_are_refused(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "GRACE", 0.1)
    with filelock.FileLock(tmp_path / ".cache.lock"), pytest.raises(CacheError, match="Another process is building"):
        build_cache(tmp_path / "cache", encoder, Frames())
    build_cache(tmp_path / "cache", encoder, Frames())
    with filelock.FileLock(tmp_path / ".cache.lock"):
        build_cache(tmp_path / "cache", encoder, Frames())  # a finished one is only opened


def test_zarr_reads_what_we_map(path):
    cache = FeatureCache.open(path)
    array = zarr.open_array(path / "wrist", mode="r")
    assert array.chunks == (16, 7, 32)
    rows = np.array([3, 39, 17])
    tokens = cache.read("wrist", rows)
    assert np.array_equal(array[:][rows], torch.cat([tokens.classes, tokens.patches], dim=1).numpy())


def test_rows_of_any_shape_are_gathered(path):
    cache = FeatureCache.open(path)
    rows = torch.tensor([[0, 1], [38, 39], [7, 7]])
    tokens, flat = cache.read("front", rows), cache.read("front", rows.flatten())
    assert tokens.patches.shape == (3, 2, 4, 32)
    assert torch.equal(tokens.classes.flatten(0, 1), flat.classes)


def test_a_cache_can_be_sent_to_a_worker(path):
    cache = FeatureCache.open(path)
    sent = pickle.dumps(cache)
    assert len(sent) < 2000
    assert torch.equal(pickle.loads(sent).read("front", [5]).patches, cache.read("front", [5]).patches)  # noqa: S301


def test_a_long_cache_keeps_few_files_open(encoder, tmp_path):
    source = Frames(60)
    build_cache(tmp_path / "cache", encoder, source, chunk=1)
    assert sum(file.is_file() for file in (tmp_path / "cache").rglob("*")) < 20


def test_variants_are_of_the_augmented_frames_and_alike_in_all_cameras(encoder, tmp_path):
    source, noise = Frames(), Noise()
    source.pixels[1] = source.pixels[0]
    cache = build_cache(tmp_path / "cache", encoder, source, variants=2, augment=noise, chunk=16)
    assert cache.variants == 2
    clean, first, second = (cache.load("front", variant).patches for variant in range(3))
    assert torch.equal(clean, build_cache(tmp_path / "clean", encoder, source, chunk=16).load("front").patches)
    for one, other in [(clean, first), (clean, second), (first, second)]:
        assert (one - other).abs().amax(dim=(1, 2)).min() > 0.01, "every frame differs"
    assert torch.equal(cache.load("wrist", 2).patches, second)
    assert torch.equal(cache.read("front", [9], 2).patches, second[9:10])
    assert cache.nbytes == 3 * 2 * 40 * 7 * 32 * 2
    with pytest.raises(CacheError, match="variants 1 to 2, not 3"):
        cache.read("front", [0], 3)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written_and_a_full_one_loses_nothing(
    encoder, tmp_path, monkeypatch
):
    with monkeypatch.context() as small:
        small.setattr(disk, "free_space", lambda path: 10_000)
        with pytest.raises(CacheError, match=r"needs 0\.\d MB, and its disk has 0\.0 MB free: keep fewer patches"):
            build_cache(tmp_path / "cache", encoder, Frames(), chunk=16)
    assert not (tmp_path / "cache").exists()
    write, calls = layout._write_through, []

    def fill(*written, **mode):
        calls.append(written)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*written, **mode)

    with monkeypatch.context() as full:
        full.setattr(layout, "_write_through", fill)
        with pytest.raises(CacheError, match=r"is full.*make room and build again"):
            build_cache(tmp_path / "cache", encoder, Frames(), chunk=16)
    source = Frames()
    cache = build_cache(tmp_path / "cache", encoder, source, chunk=16)
    assert SIZED < source.reads < SIZED + 6  # of two cameras' three chunks each
    whole = build_cache(tmp_path / "whole", encoder, Frames(), chunk=16)
    for camera in CAMERAS:
        torch.testing.assert_close(cache.load(camera).patches, whole.load(camera).patches, rtol=0, atol=0)


def test_a_killed_build_of_variants_continues_and_ends_the_same(encoder, tmp_path):
    whole = build_cache(tmp_path / "whole", encoder, Frames(), variants=1, augment=Noise(), chunk=16)
    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path / "killed", encoder, Frames(), variants=1, augment=Noise(die_after=25), chunk=16)
    again = build_cache(tmp_path / "killed", encoder, Frames(), variants=1, augment=Noise(), chunk=5)
    for camera in CAMERAS:
        assert torch.equal(again.load(camera, 1).patches, whole.load(camera, 1).patches)
        assert torch.equal(again.load(camera).patches, whole.load(camera).patches)


BUILD = """
import sys, time, torch
sys.path.insert(0, {here!r})
from test_cache_damage import Frames
from pixio_robot import build_cache, load_encoder

class Slow(Frames):
    def read(self, *arguments):
        time.sleep(0.1)
        return super().read(*arguments)

build_cache({path!r}, load_encoder({encoder!r}), Slow(), chunk=4)
"""


@pytest.mark.slow
def test_a_build_that_is_killed_outright_ends_the_same(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "encoder")
    whole = build_cache(tmp_path / "whole", encoder, Frames(), chunk=4)
    path, marks = tmp_path / "killed", tmp_path / "killed" / "marks" / "front" / "c" / "0"
    code = BUILD.format(here=str(Path(__file__).parent), path=str(path), encoder=str(tmp_path / "encoder"))
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None and not (marks.is_file() and any(np.fromfile(marks, "<u4")[2:])):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was killed before its end"
    source = Frames()
    cache = build_cache(path, encoder, source, chunk=4)
    assert 0 < source.reads < 20
    assert verify_cache(path) == []
    for camera in CAMERAS:
        assert torch.equal(cache.load(camera).patches, whole.load(camera).patches)


def test_another_augmentation_is_another_cache(encoder, tmp_path):
    build_cache(tmp_path / "cache", encoder, Frames(), variants=1, augment=Noise())
    with pytest.raises(CacheError, match=r"augmentation is \{'noise': 40\} there, \{'noise': 5\} here"):
        build_cache(tmp_path / "cache", encoder, Frames(), variants=1, augment=Noise(5))
    for variants, augment in [(1, None), (0, Noise()), (-1, None)]:
        with pytest.raises(SettingError, match="do not go together"):
            build_cache(tmp_path / "other", encoder, Frames(), variants=variants, augment=augment)


def test_a_sample_is_compared_with_the_encoder(encoder, tmp_path):
    source = Frames()
    cache = build_cache(tmp_path / "cache", encoder, source, variants=1, augment=Noise(), grid=2, size=(48, 32))

    def deviation():
        generator = torch.Generator().manual_seed(0)
        return compare_with_encoder(cache, encoder, source, frames=5, generator=generator, augment=Noise())

    assert deviation() < 4e-3
    source.pixels = source.pixels.roll(1, dims=1)
    assert deviation() > 0.1


def test_an_estimate_is_the_size_on_disk(encoder, tmp_path):
    source = Frames()
    estimate = estimate_cache(encoder, source, grid=2, variants=3, augment=Noise(), batch_size=8)
    cache = build_cache(tmp_path / "cache", encoder, source, grid=2, variants=3, augment=Noise())
    assert (estimate.frames, estimate.nbytes) == (2 * 40 * 4, cache.nbytes)
    assert estimate.seconds > 0
