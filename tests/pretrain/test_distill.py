import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, PixioModel, ViTMAEModel

from pixio_pretrain.objectives import create_objective
from pixio_pretrain.objectives.base import EncoderConfig
from pixio_pretrain.objectives.distill import Distillation, DistillConfig, distance
from pixio_pretrain.speed import count_flops
from pixio_robot import Encoder, create_encoder, load_encoder
from pixio_robot.errors import CheckpointError, ImageError, SettingError, UnknownNameError
from pixio_robot.images import normalize
from pixio_robot.tokens import Tokens

SIZES: dict[str, Any] = {"depth": 2, "heads": 2, "patch_size": 4, "image_size": 16, "class_tokens": 3}

Make = Callable[..., Distillation]


def student(**changes: Any) -> EncoderConfig:
    return EncoderConfig(**(SIZES | {"width": 8} | changes))


@pytest.fixture
def teacher(tmp_path: Path) -> Encoder:
    made = create_encoder("pixio_vitt16", seed=5, **(SIZES | {"width": 16}))
    made.provenance["licence"] = "cc-by-nc-4.0"
    made.save_pretrained(tmp_path / "teacher")
    return load_encoder(tmp_path / "teacher")


@pytest.fixture
def make(teacher: Encoder, tmp_path: Path) -> Make:
    def build(students: dict[str, EncoderConfig] | None = None, **settings: Any) -> Distillation:
        settings = {"teacher": str(tmp_path / "teacher"), "mask_block": 2, "seed": 0} | settings
        made = create_objective("distill", students=students or {"small": student()}, **settings)
        assert isinstance(made, Distillation)
        return made

    return build


def pictures(batch: int = 4, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_distance_is_worked_by_hand() -> None:
    wanted = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]])
    said = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-4.0, -4.0]]])  # cosines 1, 0, -1
    assert distance(said, wanted).item() == pytest.approx(1.0)
    assert distance(wanted, 5 * wanted).item() == pytest.approx(0.0, abs=1e-6)


@torch.no_grad()
def test_the_loss_is_that_of_tokens_worked_by_hand(tmp_path: Path) -> None:
    # The teacher's blocks add nothing and it looks at no pixel, so that its tokens before the final norm are its
    # positions: class tokens along the first axis; of four patches, two along the first and two along the second.
    teacher = create_encoder("pixio_vitt16", **{**SIZES, "width": 4, "image_size": 8, "class_tokens": 2})
    for parameter in teacher.parameters():
        parameter.zero_()
    positions = teacher.backbone.get_parameter("pos_embed")
    positions[0, :, 0] = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    positions[0, :, 1] = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    teacher.save_pretrained(tmp_path)
    # The student says "first axis" whatever it sees: class term 0, patch term 1/2, and 1 on the last two patches.
    settings = {"teacher": str(tmp_path), "students": {"s": student(image_size=8, class_tokens=2)}}
    for ratio, noise, patches in (
        (0.0, None, 0.5),
        (0.5, [[0.9, 0.8, 0.1, 0.2]], 1.0),
        (0.5, [[0.1, 0.9, 0.8, 0.2]], 0.5),
    ):
        model = create_objective("distill", seed=0, mask_block=1, mask_ratio=ratio, **settings)
        model.get_parameter("students.s.projection.3.weight").zero_()
        model.get_parameter("students.s.projection.3.bias").copy_(torch.tensor([7.0, 0.0, 0.0, 0.0]))
        output = model(pictures(1, 8), noise=None if noise is None else torch.tensor(noise))
        assert output.classes["s"].item() == pytest.approx(0.0, abs=1e-6)
        assert output.patches["s"].item() == pytest.approx(patches, abs=1e-6)
        assert output.loss.item() == pytest.approx(patches / 2, abs=1e-6)


@torch.no_grad()
def test_the_student_speaks_after_its_norm_and_the_teacher_before(make: Make, teacher: Encoder) -> None:
    model, images = make(), pictures()
    own = model.encoder(images)
    first, norm, gelu, last = model.students["small"].projection
    assert (norm.eps, gelu.approximate, first.in_features, last.out_features) == (1e-5, "none", 8, 16)
    said = [last(gelu(norm(first(tokens)))) for tokens in (own.classes, own.patches)]
    wanted = teacher.intermediate(images, blocks=[-1], norm=False)[0]
    cosines = [torch.cosine_similarity(a, b, dim=-1).mean() for a, b in zip(said, wanted[:2], strict=True)]
    torch.testing.assert_close(model(images).loss, 1 - sum(cosines) / 2)


@torch.no_grad()
def test_students_see_a_part_and_the_teacher_all(make: Make) -> None:
    model, images, noise = make(mask_ratio=0.75), pictures(1), torch.tensor([[0.1, 0.5, 0.6, 0.7]])
    seen: list[int] = []
    model.students["small"].vit.norm.register_forward_hook(lambda _, __, tokens: seen.append(tokens.shape[1]))
    before, changed = model(images, noise=noise), images.clone()
    changed[:, :, 8:] = 255 - changed[:, :, 8:]  # the lower half is hidden
    said = model.students["small"](normalize(images, torch.float32), torch.tensor([[0, 1, 4, 5]]))
    again = model.students["small"](normalize(changed, torch.float32), torch.tensor([[0, 1, 4, 5]]))
    assert seen == [3 + 4] * 3
    assert all(torch.equal(a, b) for a, b in zip(said, again, strict=True))
    after = model(changed, noise=noise)
    assert after.patches["small"] != before.patches["small"]  # through the teacher alone
    assert model.visible_patches == 4


def test_patches_are_compared_at_their_own_places(make: Make) -> None:
    model, images, noise = make(mask_ratio=0.5), pictures(), torch.rand(4, 4)
    order = noise.argsort(dim=1)
    wanted = model.teach(images).patches.view(4, 2, 2, 2, 2, 16).transpose(2, 3).reshape(4, 4, 4, 16)  # by block
    picked = torch.stack([blocks[keep[:2]].flatten(0, 1) for blocks, keep in zip(wanted, order, strict=True)])
    places = torch.arange(16).view(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)[order[:, :2]].flatten(1)
    _, said = model.students["small"](normalize(images, torch.float32), places)
    torch.testing.assert_close(model(images, noise=noise).patches["small"], distance(said, picked))


def test_students_learn_as_each_would_alone(make: Make) -> None:
    pair = make({"small": student(), "wide": student(width=12)}, mask_ratio=0.5)
    images, noise = pictures(), torch.rand(4, 4)
    pair(images, noise=noise).loss.backward()
    for name, config in pair.config.students.items():
        alone = make({name: config}, mask_ratio=0.5)
        alone.students.load_state_dict({f"{name}.{k}": v for k, v in pair.students[name].state_dict().items()})
        alone(images, noise=noise).loss.backward()
        for key, parameter in alone.named_parameters():
            torch.testing.assert_close(pair.get_parameter(key).grad, parameter.grad)


def test_the_loss_falls_and_the_teacher_stays(make: Make, teacher: Encoder) -> None:
    model, images = make({"small": student(drop_path=0.2), "wide": student(width=12)}), pictures()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model(images).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not any("teacher" in key for key in model.state_dict())
    for key, value in model.teacher.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[key])


def test_counting_operations_leaves_the_teacher_its_weights(make: Make, teacher: Encoder) -> None:
    model = make()
    batch = {"images": pictures(), "noise": torch.rand(4, 4)}
    before = model(**batch).loss
    assert count_flops(model, batch) > 0
    assert model.teacher.fingerprint == teacher.fingerprint
    torch.testing.assert_close(model(**batch).loss, before)


def test_each_student_comes_out_as_a_plain_encoder_folder(make: Make, tmp_path: Path, teacher: Encoder) -> None:
    model = make({"small": student(), "wide-2": student(width=12)})
    assert list(model.encoders) == ["small", "wide-2"]
    for name, encoder in model.encoders.items():
        encoder.save_pretrained(tmp_path / name)
        assert isinstance(AutoModel.from_pretrained(tmp_path / name), PixioModel)
        back = load_encoder(tmp_path / name)
        assert back.fingerprint == encoder.fingerprint
        facts = {"name": "pixio_vitt16", "licence": "cc-by-nc-4.0", "sha256": teacher.fingerprint}
        assert back.provenance["teacher"] == facts
    assert model.encoder.spec.width == 8


def test_an_mae_teaches_maes(tmp_path: Path) -> None:
    sizes = SIZES | {"class_tokens": 1}
    create_encoder("mae_vitt16", seed=0, **sizes, width=16).save_pretrained(tmp_path / "teacher")
    students = {"s": student(encoder="mae_vitt16", class_tokens=1)}
    model = create_objective("distill", teacher=str(tmp_path / "teacher"), students=students)
    model(pictures()).loss.backward()
    model.encoder.save_pretrained(tmp_path / "student")
    assert isinstance(AutoModel.from_pretrained(tmp_path / "student"), ViTMAEModel)


def test_other_image_sizes_than_the_teachers_own_will_do(make: Make) -> None:
    model = make({"small": student(image_size=24)}, mask_block=3, mask_ratio=0.5)
    assert model.image_size == 24
    assert model(pictures(2, 24)).loss.isfinite()
    with pytest.raises(ImageError, match="native 24 x 24 pixels, not 16 x 16"):
        model(pictures())


def test_samples_are_crops_with_noise_for_the_mask(make: Make) -> None:
    model = make(mask_ratio=0.5)
    sample = model.samples(crop_scale=0.5)(Image.new("RGB", (40, 30)), np.random.default_rng(0))
    assert {key: value.shape for key, value in sample.items()} == {"images": (3, 16, 16), "noise": (4,)}


def test_the_baseline_is_zero_where_all_images_are_one_and_its_tokens_alike(make: Make, teacher: Encoder) -> None:
    model = make({"small": student(), "wide": student(width=12)})
    batches = [{"images": pictures()}, {"images": pictures(2)}]
    (value,) = model.baselines(batches, batches).values()
    assert 0 < value < 2 * model(pictures()).loss.item()
    with torch.no_grad():  # nothing but the class tokens' positions is left
        for key, parameter in model.teacher.backbone.named_parameters():
            parameter.fill_(1.0 if key == "cls_token" else 0.0)
        model.teacher.backbone.get_parameter("pos_embed").fill_(0.5)
    (value,) = model.baselines(batches, batches).values()
    assert value == pytest.approx(0.0, abs=1e-5)


@torch.no_grad()
def test_the_baseline_is_of_all_batches_and_keeps_the_tokens_of_none(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, kept, alive = make({"small": student()}), [], []
    batches = [{"images": torch.roll(pictures(), number, dims=3) // (number + 1)} for number in range(6)]
    known = [model.teach(batch["images"]) for batch in batches]
    directions = [tokens.map(lambda part: F.normalize(part, dim=-1)) for tokens in known[:5]]
    classes = torch.stack([tokens.classes for tokens in directions]).mean(dim=(0, 1))
    patches = torch.stack([tokens.patches for tokens in directions]).mean(dim=(0, 1, 2))
    wanted = (distance(classes, known[5].classes) + distance(patches, known[5].patches)) / 2
    teach = model.teach

    def spy(images: Tensor) -> Tokens:
        alive.append(sum(tokens() is not None for tokens in kept))
        tokens = teach(images)
        kept.append(weakref.ref(tokens.patches))
        return tokens

    monkeypatch.setattr(model, "teach", spy)
    (value,) = model.baselines(batches[:5], batches[5:]).values()
    assert value == pytest.approx(wanted.item(), abs=1e-5)
    assert max(alive) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 8}, r"'small' has patches of 8 .*teacher' of 4, .* students\.small\.patch_size=4\."),
        ({"patch_size": 5, "image_size": 15}, r"of 5 pixels .*patch_size=4 and students\.small\.image_size=16"),
        ({"class_tokens": 8}, r"'small' has 8 class tokens and teacher .*teacher' has 3.*class_tokens=3"),
        ({"drop_path": 1.0}, r"drop_path=1\.0 must lie"),
    ],
)
def test_students_that_do_not_fit_the_teacher_are_refused_with_what_would(
    make: Make, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        make({"small": student(**changes)})


def test_settings_that_do_not_fit_are_refused(make: Make) -> None:
    with pytest.raises(SettingError, match=r"'small' has 16 pixels, 'big' 24\. Set students\.big\.image_size=16"):
        make({"small": student(), "big": student(image_size=24)})
    with pytest.raises(SettingError, match="wants a teacher and at least one student"):
        create_objective("distill")
    with pytest.raises(SettingError, match="mask_block=3 does not divide a grid of 4 x 4"):
        make(mask_block=3, mask_ratio=0.5)
    with pytest.raises(SettingError, match=r"'a\.b' cannot name a folder"):
        make({"a.b": student()})
    with pytest.raises(SettingError, match=r"noise must be \[images, mask blocks\], here \[4, 4\]"):
        make(mask_ratio=0.5)(pictures(), noise=torch.rand(4, 16))
    with pytest.raises(UnknownNameError, match="Did you mean 'pixio_vitt16'"):
        make({"small": student(encoder="pixio_vit_t16")})
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        make(teacher="/nowhere/teacher")


def test_the_settings_pass_through_omegaconf() -> None:
    node = OmegaConf.structured(DistillConfig)
    told = {"teacher": "shipped:pixio_vitt16", "students": {"tiny": {"encoder": "pixio_vitt16", "drop_path": 0.1}}}
    config = OmegaConf.to_object(OmegaConf.merge(node, told))
    assert config == DistillConfig(
        teacher="shipped:pixio_vitt16", students={"tiny": EncoderConfig(encoder="pixio_vitt16", drop_path=0.1)}
    )
