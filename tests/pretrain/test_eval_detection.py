import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torchmetrics.detection import MeanAveragePrecision

from pixio_pretrain.evaluation import TASKS, EvalConfig, Recipe, evaluate, read_record
from pixio_pretrain.evaluation.average_precision import THRESHOLDS, Detections, average_precision
from pixio_pretrain.evaluation.detection import Boxer
from pixio_pretrain.evaluation.detector import FPN_WIDTH, build_detector
from pixio_pretrain.evaluation.job import Job
from pixio_pretrain.evaluation.sets.boxes import BOX_SETS, Objects, make_objects
from pixio_pretrain.objectives.backbones import build_fpn
from pixio_robot import Encoder, create_encoder, load_encoder
from pixio_robot.errors import CheckpointError, DataError, SettingError
from pixio_robot.foreign import wrap_model

COLOURS = {"cat": (220, 40, 40), "dog": (40, 40, 220)}


def scene(random: np.random.Generator) -> tuple[np.ndarray, list[tuple[str, list[int]]]]:
    """Grey noise with a red square (a cat) and a blue one (a dog), apart from each other."""
    image = random.normal(110, 10, size=(64, 96, 3))
    objects = []
    for half, (name, colour) in enumerate(COLOURS.items()):
        side = int(random.integers(18, 30))
        left, top = int(random.integers(48 * half, 48 * half + 48 - side)), int(random.integers(0, 64 - side))
        image[top : top + side, left : left + side] = colour
        objects.append((name, [left, top, left + side, top + side]))
    return image.clip(0, 255).astype(np.uint8), objects


def make_voc(root: Path) -> None:
    random = np.random.default_rng(0)
    for year, split, count in (("VOC2007", "trainval", 60), ("VOC2012", "trainval", 60), ("VOC2007", "test", 4)):
        names = [f"{year}_{split}_{number}" for number in range(count)]
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / year / folder).mkdir(parents=True, exist_ok=True)
        (root / year / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            image, objects = scene(random)
            Image.fromarray(image).save(root / year / f"JPEGImages/{name}.jpg", quality=95)
            entries = "".join(
                f"<object><name>{kind}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
                f"<xmax>{r}</xmax><ymax>{b}</ymax></bndbox></object>"
                for kind, (x, y, r, b) in objects
            )
            (root / year / f"Annotations/{name}.xml").write_text(f"<annotation>{entries}</annotation>")


def make_coco(root: Path) -> None:
    random = np.random.default_rng(1)
    (root / "annotations").mkdir()
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    for part, count in (("train2017", 120), ("val2017", 4)):
        (root / part).mkdir()
        images, annotations = [], []
        for number in range(count + 1):  # the last one has no objects
            image, objects = scene(random)
            file = f"{number:012d}.jpg"
            Image.fromarray(image).save(root / part / file, quality=95)
            images.append({"id": number, "file_name": file, "height": 64, "width": 96})
            for name, (x, y, r, b) in objects if number < count else ():
                kind = 17 if name == "cat" else 18
                annotations.append({"id": len(annotations), "image_id": number, "category_id": kind, "iscrowd": 0})
                annotations[-1]["bbox"] = [x, y, r - x, b - y]
        facts = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(facts))


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            {"voc": make_voc, "coco": make_coco}[name](made[name])
        return made[name]

    return get


def resnet() -> Encoder:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], embedding_size=16, layer_type="basic"
    )
    return wrap_model(transformers.ResNetModel(config), provenance={"name": "tiny"})


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet with a pyramid on its three coarsest maps, as pre-training writes them."""
    folder = tmp_path_factory.mktemp("encoder")
    resnet().save_pretrained(folder)
    torch.manual_seed(1)
    save_file(build_fpn((16, 32, 32), FPN_WIDTH).state_dict(), folder / "fpn.safetensors")
    return folder


@pytest.mark.slow
def test_detection_is_learnt(root: Callable[[str], Path], encoder: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=5, batch_size=4, lr=0.02, warmup=0.05, decay="steps")
    task = TASKS["detection"](set="coco", layout="c4", sizes=[64], longest=96, recipe=recipe)
    common: dict[str, Any] = {"precision": "fp32", "official_counts": False, "folder": str(tmp_path)}
    file = evaluate(EvalConfig(encoder=str(encoder), data=str(root("coco")), task=task, **common))
    assert read_record(file)["metrics"]["ap50"] > 0.3
    assert list((file.parent / "pictures").iterdir())


@pytest.mark.slow
def test_a_killed_evaluation_ends_as_an_unbroken_one(
    root: Callable[[str], Path], encoder: Path, tmp_path: Path, assert_resumes: Callable[[EvalConfig, int], None]
) -> None:
    recipe = Recipe(epochs=2, batch_size=40, lr=0.01, decay="steps")
    task = TASKS["detection"](set="coco", layout="c4", sizes=[64], longest=96, recipe=recipe)
    common: dict[str, Any] = {"precision": "fp32", "official_counts": False, "folder": str(tmp_path / "out")}
    assert_resumes(EvalConfig(encoder=str(encoder), data=str(root("coco")), task=task, **common), 4)  # of 3 an epoch


@pytest.mark.slow
def test_a_detector_with_a_pyramid_learns(root: Callable[[str], Path], encoder: Path, tmp_path: Path) -> None:
    task = TASKS["detection"](set="voc", layout="fpn", sizes=[64], longest=96)
    config = EvalConfig(encoder=str(encoder), data=str(root("voc")), task=task, precision="fp32")
    train = BOX_SETS["voc"](root("voc"), "train", official=False)
    boxer = Boxer(task, Job(config=config, encoder=load_encoder(encoder), folder=tmp_path), train)
    assert boxer.levels == 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch, optimizer, losses = [boxer.sample(0), boxer.sample(1)], boxer.optimizer(), []
        optimizer.param_groups[0]["lr"] = 0.002
        for _ in range(8):
            losses.append(boxer.loss(batch))
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]
    assert len(boxer.find(batch[0][0]).scores) <= 100


def guesses(random: np.random.Generator, images: int, classes: int) -> tuple[list[Detections], list[Objects]]:
    found, truth = [], []
    for _ in range(images):
        count = int(random.integers(0, 7))
        corner, size = random.uniform(0, 80, (count, 2)), random.uniform(5, 40, (count, 2))
        boxes = np.hstack([corner, corner + size]).astype(np.float32)
        labels = random.integers(classes, size=count)
        truth.append(Objects(boxes=boxes, labels=labels, ignored=np.zeros(count, np.bool_)))
        shaken = np.repeat(boxes, 2, axis=0) + random.normal(0, 3, (2 * count, 4)).astype(np.float32)
        shaken[:, 2:] = np.maximum(shaken[:, 2:], shaken[:, :2] + 1)  # inside out, overlap is a matter of taste
        wrong = np.where(random.random(2 * count) < 0.2, random.integers(classes, size=2 * count), np.repeat(labels, 2))
        found.append(Detections(boxes=shaken, labels=wrong, scores=random.random(2 * count).astype(np.float32)))
    return found, truth


def test_average_precision_is_that_of_torchmetrics() -> None:
    found, truth = guesses(np.random.default_rng(0), images=25, classes=3)
    oracle = MeanAveragePrecision(iou_thresholds=list(THRESHOLDS), rec_thresholds=np.linspace(0, 1, 101).tolist())
    as_tensors = lambda entry, keys: {key: torch.from_numpy(getattr(entry, key)) for key in keys}  # noqa: E731
    oracle.update(
        [as_tensors(entry, ("boxes", "labels", "scores")) for entry in found],
        [as_tensors(entry, ("boxes", "labels")) for entry in truth],
    )
    theirs, ours = oracle.compute(), average_precision(found, truth, classes=3)
    assert 0.05 < ours["ap"] < ours["ap50"] < 1
    for name, key in (("ap", "map"), ("ap50", "map_50"), ("ap75", "map_75")):
        assert ours[name] == pytest.approx(theirs[key].item(), abs=1e-5)


def detect(*rows: tuple[list[float], float]) -> Detections:
    return Detections(
        boxes=np.array([box for box, _ in rows], np.float32).reshape(-1, 4),
        labels=np.zeros(len(rows), np.int64),
        scores=np.array([score for _, score in rows], np.float32),
    )


def test_average_precision_by_hand() -> None:
    box, elsewhere = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]
    two = make_objects([(box, 0, False), (elsewhere, 0, False)])
    # The surest is wrong, the next right: precision 1/2 at recall 1/2, nothing beyond. 51 of 101 recalls are reached.
    found = detect(([100.0, 0.0, 110.0, 10.0], 0.9), (box, 0.8))
    assert average_precision([found], [two], classes=1)["ap50"] == pytest.approx(0.5 * 51 / 101)
    assert average_precision([found], [two], classes=1, points=11)["ap50"] == pytest.approx(0.5 * 6 / 11)
    # A second detection of the same object is wrong.
    one = make_objects([(box, 0, False)])
    assert average_precision([detect((box, 0.9), (box, 0.8))], [one], classes=1)["ap"] == pytest.approx(1)
    assert average_precision([detect((elsewhere, 0.9), (box, 0.8))], [one], classes=1)["ap"] == pytest.approx(0.5)


def test_what_is_to_be_ignored_is_neither_found_nor_missed() -> None:
    box, crowd = [0.0, 0.0, 10.0, 10.0], [40.0, 40.0, 80.0, 80.0]
    truth = make_objects([(box, 0, False), (crowd, 0, True)])
    inside = detect(([45.0, 45.0, 55.0, 55.0], 0.9), (box, 0.8))
    assert average_precision([inside], [truth], classes=1, crowds=True)["ap"] == pytest.approx(1)
    assert average_precision([inside], [truth], classes=1, crowds=False)["ap"] == pytest.approx(0.5)
    assert average_precision([detect((box, 0.8))], [truth], classes=1)["ap"] == pytest.approx(1)
    with pytest.raises(SettingError, match="no object in any image"):
        average_precision([inside], [make_objects([(crowd, 0, True)])], classes=1)


def test_boxes_are_read_from_corner_to_corner(root: Callable[[str], Path]) -> None:
    for name, labels in (("voc", [7, 11]), ("coco", [0, 1])):
        images = BOX_SETS[name](root(name), "val", official=False)
        pixels, objects = np.asarray(images.image(0)).astype(int), images.objects[0]
        assert objects.labels.tolist() == labels
        left, top, right, bottom = objects.boxes[0].astype(int)
        red = pixels[..., 0] - pixels[..., 2] > 90
        rows, columns = np.nonzero(red)
        assert np.abs([columns.min() - left, rows.min() - top, columns.max() + 1 - right]).max() <= 1
        assert abs(rows.max() + 1 - bottom) <= 1


def test_coco_is_trained_without_images_without_objects(root: Callable[[str], Path]) -> None:
    sizes = [len(BOX_SETS["coco"](root("coco"), part, official=False)) for part in ("train", "val")]
    assert sizes == [120, 5]


def test_a_detector_starts_from_the_encoder_and_its_pyramid(encoder: Path) -> None:
    loaded = load_encoder(encoder)
    options: dict[str, Any] = {"layout": "fpn", "classes": 2, "sizes": (64,), "longest": 96}
    detector, levels = build_detector(loaded, encoder / "fpn.safetensors", **options, trained_norms=False)
    assert levels == 3
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = detector.backbone.stages((images - 0.5) / 0.25)
    wanted = loaded.backbone.model((images - 0.5) / 0.25, output_hidden_states=True).hidden_states[1:]
    for found, map_ in zip(maps.values(), wanted, strict=True):
        torch.testing.assert_close(found, map_)
    state = load_file(encoder / "fpn.safetensors")
    assert torch.equal(detector.backbone.fpn.inner_blocks[3][0].weight, state["inner_blocks.2.0.weight"])
    statistics = detector.backbone.stages.embedder.embedder.normalization.running_mean.clone()
    detector.train()([images[0]], [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}])
    assert torch.equal(detector.backbone.stages.embedder.embedder.normalization.running_mean, statistics)


def test_a_pyramid_is_found_in_a_run_and_is_part_of_what_decides_the_result(encoder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(encoder, run / "encoder")
    told = {}
    for layout, place in (("fpn", run), ("fpn", run / "encoder"), ("c4", run)):
        task = TASKS["detection"](layout=layout)
        config = EvalConfig(encoder=str(place), data=str(tmp_path), task=task, precision="fp32")
        job = Job(config=config, encoder=load_encoder(place), folder=tmp_path)
        assert job.pyramid == (run / "encoder" / "fpn.safetensors" if layout == "fpn" else None)
        told[layout, place] = job.identity({}).get("pyramid")
    assert told["fpn", run] == told["fpn", run / "encoder"] is not None
    assert told["c4", run] is None
    save_file(build_fpn((16, 32, 32), FPN_WIDTH).state_dict(), run / "encoder" / "fpn.safetensors")
    config = EvalConfig(encoder=str(run), data=str(tmp_path), task=TASKS["detection"](layout="fpn"), precision="fp32")
    other = Job(config=config, encoder=load_encoder(run), folder=tmp_path).identity({})
    assert other["pyramid"] != told["fpn", run]


def test_what_is_no_detector_is_refused(encoder: Path, tmp_path: Path, root: Callable[[str], Path]) -> None:
    options: dict[str, Any] = {"layout": "fpn", "classes": 2, "sizes": (64,), "longest": 96, "trained_norms": True}
    with pytest.raises(SettingError, match="family 'pixio'"):
        build_detector(create_encoder("pixio_vitt16", seed=0), None, **options)
    save_file(build_fpn((8, 8), FPN_WIDTH).state_dict(), tmp_path / "fpn.safetensors")
    with pytest.raises(CheckpointError, match=r"fits no pyramid of width 256.*inner_blocks\.2"):
        build_detector(load_encoder(encoder), tmp_path / "fpn.safetensors", **options)
    with pytest.raises(DataError, match=r"(?s)VOC2007/ImageSets/Main/trainval\.txt.*Expected"):
        BOX_SETS["voc"](tmp_path, "train", official=False)
    make_voc(tmp_path / "voc")
    file = next((tmp_path / "voc/VOC2012/Annotations").iterdir())
    file.write_text(file.read_text().replace("<name>cat<", "<name>unicorn<"))
    with pytest.raises(DataError, match="class 'unicorn'"):
        BOX_SETS["voc"](tmp_path / "voc", "train", official=False)
