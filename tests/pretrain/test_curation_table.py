import json
from collections.abc import Callable
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from pixio_pretrain.curation.pixio_layout import read_pixio, write_pixio
from pixio_pretrain.curation.scores import ReconstructionLoss, Scores
from pixio_pretrain.curation.scoring import score_source
from pixio_pretrain.curation.table import as_table, read_table
from pixio_pretrain.data import Frames
from pixio_pretrain.objectives import create_objective
from pixio_robot import runs
from pixio_robot.errors import DataError, ImageError, SettingError

COUNT, BATCH = 22, 4
BROKEN = (0, 9, 21)
TINY: dict[str, Any] = {"width": 32, "depth": 1, "heads": 2, "patch_size": 8, "image_size": 32, "class_tokens": 2}
TINY |= {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, "mask_block": 2}


class Source(Frames):
    """Noise of growing size; some samples are broken."""

    def __init__(self, count: int = COUNT, broken: tuple[int, ...] = BROKEN) -> None:
        self.count, self.broken = count, broken
        self.looked: list[int] = []

    @property
    def episodes(self) -> NDArray[np.int64]:
        return np.arange(self.count)

    def key(self, index: int) -> str:
        return f"frame {index}"

    def image(self, index: int) -> Image.Image:
        self.looked.append(index)
        if index in self.broken:
            raise ImageError(f"number {index} is torn")
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (32 + index, 40, 3), dtype=np.uint8))

    def describe(self) -> dict[str, Any]:
        return {"kind": "noise", "frames": self.count}


class Killed(BaseException):
    """What ends a process, no matter what."""


class Loss(ReconstructionLoss):
    """A loss that counts what it measures, and may be killed at it."""

    def __init__(self, *, dies_at: int = COUNT, seed: int = 0) -> None:
        super().__init__(create_objective("pixio", seed=0, **TINY), masks=1, seed=seed)
        self.dies_at = dies_at
        self.batches: list[list[int]] = []

    def __call__(self, images: Any) -> list[float]:
        self.batches.append([image.height for image in images])
        if len(self.batches) == self.dies_at:
            raise Killed
        return super().__call__(images)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("unbroken") / "scores.parquet"
    score_source(Source(), file, loss=Loss(), batch_size=BATCH)
    return file


def test_a_row_per_sample_says_what_was_measured_or_why_not(unbroken: Path) -> None:
    rows = {row["key"]: row for row in read_table(unbroken).to_pylist()}
    assert len(rows) == COUNT
    assert {key for key, row in rows.items() if row["problem"]} == {f"frame {index}" for index in BROKEN}
    torn = {"key": "frame 9", "histogram_score": None, "height": None, "width": None, "mae_loss": None}
    assert rows["frame 9"] == torn | {"problem": "number 9 is torn"}
    whole = rows["frame 10"]
    assert (whole["height"], whole["width"], whole["problem"]) == (42, 40, None)
    assert 7 < whole["histogram_score"] < 8
    assert whole["mae_loss"] == pytest.approx(Loss()([Source().image(10)])[0], abs=1e-5)


@pytest.mark.parametrize("dies_at", [1, 2, 4, 5])
def test_a_killed_process_is_taken_up_and_ends_with_the_same_table(
    dies_at: int, unbroken: Path, tmp_path: Path
) -> None:
    file, first, second = tmp_path / "out/scores.parquet", Loss(dies_at=dies_at), Loss()
    with pytest.raises(Killed):
        score_source(Source(), file, loss=first, batch_size=BATCH, save_every=0)
    assert not file.exists()
    (tmp_path / "out/scores.parquet.parts").mkdir(parents=True, exist_ok=True)
    (tmp_path / "out/scores.parquet.parts/000009.parquet.writing").write_bytes(b"PAR1 and no more")
    source = Source()
    score_source(source, file, loss=second, batch_size=BATCH)
    heights = [32 + index for index in range(COUNT) if index not in BROKEN]
    assert first.batches[:-1] + second.batches == [list(batch) for batch in batched(heights, BATCH)]
    assert len(source.looked) == COUNT - BATCH * (dies_at - 1) - sum(index < source.looked[0] for index in BROKEN)
    assert read_table(file).equals(read_table(unbroken))
    assert sorted(path.name for path in file.parent.iterdir()) == [".scores.parquet.lock", "scores.parquet"]


def test_a_process_that_is_taken_up_counts_what_could_not_be_decoded_before(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        score_source(Source(), tmp_path / "scores.parquet", loss=Loss(dies_at=5), batch_size=BATCH, save_every=0)
    with pytest.raises(DataError, match="3 samples cannot be read"):
        score_source(Source(), tmp_path / "scores.parquet", loss=Loss(), batch_size=BATCH, max_skipped=2)


def test_an_unfinished_table_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        score_source(Source(), tmp_path / "scores.parquet", loss=Loss(dies_at=3), batch_size=BATCH, save_every=0)
    with pytest.raises(DataError, match="was stopped: give it again, and it continues"):
        read_table(tmp_path / "scores.parquet")


def test_two_processes_do_not_score_into_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "GRACE", 0.1)
    file, refused = tmp_path / "scores.parquet", "Another process scores into"

    class Nosy(Loss):
        def __call__(self, *given: Any) -> Any:
            with pytest.raises(DataError, match=refused):
                score_source(Source(), file, loss=Loss(), batch_size=BATCH)
            return super().__call__(*given)

    score_source(Source(), file, loss=Nosy(), batch_size=BATCH)
    assert len(read_table(file)) == COUNT


def test_a_truncated_table_and_another_file_are_refused(unbroken: Path, tmp_path: Path) -> None:
    for content in (unbroken.read_bytes()[:-40], b"key,loss\n"):
        (tmp_path / "scores.parquet").write_bytes(content)
        with pytest.raises(DataError, match="is not a table of scores"):
            read_table(tmp_path / "scores.parquet")
        with pytest.raises(DataError, match="choose another --table"):
            score_source(Source(), tmp_path / "scores.parquet")


def test_a_finished_table_is_left_alone(unbroken: Path) -> None:
    before, loss = unbroken.stat().st_mtime_ns, Loss()
    score_source(Source(), unbroken, loss=loss, batch_size=BATCH)
    leftovers = unbroken.with_name(unbroken.name + ".parts")  # of a kill between the table's last two moves
    leftovers.mkdir()
    score_source(Source(), unbroken, loss=loss, batch_size=BATCH)
    assert not leftovers.exists()
    assert unbroken.stat().st_mtime_ns == before
    assert not loss.batches


@pytest.mark.parametrize(
    ("source", "loss", "answer"),
    [
        (Source(count=23), Loss(), "source .*'frames': 22.*, now .*'frames': 23"),
        (Source(), None, "mae_loss .*, now None"),
        (Source(), Loss(seed=1), "'seed': 0.*, now .*'seed': 1"),
    ],
)
def test_other_scores_are_not_mixed_in(
    source: Source, loss: Loss | None, answer: str, unbroken: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=answer):
        score_source(source, unbroken, loss=loss, batch_size=BATCH)
    with pytest.raises(Killed):
        score_source(Source(), tmp_path / "new.parquet", loss=Loss(dies_at=3), batch_size=BATCH, save_every=0)
    with pytest.raises(DataError, match=answer):
        score_source(source, tmp_path / "new.parquet", loss=loss, batch_size=BATCH)


def test_too_many_broken_samples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 samples cannot be read"):
        score_source(Source(), tmp_path / "scores.parquet", max_skipped=2)
    with pytest.raises(DataError, match="Not one sample can be read"):
        score_source(Source(count=2, broken=(0, 1)), tmp_path / "scores.parquet")
    with pytest.raises(SettingError, match="batch_size must be at least 1"):
        score_source(Source(), tmp_path / "scores.parquet", batch_size=0)


def test_other_programs_can_read_how_the_scores_came_about(unbroken: Path) -> None:
    metadata = pq.read_schema(unbroken).metadata
    facts = json.loads(metadata[b"pixio_pretrain"])
    assert facts["source"] == {"kind": "noise", "frames": COUNT}
    assert "Shannon entropy in bits" in facts["histogram_score"]
    assert facts["mae_loss"]["masks"] == 1


ROWS = [
    Scores(key="shards/b.tar/2.jpeg", histogram_score=5.5, height=480, width=640, mae_loss=0.25),
    Scores(key="shards/a.tar/1.jpeg", histogram_score=4.5, height=320, width=320, mae_loss=1.5),
    Scores(key="shards/b.tar/in/1.jpeg", histogram_score=7.0, height=300, width=900, mae_loss=None),
    Scores(key="shards/b.tar/9.jpeg", problem="torn"),
]


def test_the_layout_of_pixio_is_a_file_per_shard_and_reads_back(tmp_path: Path) -> None:
    assert write_pixio(as_table(ROWS), tmp_path, shards=["/data/shards/a.tar", "/data/shards/b.tar"]) == 2
    assert json.loads((tmp_path / "shards/a.json").read_text()) == {
        "1.jpeg": {"histogram_score": 4.5, "height": 320, "width": 320, "mae_loss": 1.5}
    }
    assert json.loads((tmp_path / "shards/b.json").read_text()).keys() == {"2.jpeg", "in/1.jpeg"}
    read = read_pixio(tmp_path).sort_by("key")
    assert read.equals(as_table(ROWS[:3]).sort_by("key"))
    assert set(read_pixio(tmp_path / "shards")["key"].to_pylist()) == {
        "a.tar/1.jpeg",
        "b.tar/2.jpeg",
        "b.tar/in/1.jpeg",
    }


@pytest.mark.parametrize("root", ["/data/yfcc", "s3://bucket/yfcc"])
def test_shards_without_a_folder_in_their_keys_are_named_after_the_folder_that_they_lie_in(
    root: str, tmp_path: Path
) -> None:
    rows = [Scores(key=key, histogram_score=5.0) for key in ("a.tar/1.jpeg", "more/b.tar/1.jpeg")]
    write_pixio(as_table(rows), tmp_path, shards=[f"{root}/more/b.tar", f"{root}/a.tar"])
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.json")} == {"yfcc/a.json", "more/b.json"}


def test_files_that_are_named_after_the_whole_shard_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "a.tar.json").write_text('{"1.jpeg": {"histogram_score": 5.0, "height": 3, "width": 4, "mae_loss": 1}}')
    assert read_pixio(tmp_path)["key"].to_pylist() == ["a.tar/1.jpeg"]


def with_text(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "a.json").write_text(text) and read_pixio(folder)


@pytest.mark.parametrize(
    ("attempt", "answer"),
    [
        (read_pixio, "holds no JSON files"),
        (with_text('{"1.jpeg": {"height"'), "does not map member names to scores"),
        (with_text('{"1.jpeg": 3}'), "does not map member names to scores"),
        (with_text("[1, 2]"), "does not map member names to scores"),
        (
            lambda folder: write_pixio(
                as_table([Scores(key="x/s/a.tar/1"), Scores(key="y/s/a.tar/1")]),
                folder,
                shards=["/x/s/a.tar", "/y/s/a.tar"],
            ),
            "x/s/a.tar and y/s/a.tar would both",
        ),
    ],
)
def test_what_does_not_fit_the_layout_is_refused(
    attempt: Callable[[Path], object], answer: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=answer):
        attempt(tmp_path)
