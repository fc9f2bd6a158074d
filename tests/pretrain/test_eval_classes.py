import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pixio_pretrain.evaluation import TASKS, EvalConfig, Recipe, cli, evaluate, loop, read_record
from pixio_pretrain.evaluation import neighbours as search
from pixio_pretrain.evaluation.encoders import PixelBackbone, open_encoder
from pixio_pretrain.evaluation.finetune import FinetuneConfig, TunedClassifier
from pixio_pretrain.evaluation.linear import LinearProbe
from pixio_pretrain.evaluation.sets.classes import open_classes
from pixio_pretrain.evaluation.views import NoisyRandAugment
from pixio_robot import create_encoder
from pixio_robot.errors import CheckpointError, DataError, SettingError, UnknownNameError

CLASSES, TRAIN, VAL = 4, 12, 6
COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200), (200, 200, 60))


def picture(label: int, random: np.random.Generator) -> Image.Image:
    noise = random.normal(COLOURS[label], 15, size=(48, 64, 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet in folders: a class is a colour."""
    root, random = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("val", VAL)):
        for label in range(CLASSES):
            folder = root / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(count):
                picture(label, random).save(folder / f"{part}_{number}.JPEG")
    return root


@pytest.fixture(scope="session")
def shards(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as timm/imagenet-1k-wds has them."""
    root = tmp_path_factory.mktemp("shards")
    for part, name in (("train", "imagenet1k-train-0000.tar"), ("val", "imagenet1k-validation-00.tar")):
        with tarfile.open(root / name, "w") as tar:
            for label, folder in enumerate(sorted((imagenet / part).iterdir())):
                for file in sorted(folder.iterdir()):
                    for suffix, content in (("jpg", file.read_bytes()), ("cls", str(label).encode())):
                        header = tarfile.TarInfo(f"{folder.name}_{file.stem}.{suffix}")
                        header.size = len(content)
                        tar.addfile(header, io.BytesIO(content))
    return root


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    sizes = {"width": 32, "depth": 3, "heads": 2, "patch_size": 8, "image_size": 32, "class_tokens": 2}
    create_encoder("pixio_vitt16", seed=0, **sizes).save_pretrained(folder)
    return folder


@pytest.fixture
def make(imagenet: Path, encoder: Path, tmp_path: Path) -> Callable[..., EvalConfig]:
    def config(
        name: str, *, recipe: dict[str, Any] | None = None, root: Path = imagenet, **settings: Any
    ) -> EvalConfig:
        task = TASKS[name](**({"recipe": Recipe(**recipe)} if recipe else {}), **settings)
        common = {"precision": "fp32", "batch_size": 16, "official_counts": False}
        return EvalConfig(encoder=str(encoder), data=str(root), folder=str(tmp_path / "out"), task=task, **common)

    return config


KNN: dict[str, Any] = {"neighbours": [1, 5], "resize": 40}
LINEAR = {"epochs": 40, "batch_size": 16, "lr": 5.0, "decay": "cosine", "warmup": 0.1, "measure_every": 30}
TUNE = {"epochs": 6, "batch_size": 16, "lr": 4e-3, "decay": "cosine", "warmup": 0.1}


@pytest.mark.parametrize(("n", "k", "rows"), [(5000, 20, 256), (1000, 300, 256), (300, 300, 64), (700, 5, 128)])
def test_the_search_finds_what_a_full_sort_finds(n: int, k: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ROWS", rows)
    monkeypatch.setattr(search, "FIRST", 2)
    random = torch.Generator().manual_seed(n)
    bank, queries = (torch.randn(count, 16, generator=random) for count in (n, 40))
    for ordered in (bank, bank[(bank @ queries[0]).argsort()]):  # the best ones last: the worst case
        similarity, found = search.nearest(queries, ordered, k)
        products = queries @ ordered.T
        torch.testing.assert_close(similarity, products.topk(k, dim=1).values)
        torch.testing.assert_close(products.gather(1, found), similarity)


def test_votes_are_those_of_the_formula() -> None:
    random = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(200, 8, generator=random), dim=1)
    queries, labels = torch.randn(9, 8, generator=random), torch.randint(5, (200,), generator=random)
    for count, votes in search.classify(queries, bank, labels, neighbours=[1, 7], classes=5, temperature=0.07):
        for query, row in zip(queries, votes, strict=True):
            similarity = bank @ (query / query.norm())
            order = similarity.argsort(descending=True)[:count]
            wanted = torch.zeros(5)
            for place in order:
                wanted[labels[place]] += torch.exp(similarity[place] / 0.07)
            torch.testing.assert_close(row / row.sum(), wanted / wanted.sum())


def test_both_layouts_are_one_data_set(imagenet: Path, shards: Path) -> None:
    for part in ("train", "val"):
        folder, shard = (open_classes(root, part, official=False) for root in (imagenet, shards))
        assert folder.labels.tolist() == shard.labels.tolist()
        assert np.array_equal(np.asarray(folder.image(7)), np.asarray(shard.image(7)))


def test_knn_from_folders_and_from_shards_agree_and_are_far_above_chance(
    make: Callable[..., EvalConfig], shards: Path, tmp_path: Path
) -> None:
    record = read_record(evaluate(make("knn", **KNN)))
    assert record["metrics"]["top1_k5"] > 0.9
    other = make("knn", root=shards, **KNN)
    other.folder = str(tmp_path / "shards")
    assert read_record(evaluate(other))["metrics"] == record["metrics"]


@pytest.mark.parametrize("side", [0, 64, 256])
def test_knn_sees_as_much_of_a_picture_at_any_side(
    make: Callable[..., EvalConfig], monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    from pixio_pretrain.evaluation import knn

    real, views = knn.centre_view, []
    monkeypatch.setattr(knn, "centre_view", lambda side, resize: views.append((side, resize)) or real(side, resize))
    evaluate(make("knn", neighbours=[5], side=side))
    assert views == [(side or 32, side or 32)]


def test_features_go_on_where_they_were_stopped(
    make: Callable[..., EvalConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixio_pretrain.evaluation import features

    real, calls = features.encode, []

    def failing(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(features, "FLUSHED", 1)
    monkeypatch.setattr(features, "encode", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluate(make("knn", **KNN))
    stopped = read_record(evaluate(make("knn", **KNN)))
    assert len(calls) == 3 + 1 + 2  # 48 and 24 images in batches of 16, two of which were kept
    assert stopped["metrics"]["top1_k5"] > 0.9


@pytest.mark.parametrize("augment", [True, False])
def test_the_linear_probe_learns(make: Callable[..., EvalConfig], augment: bool) -> None:
    record = read_record(evaluate(make("linear", recipe=LINEAR, augment=augment)))
    assert record["metrics"]["top1"] > 0.8
    assert [row["epoch"] for row in record["facts"]["history"]] == [30]


def test_a_gradient_that_is_not_finite_stops_a_training(
    make: Callable[..., EvalConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LinearProbe.loss

    def loss(self: LinearProbe, batch: Any) -> torch.Tensor:
        return plain(self, batch) + (0 * next(self.module.parameters())).sum().sqrt()

    monkeypatch.setattr(LinearProbe, "loss", loss)
    with pytest.raises(SettingError, match=r"gradient's norm nan at step 1: try a smaller task\.recipe\.lr"):
        evaluate(make("linear", recipe=LINEAR, augment=False))


@pytest.mark.parametrize(
    "settings",
    [{}, {"trained": "blocks", "blocks": 2, "features": "classes"}, {"trained": "mlp", "mixup": 0.0, "cutmix": 0.0}],
)
def test_finetuning_learns(make: Callable[..., EvalConfig], settings: dict[str, Any]) -> None:
    record = read_record(evaluate(make("finetune", recipe=TUNE | {"lr": 1e-2}, layer_decay=0.9, **settings)))
    assert record["metrics"]["top1"] > 0.7


def test_finetuning_trains_what_it_says_and_nothing_else(encoder: Path) -> None:
    from pixio_robot import load_encoder

    backbone, generator = load_encoder(encoder).backbone, torch.Generator().manual_seed(0)

    def trained(**settings: Any) -> set[str]:
        model = TunedClassifier(backbone, 4, FinetuneConfig(**settings), generator)
        before = {name: value.clone() for name, value in model.named_parameters()}
        optimizer = torch.optim.AdamW(model.groups(layer_decay=0.5, weight_decay=0.1), lr=1e-2)
        for group in optimizer.param_groups:
            group["lr"] *= group["scale"]
        for _ in range(2):  # the classifier starts at almost nothing, and so do the gradients before it
            F.cross_entropy(model(torch.randn(4, 3, 32, 32, generator=generator)), torch.arange(4)).backward()
            optimizer.step()
        return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}

    everything = trained(trained="all", features="classes")
    assert {"backbone.cls_token", "backbone.pos_embed", "backbone.norm.weight", "head.weight"} <= everything
    two = {name for name in trained(trained="blocks", blocks=2) if name.startswith("backbone.")}
    assert {name.split(".")[2] for name in two} == {"1", "2"}
    mlp = {name for name in trained(trained="mlp") if name.startswith("backbone.")}
    assert {".".join(name.split(".")[2:4]) for name in mlp} == {"2.mlp", "2.norm2"}


def test_rates_fall_off_layer_by_layer(encoder: Path) -> None:
    from pixio_robot import load_encoder

    model = TunedClassifier(load_encoder(encoder).backbone, 4, FinetuneConfig(), torch.Generator().manual_seed(0))
    names = {id(weight): name for name, weight in model.named_parameters()}
    scales = {
        names[id(weight)]: group["scale"]
        for group in model.groups(layer_decay=0.5, weight_decay=0.1)
        for weight in group["params"]
    }
    assert scales["backbone.pos_embed"] == scales["backbone.patch_embed.proj.weight"] == 0.5**4
    assert [scales[f"backbone.blocks.{i}.attn.qkv.weight"] for i in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert scales["head.weight"] == scales["fc_norm.weight"] == 1


def test_a_stopped_training_ends_as_an_unbroken_one(
    make: Callable[..., EvalConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make("finetune", recipe=TUNE)
    broken = make("finetune", recipe=TUNE)
    broken.folder += "-broken"
    broken.workers = 1
    real, steps = loop._step, []

    def terminated(*args: Any, **kwargs: Any) -> float:
        steps.append(1)
        if len(steps) == 8:
            workers = multiprocessing.active_children()
            assert workers
            group = [os.getpid(), *(worker.pid for worker in workers)]
            subprocess.run(["kill", *map(str, group)], check=True)  # from outside: a worker may die of its parent's
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "_step", terminated)
    with pytest.raises(SystemExit) as stop:
        evaluate(broken)
    assert stop.value.code == 143
    assert not multiprocessing.active_children()  # though the exception, and what it came through, is kept
    files = [evaluate(broken), evaluate(whole)]
    assert len(steps) == 18 * 2
    logs = [[json.loads(line) for line in (file.parent / "log.jsonl").read_text().splitlines()] for file in files]
    assert logs[0] == logs[1]
    assert read_record(files[0])["metrics"] == read_record(files[1])["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"), [("linear", {"augment": True}), ("linear", {"augment": False}), ("finetune", {})]
)
def test_a_killed_evaluation_ends_as_an_unbroken_one(
    make: Callable[..., EvalConfig],
    assert_resumes: Callable[[EvalConfig, int], None],
    name: str,
    settings: dict[str, Any],
) -> None:
    recipe = {"linear": LINEAR, "finetune": TUNE}[name] | {"epochs": 4, "measure_every": 2}
    assert_resumes(make(name, recipe=recipe, **settings), 7)  # of 3 steps an epoch


def test_a_record_is_kept_and_guarded(make: Callable[..., EvalConfig]) -> None:
    file = evaluate(make("knn", **KNN))
    date = read_record(file)["date"]
    assert read_record(evaluate(make("knn", **KNN)))["date"] == date
    with pytest.raises(CheckpointError, match=r"task.temperature \(there 0.07, now 0.1\)"):
        evaluate(make("knn", **KNN, temperature=0.1))


def test_each_of_two_operations_is_applied_one_time_in_two() -> None:
    augment = NoisyRandAugment()
    augment.inner = [lambda count: count + 1] * augment.BINS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        applied = [augment(0) for _ in range(1000)]
    assert np.allclose(np.bincount(applied) / 1000, [0.25, 0.5, 0.25], atol=0.05)


@pytest.mark.parametrize(("name", "batch", "lr"), [("linear", 16384, 6.4), ("finetune", 1024, 2e-3)])
def test_a_rate_follows_the_batch_unless_it_is_named(name: str, batch: int, lr: float) -> None:
    published = TASKS[name]().recipe
    assert (published.batch_size, published.lr) == (batch, pytest.approx(lr))
    fields = {key: value for key, value in asdict(published).items() if key not in ("batch_size", "lr")}
    assert TASKS[name](recipe=Recipe(batch_size=batch // 4, lr=0.0, **fields)).recipe.lr == pytest.approx(lr / 4)
    assert TASKS[name](recipe=Recipe(batch_size=batch // 4, lr=0.5, **fields)).recipe.lr == 0.5


def test_the_reference_schedule_writes_each_rate_one_step_late() -> None:
    right = Recipe(epochs=1, batch_size=1, lr=1.0, warmup=0.2)
    late = Recipe(epochs=1, batch_size=1, lr=1.0, warmup=0.2, reference_schedule=True)
    rates = [right.rate(step, 10) for step in range(10)]
    assert rates[:4] == [0.0, 0.5, 1.0, (7 / 8) ** 0.9]
    assert [late.rate(step, 10) for step in range(10)] == [1.0, *rates[:-1]]


def test_what_is_wrong_with_a_folder_is_said_with_what_was_expected(
    imagenet: Path, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"(?s)files are missing: train, val.*ROOT/train/n01440764"):
        open_classes(tmp_path, "train", official=False)
    with pytest.raises(DataError, match=r"'train' has 48 images, not 1281167.*official_counts=false"):
        open_classes(imagenet, "train", official=True)
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        picture(0, np.random.default_rng(0)).save(tmp_path / part / "a" / "1.JPEG")
    (tmp_path / "val/b").mkdir()
    with pytest.raises(DataError, match="val has classes that train has not: b"):
        open_classes(tmp_path, "val", official=False)


def test_a_class_out_of_range_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    picture(0, np.random.default_rng(0)).save(stream, format="jpeg")
    for name in ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            for suffix, content in (("jpg", stream.getvalue()), ("cls", b"1000")):
                header = tarfile.TarInfo(f"a.{suffix}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    with pytest.raises(DataError, match="run from 1000 to 1000, not from 0 to 999"):
        open_classes(tmp_path, "train", official=False)


def test_too_many_neighbours_and_too_large_a_batch_are_refused(make: Callable[..., EvalConfig]) -> None:
    with pytest.raises(SettingError, match="only 48 training images"):
        evaluate(make("knn", neighbours=[100]))
    with pytest.raises(SettingError, match="more than the 48 training samples"):
        evaluate(make("linear", recipe=LINEAR | {"batch_size": 64}))


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, since hydra's logging would outlive the test in this one."""
    words = (sys.executable, "-m", "pixio_pretrain.evaluation.cli", *words)
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_command_measures_and_explains(imagenet: Path, encoder: Path, tmp_path: Path) -> None:
    told = [f"encoder={encoder}", f"data={imagenet}", "folder=2024_10", "official_counts=false"]
    measured = command("task=knn", "task.neighbours=[5]", *told, folder=tmp_path)
    assert measured.returncode == 0
    assert "top1_k5" in measured.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["2024_10"]
    for words, said, code in (
        (["task=knm"], "Did you mean 'knn'", 2),
        (["task=knn", "+task.tempersture=1"], "'temperature'", 2),
        (["task=knn", "task.neighbours=[0]"], "at least 1", 1),
    ):
        refused = command(*words, *told, folder=tmp_path)
        assert refused.returncode == code
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr


def test_the_help_lists_the_settings_of_every_task() -> None:
    told = cli.usage()
    for name, setting in (("knn", "neighbours"), ("finetune", "layer_decay"), ("simulator", "dense_frames")):
        assert f"With task={name}:" in told
        assert f"task.{setting}" in told


def test_baselines_say_what_they_are() -> None:
    image = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    image[0, 0, 8:16, 16:24] = 255  # the patch in the second row and third column is red
    pixels = open_encoder("pixels", seed=0, device="cpu")(image)
    assert pixels.grid == (16, 16)
    assert pixels.patches[0].sum(dim=1).nonzero().flatten().tolist() == [16 + 2]
    thumbnail = PixelBackbone.thumbnail(pixels.patches)
    assert thumbnail.shape == (1, 32 * 32 * 3)
    assert thumbnail.count_nonzero() == 4
    assert not open_encoder("constant", seed=0, device="cpu")(image[..., :32, :32]).patches.any()
    small = open_encoder("random:pixio_vitt16@64", seed=0, device="cpu")
    assert small.spec == replace(open_encoder("random:pixio_vitt16", seed=0, device="cpu").spec, image_size=64)
    with pytest.raises(SettingError, match="such as random:pixio_vitt16@128"):
        open_encoder("random:pixio_vitt16@big", seed=0, device="cpu")
    prints = [open_encoder("random:resnet18", seed=seed, device="cpu").fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet18'"):
        open_encoder("random:resnet81", seed=0, device="cpu")
