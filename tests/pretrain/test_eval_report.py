import json
from pathlib import Path

import numpy as np
import pytest

from pixio_pretrain.evaluation.report import write_report
from pixio_pretrain.evaluation.segmentation import mean_iou
from pixio_pretrain.probe.resampling import interval, resampled
from pixio_robot.errors import DataError


def write(
    folder: Path,
    name: str,
    right: np.ndarray,
    *,
    place: str | None = None,
    weights: str | None = None,
    seed: int = 0,
    **settings: object,
) -> None:
    home = folder / "knn-imagenet" / (place or name)
    home.mkdir(parents=True)
    np.savez(home / "images.npz", top1=right)
    record = {
        "task": "knn-imagenet",
        "encoder": {"name": name, "fingerprint": weights or name * 16},
        "seed": seed,
        "date": "2026-01-01",
        "machine": "here",
        "versions": {"torch": "2"},
        "metrics": {"top1": float(right.mean()), "other": 0.5},
        "data": {"val": {"set": "ImageNet-1K", "images": len(right)}},
        "settings": {"encoder": name, "task.k": 5, "official_counts": True, **settings},
        "facts": {},
    }
    (home / "record.json").write_text(json.dumps(record))


def test_an_interval_is_as_wide_as_theory_says() -> None:
    values = (np.arange(900) % 3 == 0).astype(float)
    value, low, high = interval(resampled(values, "a"))
    assert value == pytest.approx(1 / 3)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(values.var() / 900), rel=0.1)


def test_images_that_do_not_count_are_left_out_of_every_draw() -> None:
    draws = resampled(np.array([1.0, np.nan, 1.0, np.nan, 1.0]), "a")
    assert set(draws[1:].round(9)) <= {0.0, 1.0}  # 0 where a draw has no image that counts
    assert draws[0] == 1


def test_the_interval_of_a_mean_iou_is_about_that_mean_iou() -> None:
    random = np.random.default_rng(0)
    union = random.integers(1, 50, size=(40, 6))
    counts = np.stack([random.binomial(union, 0.6), union], axis=2).astype(float)
    value, low, high = interval(resampled(counts, "a"))
    assert value == pytest.approx(mean_iou(counts))
    assert low < value < high


def test_a_report_compares_by_image_and_only_what_is_comparable(tmp_path: Path) -> None:
    right = (np.random.default_rng(0).random(400) < 0.6).astype(float)
    better = right.copy()
    better[np.flatnonzero(right == 0)[:20]] = 1
    write(tmp_path, "a", right)
    write(tmp_path, "b", better)
    write(tmp_path, "c", right, official_counts=False)
    page = write_report(tmp_path).read_text()
    assert page.count("<h2>knn-imagenet</h2>") == 2
    difference = interval(resampled(better, "x") - resampled(right, "x"))
    assert difference[1] > 0  # paired: each interval by itself is far wider than the difference
    assert "+5.0 % [+" in page
    assert page.count("Not checked against") == 1
    tables = (tmp_path / "results.md").read_text().split("## ")
    row, difference = (line for table in tables for line in table.splitlines() if line.startswith("| b |"))
    assert f"| {100 * better.mean():.1f} % [" in row
    assert "| +5.0 % [+" in difference


def test_a_line_is_of_one_encoder(tmp_path: Path) -> None:
    right, wrong = np.ones(8), np.zeros(8)
    write(tmp_path, "run", right, place="1", weights="a" * 32)
    write(tmp_path, "run", wrong, place="2", weights="b" * 32)
    write(tmp_path, "random:vit", right, place="3", weights="c" * 32)
    write(tmp_path, "random:vit", wrong, place="4", weights="d" * 32, seed=1)
    write_report(tmp_path)
    rows = [line.split("|")[1:3] for line in (tmp_path / "results.md").read_text().splitlines() if " % [" in line]
    cells = {name.strip(): value.split("[")[0].strip() for name, value in rows[:3]}
    assert cells == {"run (aaaaaaaa)": "100.0 %", "run (bbbbbbbb)": "0.0 %", "random:vit": "50.0 %"}
    write(tmp_path, "run", right, place="5", weights="a" * 32)
    with pytest.raises(DataError, match="are both seed 0 of run"):
        write_report(tmp_path)


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no records"):
        write_report(tmp_path)
