import pickle
import re
import tarfile
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pixio_pretrain import RunConfig, train
from pixio_pretrain.checkpoint import save_checkpoint
from pixio_pretrain.config import LoadingConfig
from pixio_pretrain.curation import CurationConfig, report
from pixio_pretrain.curation.command import main
from pixio_pretrain.curation.scores import Scores
from pixio_pretrain.curation.selection import Curation
from pixio_pretrain.curation.table import as_table, read_table
from pixio_pretrain.data import Loader, open_source
from pixio_pretrain.data.folder import ImageFolder
from pixio_pretrain.distributed import World
from pixio_pretrain.objectives import create_objective
from pixio_robot.errors import DataError, SettingError

ROWS = [
    Scores(key="plain", histogram_score=4.5, height=400, width=400, mae_loss=0.9),
    Scores(key="small", histogram_score=6.0, height=319, width=900, mae_loss=0.9),
    Scores(key="narrow", histogram_score=6.0, height=900, width=319, mae_loss=0.9),
    Scores(key="edge", histogram_score=4.51, height=320, width=320, mae_loss=0.25),
    Scores(key="hard", histogram_score=7.0, height=400, width=400, mae_loss=1.7),
    Scores(key="torn", problem="cannot be decoded"),
]


def build(tmp_path: Path, rows: list[Scores] = ROWS, **settings: Any) -> Curation:
    pq.write_table(as_table(rows), tmp_path / "scores.parquet")
    curation = CurationConfig(table=str(tmp_path / "scores.parquet"), **settings).build()
    assert curation is not None
    return curation


@pytest.mark.parametrize(
    ("settings", "chances"),
    [
        ({}, [1, 1, 1, 1, 1, 0]),
        ({"histogram_above": 4.5}, [0, 1, 1, 1, 1, 0]),
        ({"resolution_from": 320}, [1, 0, 0, 1, 1, 0]),
        ({"soft_sampling": True}, [0.9, 0.9, 0.9, 0.25, 1, 0]),
        ({"histogram_above": 4.5, "resolution_from": 320, "soft_sampling": True}, [0, 0, 0, 0.25, 1, 0]),
    ],
)
def test_rules_drop_at_their_thresholds_and_losses_are_probabilities(
    settings: dict[str, Any], chances: list[float], tmp_path: Path
) -> None:
    curation = build(tmp_path, **settings)
    assert [curation.keep(row.key) for row in ROWS] == pytest.approx(chances)
    sent = pickle.loads(pickle.dumps(curation.keep))  # noqa: S301 (as to a worker process)
    assert [sent(row.key) for row in ROWS] == pytest.approx(chances)


def test_no_table_curates_nothing() -> None:
    assert CurationConfig().build() is None


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"histogram_above": 4.5, "soft_sampling": True}, "histogram_above, soft_sampling needs curation.table"),
        ({"resolution_from": 320}, "resolution_from needs curation.table"),
        ({"table": "t", "histogram_above": 9}, r"\[0, 8\) bits, not 9"),
        ({"table": "t", "resolution_from": 0}, "at least 1 pixel, not 0"),
        ({"table": "t", "unlisted": "keep"}, "refuse or drop, not 'keep'"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(SettingError, match=answer):
        CurationConfig(**settings)


def test_samples_that_the_table_does_not_list_are_counted_and_named(tmp_path: Path) -> None:
    curation = build(tmp_path)
    curation.check(row.key for row in ROWS)
    with pytest.raises(
        DataError, match=r"does not list 4 of the samples, such as a, b, c; it lists 6 others, such as pl"
    ):
        curation.check(["plain", "a", "b", "edge", "c", "d"])
    with pytest.raises(DataError, match="does not list 1 of the samples, such as nowhere"):
        curation.keep("nowhere")


def test_a_run_counts_unlisted_samples_before_it_begins(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    keys = [key for key, _ in open_source(make_config().data).visit()]
    build(tmp_path, [Scores(key=key, histogram_score=6.0, height=40, width=40) for key in keys[:10]])
    config = make_config(curation=CurationConfig(table=str(tmp_path / "scores.parquet")))
    with pytest.raises(DataError, match=r"does not list \d\d of the samples"):
        train(config)
    assert not Path(config.folder, "log.jsonl").exists()


def test_unlisted_samples_are_dropped_where_that_is_asked_for(tmp_path: Path) -> None:
    curation = build(tmp_path, unlisted="drop")
    curation.check(["nowhere"])
    assert curation.keep("nowhere") == 0
    assert curation.keep("edge") == 1


def test_tables_that_cannot_curate_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no table of scores at"):
        CurationConfig(table=str(tmp_path / "scores.parquet")).build()
    with pytest.raises(DataError, match="several rows for 1 of its samples, such as edge"):
        build(tmp_path, [*ROWS, ROWS[3]])
    with pytest.raises(DataError, match=r"\(histogram_above\) keep none of 6 samples"):
        build(tmp_path, histogram_above=7.5)
    with pytest.raises(DataError, match="soft_sampling needs mae_loss, which 1 of 2 rows lack"):
        build(tmp_path, [ROWS[0], Scores(key="new", histogram_score=5.0, height=9, width=9)], soft_sampling=True)


def test_a_folder_of_pixios_files_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"1.jpeg": {"histogram_score": 5, "height": 320, "width": 320, "mae_loss": 0.5}}')
    curation = CurationConfig(table=str(tmp_path), histogram_above=4.5, resolution_from=320, soft_sampling=True).build()
    assert curation is not None
    assert curation.keep("a.tar/1.jpeg") == 0.5


def test_a_selection_is_described_by_its_content(tmp_path: Path) -> None:
    described = build(tmp_path, soft_sampling=True).describe()
    (tmp_path / "elsewhere").mkdir()
    assert build(tmp_path / "elsewhere", ROWS[::-1], soft_sampling=True).describe() == described
    assert build(tmp_path).describe() != described


SIDES = {"flat": 40, "noise": 40, "small": 20}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of each kind, and one that is broken."""
    random = np.random.default_rng(0)
    for kind, side in SIDES.items():
        (tmp_path / "images" / kind).mkdir(parents=True)
        for number in range(6):
            pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
            pixels = np.full_like(pixels, 10 * number) if kind == "flat" else pixels
            Image.fromarray(pixels).save(tmp_path / "images" / kind / f"{number}.png")
    (tmp_path / "images/noise/torn.png").write_bytes(b"\x89PNG and no more")
    return tmp_path / "images"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run that was stopped after no step at all."""
    tiny: dict[str, Any] = {"width": 32, "depth": 1, "heads": 2, "patch_size": 8, "image_size": 32, "class_tokens": 2}
    tiny |= {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, "mask_block": 2}
    model = create_objective("pixio", seed=0, **tiny)
    facts = {"identity": {f"objective.{key}": value for key, value in (tiny | {"name": "pixio"}).items()}}
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    world = World(device=torch.device("cpu"))
    save_checkpoint(tmp_path / "run/checkpoints", model, optimizer, step=0, facts=facts, own={}, world=world)
    return tmp_path / "run"


RULES = ["--histogram-above", "4.5", "--resolution-from", "32"]


def test_the_command_scores_and_training_takes_what_the_rules_keep(
    folder: Path, run_folder: Path, tmp_path: Path
) -> None:
    table, page = tmp_path / "scores.parquet", tmp_path / "report/page.html"
    words = [str(folder), "--table", str(table), "--checkpoint", str(run_folder), "--masks", "2"]
    main([*words, "--report", str(page), *RULES, "--soft-sampling"])
    assert len(read_table(table)) == 19
    html = page.read_text()
    said = unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)))
    assert "histogram score ≤ 4.5 6 31.6 % 6" in said
    assert "height or width < 32 6 31.6 % 6" in said
    assert "noise/torn.png cannot identify image file" in said
    assert html.count("data:image/jpeg;base64,") > 30
    assert not re.search(r"<script|<link|src=\"(?!data:)", html)  # all in one file

    config = CurationConfig(table=str(table), histogram_above=4.5, resolution_from=32)
    curation = config.build()
    assert curation is not None
    loader = Loader(
        open_source(folder), lambda image, _: {"images": np.asarray(image)}, batch_size=6, seed=0, keep=curation.keep
    )
    seen = {key for _, loaded in zip(range(4), loader, strict=False) for key in loaded.keys}
    assert seen == {f"noise/{number}.png" for number in range(6)}
    assert not loader.skipped


def test_measurements_and_baselines_ask_for_what_training_asks_for(
    make_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, rows = np.random.default_rng(0), []
    (tmp_path / "images").mkdir()
    for number in range(16):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"images/{number}.png")
        rows.append(Scores(key=f"{number}.png", histogram_score=number % 2, height=40, width=40))
    build(tmp_path, rows)
    told, asked = [], set()
    plain, image = Loader.__init__, ImageFolder.image

    def spy(loader: Loader, *words: Any, **settings: Any) -> None:
        plain(loader, *words, **settings)
        told.append((loader.keep is not None, loader.buffer, loader.skipped.limit))

    monkeypatch.setattr(Loader, "__init__", spy)
    monkeypatch.setattr(
        ImageFolder, "image", lambda frames, index: asked.add(frames.key(index)) or image(frames, index)
    )
    curation = CurationConfig(table=str(tmp_path / "scores.parquet"), histogram_above=0.5)
    loading = LoadingConfig(shuffle_buffer=5, max_skipped=7)
    train(make_config(data=str(tmp_path / "images"), steps=3, curation=curation, loading=loading))
    assert told == [(True, 5, 7)] * 3  # held out, trained on, and the baselines'
    assert asked == {f"{number}.png" for number in range(1, 16, 2)}


def test_tar_shards_are_scored_exported_and_curated_by_their_members(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "web/squares").mkdir(parents=True)
    for kind in SIDES:
        with tarfile.open(tmp_path / f"web/squares/{kind}.tar", "w") as tar:
            for file in sorted((folder / kind).iterdir()):
                tar.add(file, file.name)
    torn = tmp_path / "web/squares/small.tar"
    torn.write_bytes(torn.read_bytes()[:3000])
    words = ["--table", str(tmp_path / "t.parquet"), "--export-pixio", str(tmp_path / "json")]
    main([str(tmp_path / "web"), *words])
    assert {str(path.relative_to(tmp_path / "json")) for path in (tmp_path / "json").rglob("*.json")} == {
        f"squares/{kind}.json" for kind in SIDES
    }
    for table in (tmp_path / "t.parquet", tmp_path / "json/squares"):
        curation = CurationConfig(table=str(table), histogram_above=4.5, unlisted="drop").build()
        assert curation is not None
        loader = Loader(
            open_source(tmp_path / "web"),
            lambda image, _: {"images": np.asarray(image.resize((8, 8)))},
            batch_size=6,
            seed=0,
            keep=curation.keep,
        )
        seen = {key.split("/")[0] for _, loaded in zip(range(6), loader, strict=False) for key in loaded.keys}
        assert seen == {"noise.tar", "small.tar"}


def test_a_report_decodes_what_it_shows_and_names_what_it_cannot(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(folder), "--table", str(tmp_path / "t.parquet")]
    main(words)
    monkeypatch.setattr(report, "TILES", 2)
    decoded: list[int] = []
    image = ImageFolder.image
    monkeypatch.setattr(ImageFolder, "image", lambda self, index: decoded.append(index) or image(self, index))
    main([*words, "--report", str(tmp_path / "page.html")])
    assert 0 < len(decoded) < sum(1 for _ in open_source(folder).each()) / 2
    for file in (folder / "noise").iterdir():
        file.write_bytes(b"torn")
    with pytest.raises(SystemExit, match="could be decoded when it was scored, and now it cannot"):
        main([*words, "--report", str(tmp_path / "page.html")])


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (RULES, "histogram_above, resolution_from only shapes the report: add --report"),
        (["--report", "page.html", "--soft-sampling"], "add --checkpoint RUN_FOLDER"),
        (["--checkpoint", "nowhere"], "There is no checkpoint in"),
        (["--export-pixio", "json"], "one JSON file per tar shard"),
        (["--max-skipped", "0"], "1 samples cannot be read"),
    ],
)
def test_a_wrong_word_is_answered_without_a_traceback(
    words: list[str], answer: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="pixio-pretrain score: ") as exit_:
        main([str(folder), *words])
    assert answer in str(exit_.value)


def test_a_device_that_is_not_there_is_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="device=warp cannot be used here, where there are cpu"):
        main(
            [
                str(tmp_path / "nowhere"),
                "--table",
                str(tmp_path / "t"),
                "--checkpoint",
                str(run_folder),
                "--device",
                "warp",
            ]
        )
