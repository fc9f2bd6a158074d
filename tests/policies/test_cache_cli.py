"""``pixio-cache``, as it is called."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from lerobot_policy_pixio import cache_cli
from lerobot_policy_pixio.augmentation import ImageAugmentation
from lerobot_policy_pixio.cache_folders import cache_folder, find_caches
from lerobot_policy_pixio.cached_tokens import check_fit
from lerobot_policy_pixio.frames import DatasetFrames, open_dataset
from pixio_robot import Encoder, FeatureCache, load_encoder
from pixio_robot.cache import disk
from pixio_robot.cache.build import sole_builder
from pixio_robot.errors import SettingError


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    monkeypatch.setenv("COLUMNS", "400")

    def call(*arguments: object) -> Said:
        try:
            code, told = cache_cli.main([str(argument) for argument in arguments]), ""
        except SystemExit as ended:
            code, told = 1, str(ended)
        out, err = capsys.readouterr()
        return Said(code, " ".join(out.split()), told + err)

    return call


@pytest.fixture
def root(make_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "walks")


def test_a_cache_is_built_beside_its_data_set_and_shown(
    call: Callable[..., Said], root: Path, encoder_folder: Path, encoder: Encoder
) -> None:
    said = call("build", root, "--encoder", encoder_folder, "--grid", 2, "--device", "cpu")
    assert said.code == 0
    assert "to encode, variants included │ 68" in said.out
    [path] = find_caches(root)
    assert path.parent == root.parent / "walks.pixio_cache"
    assert re.fullmatch(rf"\w+-{encoder.fingerprint[:8]}-grid2-[0-9a-f]{{8}}.zarr", path.name)
    FeatureCache.open(path, encoder=encoder, source=DatasetFrames(root))
    shown = call("info", root).out
    assert shown == call("info", path).out
    for told in (
        "complete │ yes",
        encoder.fingerprint[:12],
        "patches pooled to 2 x 2",
        "seen at 64 x 64",
        "not stated",
    ):
        assert told in shown


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--grid", 2, "--size", 32], {"grid": 2, "image_size": 32}),
        (["--grid", 1], {"grid": 1}),
        (["--grid", 4], {"grid": 4}),
        (["--grid", 0], {}),
        ([], {}),
    ],
)
def test_the_command_that_a_build_tells_names_what_the_cache_asks_for(
    call: Callable[..., Said],
    root: Path,
    encoder_folder: Path,
    make_config: Callable[..., Any],
    words: list[Any],
    settings: dict[str, int],
) -> None:
    out = call("build", root, "--encoder", encoder_folder, *words, "--device", "cpu").out
    told = dict(re.findall(r"--policy\.(grid|image_size)=(\d+)", out))
    assert told == {name: str(value) for name, value in settings.items()}
    [path] = find_caches(root)
    config = make_config(**({"grid": None} | settings))
    config.settle_grid(load_encoder(encoder_folder).spec)
    check_fit(FeatureCache.open(path), config)


def test_a_build_goes_on_whatever_its_folder_is_called(
    call: Callable[..., Said], root: Path, encoder_folder: Path
) -> None:
    build = ("build", root, "--encoder", encoder_folder, "--grid", 2, "--device", "cpu")
    call(*build)
    [named] = find_caches(root)
    path = named.rename(named.with_name("tiny-grid2.zarr"))
    (path / "marks" / "observation.images.top" / "c" / "0").write_bytes(bytes(4))
    assert call(*build).code == 0
    assert find_caches(root) == [path]
    assert "complete │ yes" in call("info", path).out
    assert call(*build, "--cameras", "observation.images.top").code == 0
    assert call(*build, "--dtype", "bfloat16").code == 0
    assert len(find_caches(root)) == 3


def test_variants_are_built_and_verified(call: Callable[..., Said], root: Path, encoder_folder: Path) -> None:
    path = root.parent / "here.zarr"
    top = "observation.images.top"
    build = ("build", root, "--encoder", encoder_folder, "--folder", path, "--grid", 2, "--device", "cpu")
    assert call(*build, "--cameras", top, "--variants", 2).code == 0
    cache = FeatureCache.open(path)
    assert (cache.variants, cache.cameras) == (2, [top])
    assert "augmentation │ light, nudge" in call("info", path).out
    check = ("verify", path, "--dataset", root, "--device", "cpu", "--frames", 3)
    said = call(*check)
    assert (said.code, "the same features" in said.out) == (0, True)
    file = path / "variants" / "1" / top / "c" / "0" / "0" / "0"
    with file.open("r+b") as handle:
        handle.write(np.full(8, np.nan, "<f2").tobytes())
    said = call("verify", path)
    assert said.code == 1
    assert f"damaged: {top}, variant 1, 1 chunk(s), first 0" in said.out
    assert call("verify", path, "--repair").code == 1
    assert call(*build, "--cameras", top, "--variants", 2).code == 0
    assert call(*check).code == 0


def test_verification_finds_features_of_other_frames(
    call: Callable[..., Said], dataset_root: Path, cache: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(self: DatasetFrames, camera: str, start: int, stop: int) -> torch.Tensor:
        return read(self, camera, (start + 10) % 30, (start + 10) % 30 + stop - start)

    read = DatasetFrames.read
    arguments = ("verify", cache, "--dataset", dataset_root, "--encoder", encoder_folder, "--device", "cpu")
    assert call(*arguments).code == 0
    monkeypatch.setattr(DatasetFrames, "read", late)
    said = call(*arguments)
    assert (said.code, "other features" in said.out) == (1, True)


def test_a_disk_that_is_too_small_is_told_before_it_starts(
    call: Callable[..., Said], root: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_space", lambda path: 1000)
    for arguments, told in [
        (("--grid", 4), "pool patches to a smaller --grid than 4, choose fewer --cameras"),
        (("--grid", 0, "--variants", 3), "pool patches, as with --grid 4, choose fewer --variants"),
    ]:
        said = call("build", root, "--encoder", encoder_folder, "--device", "cpu", *arguments)
        assert said.code == 1
        assert told in said.err
    assert find_caches(root) == []


def test_an_estimate_builds_nothing(call: Callable[..., Said], root: Path, encoder_folder: Path) -> None:
    said = call("build", root, "--encoder", encoder_folder, "--device", "cpu", "--grid", 2, "--estimate")
    assert said.code == 0
    assert "on disk │ 0.1 MB" in said.out  # 68 frames of 12 tokens, 32 wide, of 2 bytes each: 52 kB
    assert not cache_folder(root).exists()


def test_what_is_of_no_use_is_listed_and_then_deleted(
    call: Callable[..., Said], root: Path, encoder_folder: Path, make_dataset: Callable[..., Path]
) -> None:
    build = ("build", root, "--encoder", encoder_folder, "--device", "cpu")
    call(*build, "--grid", 2)
    call(*build, "--grid", 1)
    [pooled, _] = find_caches(root)
    FeatureCache.open(pooled)
    (pooled / "marks" / "observation.images.top" / "c" / "0").write_bytes(bytes(4))
    said = call("prune", root)
    assert "unfinished, 1 of 2 chunks" in said.out
    assert "1 of 2 caches" in said.out
    assert len(find_caches(root)) == 2, "nothing is deleted unasked"
    with sole_builder(pooled):
        assert "Another process is building" in call("prune", root, "--delete").err
    assert len(find_caches(root)) == 2
    assert "deleting" in call("prune", root, "--delete").out
    assert len(find_caches(root)) == 1
    assert "of the encoder" in call("prune", root, "--keep", "shipped:pixio_vitt16").out
    video = next((root / "videos").rglob("*.mp4"))
    video.write_bytes(video.read_bytes() + b"edited")
    assert "of another state of the data set" in call("prune", root, "--delete").out
    assert find_caches(root) == []


def test_tables_hold_all_but_the_images(call: Callable[..., Said], root: Path) -> None:
    said = call("export-tables", root)
    assert said.code == 0
    assert '"observation.images.wrist": {"type": "VISUAL", "shape": [3, 64, 64]}' in said.out
    tables, whole = open_dataset(cache_folder(root) / "tables"), open_dataset(root)
    assert not list(tables.root.rglob("*.mp4"))
    for row in (0, 9, 33):
        one: Any = tables[row]
        other: Any = whole[row]
        assert set(other) - set(one) == set(whole.meta.camera_keys)
        assert all(torch.equal(one[key], other[key]) for key in ("observation.state", "action", "index"))
    assert np.array_equal(DatasetFrames(tables, []).row_checksums(), DatasetFrames(whole).row_checksums())
    assert call("export-tables", root).code == 1


def test_what_is_not_there_is_told(call: Callable[..., Said], tmp_path: Path, root: Path) -> None:
    assert "there are none in" in call("info", root).err
    assert "no feature cache at" in call("verify", tmp_path / "none.zarr").err
    assert "meta/info.json" in call("build", tmp_path / "none", "--encoder", "shipped:pixio_vitt16").err
    with pytest.raises(SystemExit):
        cache_cli.main(["--help"])


def test_an_augmentation_is_a_function_of_its_generator_alone() -> None:
    augment = ImageAugmentation()
    frames = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    one, again, other = (augment(frames, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.dtype == torch.uint8
    described = ImageAugmentation.from_description(augment.description)
    assert torch.equal(described(frames, torch.Generator().manual_seed(1)), one)
    with pytest.raises(SettingError, match="change nothing"):
        ImageAugmentation.from_description({**augment.description, "enable": False})
