from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassJaccardIndex

from pixio_pretrain.evaluation import TASKS, EvalConfig, Recipe, evaluate, read_record
from pixio_pretrain.evaluation.dense import DenseReader
from pixio_pretrain.evaluation.job import Job
from pixio_pretrain.evaluation.segmentation import class_ious, count_overlaps, mean_iou
from pixio_pretrain.evaluation.sets.depths import DEPTH_SETS, KITTI
from pixio_pretrain.evaluation.sets.masks import IGNORED, MASK_SETS
from pixio_pretrain.evaluation.stages import stages_of
from pixio_robot import ENCODERS, Tokens, create_encoder, load_encoder
from pixio_robot.errors import DataError, PixioRobotError, SettingError
from pixio_robot.foreign import wrap_model
from pixio_robot.geometry.heads import DPTHead, LinearHead
from pixio_robot.geometry.taps import taps_of

SIDE = 32
SIZES: dict[str, Any] = {"width": 32, "depth": 4, "heads": 2, "patch_size": 8, "image_size": 32, "class_tokens": 2}


def halves(h: int, w: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image whose red part is one thing (1) and whose blue part is another (2)."""
    line = int(random.integers(w // 4, 3 * w // 4))
    labels = np.ones((h, w), np.uint8)
    labels[:, line:] = 2
    colours = np.array([[0, 0, 0], [220, 60, 60], [60, 60, 220]])[labels]
    return (colours + random.normal(0, 20, colours.shape)).clip(0, 255).astype(np.uint8), labels


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def make_nyuv2(root: Path) -> None:
    random, lines = np.random.default_rng(0), []
    for number in range(8):
        image, labels = halves(480, 640, random)
        depth = np.array([0, 1500, 4000], np.uint16)[labels]
        home = root / ("sync/bathroom_0001" if number < 6 else "official_splits/test/bathroom")
        save(home / f"rgb_{number:05d}.jpg", image)
        save(home / f"sync_depth_{number:05d}.png", depth)
        if number < 6:
            names = [f"bathroom_0001/{kind}_{number:05d}" for kind in ("rgb", "sync_depth")]
            lines.append(f"/{names[0]}.jpg /{names[1]}.png 518.8579")
    (root / "nyudepthv2_train_files_with_gt.txt").write_text("\n".join(lines) + "\n")


def make_kitti(root: Path) -> None:
    random = np.random.default_rng(0)
    for name, part, count in (("train", "train", 8), ("test", "val", 3)):
        lines = []
        for number in range(count):
            image, labels = halves(80, 128, random)
            depth = (np.array([0, 10, 30])[labels] * 256).astype(np.uint16)
            depth[random.random(depth.shape) < 0.5] = 0  # a laser does not reach every pixel
            drive, file = f"2011_09_26_drive_000{part == 'val':d}_sync", f"{number:010d}.png"
            save(root / "raw/2011_09_26" / drive / "image_02/data" / file, image)
            save(root / "depth" / part / drive / "proj_depth/groundtruth/image_02" / file, depth)
            truth = f"{drive}/proj_depth/groundtruth/image_02/{file}"
            lines.append(f"2011_09_26/{drive}/image_02/data/{file} {truth} 721.5377")
        lines.append("2011_09_26/2011_09_26_drive_0009_sync/image_02/data/0000000000.png None 721.5377")
        (root / f"kitti_eigen_{name}_files_with_gt.txt").write_text("\n".join(lines) + "\n")


def make_ade20k(root: Path) -> None:
    random = np.random.default_rng(0)
    for part, short, count in (("training", "train", 12), ("validation", "val", 4)):
        for number in range(count):
            image, labels = halves(60, 90, random)
            labels[:4] = 0
            save(root / "images" / part / f"ADE_{short}_{number:08d}.jpg", image)
            save(root / "annotations" / part / f"ADE_{short}_{number:08d}.png", labels)


def make_voc_aug(root: Path) -> None:
    random = np.random.default_rng(0)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, count in (("trainaug", 12), ("val", 4)):
        stems = [f"2007_{name}_{number}" for number in range(count)]
        for stem in stems:
            image, labels = halves(60, 90, random)
            labels[:, :2] = IGNORED
            save(root / f"JPEGImages/{stem}.jpg", image)
            palette = Image.fromarray(labels).convert("P")
            palette.putdata(labels.flatten().tolist())
            (root / "SegmentationClassAug").mkdir(exist_ok=True)
            palette.save(root / f"SegmentationClassAug/{stem}.png")
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(stems) + "\n")


def make_loveda(root: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in (("Train", 6), ("Val", 2)):
        for scene in ("Rural", "Urban"):
            for number in range(count):
                image, labels = halves(64, 64, random)
                labels[-3:] = 0
                save(root / part / scene / "images_png" / f"{number}.png", image)
                save(root / part / scene / "masks_png" / f"{number}.png", labels)


MAKERS = {
    "nyuv2": make_nyuv2,
    "kitti": make_kitti,
    "ade20k": make_ade20k,
    "voc_aug": make_voc_aug,
    "loveda": make_loveda,
}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Miniatures of the data sets, by name, in their published layouts; each is made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            MAKERS[name](made[name])
        return made[name]

    return get


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    create_encoder("pixio_vitt16", seed=0, **SIZES).save_pretrained(folder)
    return folder


@pytest.fixture
def make(root: Callable[[str], Path], encoder: Path, tmp_path: Path) -> Callable[..., EvalConfig]:
    def config(task: str, name: str, *, data: Path | None = None, epochs: int = 20, **settings: Any) -> EvalConfig:
        recipe = Recipe(epochs=epochs, batch_size=4, lr=0.1 if task == "depth" else 0.01)
        node = TASKS[task](**({"set": name, "head": "linear", "side": SIDE, "recipe": recipe} | settings))
        common: dict[str, Any] = {"precision": "fp32", "official_counts": False}
        return EvalConfig(encoder=str(encoder), data=str(data or root(name)), folder=str(tmp_path), task=node, **common)

    return config


@pytest.mark.parametrize(("name", "settings"), [("kitti", {}), ("kitti", {"mask": "garg"}), ("nyuv2", {"side": 96})])
def test_depth_is_learnt_far_better_than_a_constant(
    make: Callable[..., EvalConfig], name: str, settings: dict[str, Any]
) -> None:
    file = evaluate(make("depth", name, epochs=40, **settings))
    record = read_record(file)
    # Half of the pixels are nearly three times as far as the others: no constant has more than about half right.
    assert record["metrics"]["delta1"] > 0.8
    assert len(list((file.parent / "pictures").iterdir())) == record["data"]["val"]["images"]
    values = np.load(file.parent / "images.npz")["delta1"]
    assert values.mean() == pytest.approx(record["metrics"]["delta1"])


@pytest.mark.parametrize("name", MASK_SETS)
def test_segmentation_is_learnt(make: Callable[..., EvalConfig], name: str) -> None:
    record = read_record(evaluate(make("segmentation", name)))
    first = {"ade20k": 0, "voc_aug": 1, "loveda": 0}[name]
    ious = record["facts"]["iou"]
    assert min(ious[first : first + 2]) > 0.6
    assert record["metrics"]["miou"] == pytest.approx(np.mean(ious))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "name"), [("depth", "kitti"), ("segmentation", "ade20k")])
def test_dpt_trains(make: Callable[..., EvalConfig], task: str, name: str) -> None:
    config = make(task, name, epochs=10, head="dpt", preset="tiny")
    config.task.recipe.lr = 1e-3
    metrics = read_record(evaluate(config))["metrics"]
    assert metrics.get("delta1", 1) > 0.7
    assert metrics.get("miou", 1) > 1 / 150


@pytest.mark.slow
@pytest.mark.parametrize(("task", "name"), [("depth", "kitti"), ("segmentation", "ade20k")])
def test_a_killed_evaluation_ends_as_an_unbroken_one(
    make: Callable[..., EvalConfig], assert_resumes: Callable[[EvalConfig, int], None], task: str, name: str
) -> None:
    assert_resumes(make(task, name, epochs=3, head="dpt", preset="tiny"), 5)  # of 2 or 3 steps an epoch


def test_the_defaults_are_the_published_ones() -> None:
    depth, linear = TASKS["depth"](), TASKS["depth"](head="linear")
    assert (depth.recipe.lr, linear.recipe.lr, depth.recipe.batch_size, depth.recipe.epochs) == (1e-4, 2e-4, 32, 60)
    loveda = TASKS["segmentation"](set="loveda", head="linear")
    assert (loveda.recipe.lr, loveda.recipe.batch_size, loveda.recipe.warmup) == (4e-4, 8, 0)


def test_mean_iou_is_that_of_torchmetrics() -> None:
    random = torch.Generator().manual_seed(0)
    oracle, counts = MulticlassJaccardIndex(5, ignore_index=IGNORED, average=None), []
    for _ in range(4):
        predicted, labels = (torch.randint(5, (20, 30), generator=random) for _ in range(2))
        labels[torch.rand(20, 30, generator=random) < 0.2] = IGNORED
        oracle.update(predicted, labels)
        counts.append(count_overlaps(predicted, labels, 5))
    ious = oracle.compute().numpy()
    np.testing.assert_allclose(class_ious(np.stack(counts)), ious, atol=1e-6)
    assert mean_iou(np.stack(counts)) == pytest.approx(ious.mean(), abs=1e-6)


def test_a_window_that_fits_is_the_whole_answer_and_others_are_averaged(tmp_path: Path) -> None:
    encoder = create_encoder("pixio_vitt16", seed=0, **SIZES)
    config = EvalConfig(encoder="-", data="-", precision="fp32", batch_size=3)
    reader = DenseReader(
        Job(config=config, encoder=encoder, folder=tmp_path), head="linear", preset="tiny", channels=2, side=SIDE
    ).eval()
    image = torch.randint(256, (3, 50, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answer = reader.slide(image, lambda said: said)
    assert answer.shape == (2, 50, 20)
    mean = torch.tensor(encoder.backbone.statistics.mean)[:, None, None]
    canvas = mean.repeat(1, 100, 100)
    canvas[:, :50, :20] = image / 255
    with torch.no_grad():
        upper, lower, last = (reader(canvas[None, :, top : top + SIDE, :SIDE])[0] for top in (0, 21, 42))
    torch.testing.assert_close(answer[:, :21], upper[:, :21, :20])  # columns start at 0 only: 21 is outside
    torch.testing.assert_close(answer[:, 21:32], ((upper[:, 21:] + lower[:, :11]) / 2)[:, :, :20])
    torch.testing.assert_close(answer[:, 42:], ((lower[:, 21:29] + last[:, :8]) / 2)[:, :, :20])


def test_the_boxes_of_gargs_crop(root: Callable[[str], Path]) -> None:
    box = KITTI(root("kitti"), "val", official=False).garg_box((375, 1242))
    assert box == (153, 371, 44, 1197)  # the numbers of the published code for a frame of this size


@pytest.mark.parametrize("name", MAKERS)
def test_a_missing_file_is_named_with_the_tree_that_was_expected(
    root: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    registry: dict[str, Any] = {**DEPTH_SETS, **MASK_SETS}
    with pytest.raises(DataError, match=r"(?s)(missing|no images).*Expected:\nROOT/"):
        registry[name](tmp_path, "train", official=False)
    assert len(registry[name](root(name), "train", official=False)) >= 6
    with pytest.raises(DataError, match="official_counts=false"):
        registry[name](root(name), "val", official=True)


def test_a_lost_depth_map_is_found_before_training(tmp_path: Path) -> None:
    make_nyuv2(tmp_path)
    (tmp_path / "sync/bathroom_0001/sync_depth_00003.png").unlink()
    with pytest.raises(DataError, match=r"1 files are missing: sync/bathroom_0001/sync_depth_00003\.png"):
        DEPTH_SETS["nyuv2"](tmp_path, "train", official=False)


def test_depth_without_a_valid_pixel_is_survived_in_training_and_refused_in_measuring(
    make: Callable[..., EvalConfig], tmp_path: Path
) -> None:
    data = tmp_path / "kitti"
    data.mkdir()
    make_kitti(data)
    for part in ("train", "val"):
        for file in (data / "depth" / part).rglob("*.png"):
            save(file, np.zeros((80, 128), np.uint16))
    with pytest.raises(DataError, match="No validation image has valid depth"):
        evaluate(make("depth", "kitti", data=data, epochs=1))


def test_a_label_out_of_range_is_named(tmp_path: Path) -> None:
    make_loveda(tmp_path)
    save(tmp_path / "Val/Rural/masks_png/0.png", np.full((64, 64), 9, np.uint8))
    with pytest.raises(DataError, match=r"Val/Rural/masks_png/0\.png has label 9; LoveDA's run from 1 to 7"):
        MASK_SETS["loveda"](tmp_path, "val", official=False).sample(0)


def test_sizes_that_differ_and_images_too_small_are_refused(make: Callable[..., EvalConfig], tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    save(tmp_path / "annotations/validation/ADE_val_00000000.png", np.zeros((61, 90), np.uint8))
    with pytest.raises(DataError, match=r"is \(90, 61\) pixels wide and high, and its image \(90, 60\)"):
        MASK_SETS["ade20k"](tmp_path, "val", official=False).sample(0)
    with pytest.raises(DataError, match=r"choose a smaller task\.side"):
        evaluate(make("depth", "kitti", side=96))
    with pytest.raises(SettingError, match=r"task.side=36 .* nearest: 32"):
        evaluate(make("depth", "kitti", side=36))
    with pytest.raises(PixioRobotError, match="Did you mean 'kitti'"):
        make("depth", "kiti", data=tmp_path)


@pytest.mark.parametrize("name", ENCODERS)
def test_heads_of_every_size_answer_every_pixel(name: str) -> None:
    spec = ENCODERS[name]
    with torch.device("meta"):  # sizes alone: no weights of billions of numbers
        encoder = create_encoder(name)
    side = 4 * spec.patch_size
    for head, count in ((LinearHead(spec.width, 1, 3), 1), (DPTHead(spec.width, 4, 3, preset="tiny"), 4)):
        blocks = taps_of(encoder, count)
        assert blocks == [spec.depth * (k + 1) // count - 1 for k in range(count)]
        shapes = ((2, spec.class_tokens, spec.width), (2, 16, spec.width))
        classes, patches = (torch.zeros(shape) for shape in shapes)
        tokens = [Tokens(classes, patches, (4, 4)) for _ in blocks]
        assert head(tokens, (side, side)).shape == (2, 3, side, side)


@pytest.mark.parametrize(("preset", "gflop"), [("paper", 61), ("base", 15.6), ("tiny", 4.2)])
@torch.no_grad()
def test_the_presets_of_dpt_cost_what_their_docs_say(preset: str, gflop: float) -> None:
    """A ViT-B at 256 x 256 pixels; operations, not multiply-adds."""
    head = DPTHead(ENCODERS["pixio_vitb16"].width, 4, 1, preset=preset)
    tokens = [Tokens(torch.zeros(1, 8, 768), torch.zeros(1, 256, 768), (16, 16)) for _ in range(4)]
    with FlopCounterMode(display=False) as counter:
        head(tokens, (256, 256))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=0.02)


def resnet(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], embedding_size=16, layer_type="basic"
    )
    wrap_model(transformers.ResNetModel(config)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("head", ["linear", "dpt"])
def test_dense_heads_read_the_stages_of_a_resnet(make: Callable[..., EvalConfig], tmp_path: Path, head: str) -> None:
    config = make("segmentation", "voc_aug", epochs=8, head=head, preset="tiny", side=64, scales=(1.0, 1.0))
    config.encoder = str(resnet(tmp_path / "resnet"))
    config.task.recipe.lr = 0.01 if head == "linear" else 2e-3
    ious = read_record(evaluate(config))["facts"]["iou"]
    assert max(ious[1:3]) > 0.4  # of 21 classes, all but these two are 0
    job = Job(config=config, encoder=load_encoder(config.encoder), folder=tmp_path)
    reader = DenseReader(job, head=head, preset="tiny", channels=2, side=64)
    assert reader.blocks == ([3] if head == "linear" else [0, 1, 2, 3])
    if head == "dpt":
        project: Any = reader.head.project
        assert [layer.in_channels for layer in project] == [16, 24, 32, 48]
    assert reader(torch.zeros(1, 3, 64, 96, dtype=torch.uint8)).shape == (1, 2, 64, 96)


def test_dpt_takes_the_last_four_maps_of_a_network_that_has_five(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"architecture": "resnet18", "pretrained_cfg": {"input_size": (3, 64, 64)}}
    model = transformers.TimmWrapperModel(transformers.TimmWrapperConfig(**facts))
    job = Job(config=EvalConfig(encoder="-", data="-", precision="fp32"), encoder=wrap_model(model), folder=tmp_path)
    reader = DenseReader(job, head="dpt", preset="tiny", channels=2, side=64)
    assert reader.blocks == [1, 2, 3, 4]
    assert reader(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 2, 64, 64)


def test_dpt_refuses_what_has_too_few_stages() -> None:
    with pytest.raises(SettingError, match=r"wants 4 stages.*task\.head=linear"):
        stages_of([8, 16, 32])
