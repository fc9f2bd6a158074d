"""The feature cache: what it holds, how it resumes, what it refuses."""

import numpy as np
import pytest
import torch
import zarr

from pixio_robot import FeatureCache, build_cache, create_encoder
from pixio_robot.cache.layout import TokenFile
from pixio_robot.errors import CacheError
from pixio_robot.images import resize

SIZED = 1
"""Reads of a build before its first chunk: one frame, to know how large it is when encoded."""


class Frames:
    """Random frames of two cameras."""

    def __init__(self, frames=70, fingerprint="abc", die_after=None):
        self.cameras, self.fingerprint, self.die_after, self.reads = ("front", "wrist"), fingerprint, die_after, 0
        self.pixels = {
            camera: torch.randint(
                0, 256, (frames, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
            )
            for seed, camera in enumerate(self.cameras)
        }

    def __len__(self):
        return len(self.pixels["front"])

    def row_checksums(self):
        return np.arange(len(self), dtype="u4")

    def read(self, camera, start, stop):
        self.reads += 1
        if self.reads == self.die_after:
            raise KeyboardInterrupt
        return self.pixels[camera][start:stop]


def files(path):
    return {file.relative_to(path): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("grid", [None, 2])
def test_cached_tokens_are_the_live_ones_in_half_precision(encoder, tmp_path, grid):
    source = Frames()
    cache = build_cache(tmp_path / "cache", encoder, source, grid=grid, chunk=32)
    rows = np.array([0, 69, 31, 32, 5, 5])
    for camera in source.cameras:
        live = encoder(source.pixels[camera][rows])
        live = live if grid is None else live.pool(grid)
        cached = cache.read(camera, rows)
        assert cached.grid == live.grid
        assert cached.patches.dtype == torch.float16
        torch.testing.assert_close(cached.patches.float(), live.patches, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(cached.classes.float(), live.classes, atol=2e-3, rtol=2e-3)
        assert torch.equal(cache.load(camera).patches[rows], cached.patches)
    assert len(cache) == 70


def test_a_killed_build_continues_and_ends_the_same(encoder, tmp_path):
    build_cache(tmp_path / "whole", encoder, Frames(), grid=2, chunk=16)
    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path / "killed", encoder, Frames(die_after=SIZED + 7), grid=2, chunk=16)
    with pytest.raises(CacheError, match="lacks 4 of its chunks"):
        FeatureCache.open(tmp_path / "killed")
    again = Frames()
    build_cache(tmp_path / "killed", encoder, again, grid=2, chunk=16)
    assert again.reads == SIZED + 4
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_chunk_that_was_written_but_not_marked_is_made_again(encoder, tmp_path):
    build_cache(tmp_path / "cache", encoder, Frames(), chunk=16)
    file = TokenFile(tmp_path / "cache", "front", 0, frames=70, chunk=16)
    file.write(1, np.zeros((16, 19, 32)))
    file.unmark([1])
    source = Frames()
    cache = build_cache(tmp_path / "cache", encoder, source, chunk=16)
    assert source.reads == SIZED + 1
    assert cache.read("front", [16]).patches.any()


def test_a_finished_cache_is_not_built_again(encoder, tmp_path):
    build_cache(tmp_path / "cache", encoder, Frames())
    source = Frames()
    build_cache(tmp_path / "cache", encoder, source)
    assert source.reads == 0


def test_frames_of_another_size_are_resized_before_encoding(encoder, tmp_path):
    source = Frames(frames=4)
    cache = build_cache(tmp_path / "cache", encoder, source, size=(48, 32))
    live = encoder(resize(source.pixels["front"], (48, 32)))
    assert cache.read("front", [0]).grid == (3, 2)
    torch.testing.assert_close(cache.load("front").patches.float(), live.patches, atol=2e-3, rtol=2e-3)


def test_a_cache_of_another_encoder_is_refused(encoder, tmp_path):
    build_cache(tmp_path / "cache", encoder, Frames())
    other = create_encoder("pixio_vitt16", seed=5, width=32, depth=4, heads=4, image_size=64, class_tokens=3)
    with pytest.raises(CacheError, match="built by the encoder"):
        FeatureCache.open(tmp_path / "cache", encoder=other)
    with pytest.raises(CacheError, match="encoder_sha256"):
        build_cache(tmp_path / "cache", other, Frames())


def test_a_cache_of_another_data_set_is_refused(encoder, tmp_path):
    build_cache(tmp_path / "cache", encoder, Frames())
    with pytest.raises(CacheError, match="another data set"):
        FeatureCache.open(tmp_path / "cache", source=Frames(fingerprint="def"))
    with pytest.raises(CacheError, match="pooled_to is None there, 2 here"):
        build_cache(tmp_path / "cache", encoder, Frames(), grid=2)


def test_what_is_no_cache_is_told(encoder, tmp_path):
    with pytest.raises(CacheError, match="no feature cache at"):
        FeatureCache.open(tmp_path / "nothing")
    zarr.create_group(tmp_path / "other")
    with pytest.raises(CacheError, match="no feature cache of format"):
        FeatureCache.open(tmp_path / "other")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for taken in ("other", "full"):
        with pytest.raises(CacheError, match=r"holds something else than a cache\. Choose another path, or delete it"):
            build_cache(tmp_path / taken, encoder, Frames())
    with pytest.raises(CacheError, match="no frames"):
        build_cache(tmp_path / "empty", encoder, Frames(frames=0))


def test_rows_and_cameras_that_do_not_exist_are_refused(encoder, tmp_path):
    cache = build_cache(tmp_path / "cache", encoder, Frames())
    with pytest.raises(CacheError, match="cache of 70 frames"):
        cache.read("front", [70])
    with pytest.raises(CacheError, match="it has front, wrist"):
        cache.read("side", [0])


def test_features_that_overflow_are_refused_before_they_are_stored(encoder, tmp_path):
    with torch.no_grad():
        encoder.backbone.norm.weight.fill_(1e6)
    with pytest.raises(CacheError, match="overflows float16"):
        build_cache(tmp_path / "cache", encoder, Frames())
