"""Distillation (arXiv 2512.15715, section 7.2): students learn to say what a frozen, larger teacher says.

The teacher sees the whole image and speaks before its final norm; students may see it in part, and speak after theirs,
through an MLP of their own. Students do not touch one another: each learns as it would alone, but the teacher, who
costs most, runs once for all.
"""

import copy
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pixio_pretrain.data.samples import Batch, SampleMaker
from pixio_pretrain.objectives.base import EncoderConfig, Objective, ObjectiveConfig
from pixio_pretrain.objectives.masking import (
    check_mask,
    check_native,
    count_visible,
    crop_with_noise,
    draw_order,
    encode_visible,
)
from pixio_robot import load_encoder
from pixio_robot.encoder import Encoder, EncoderSpec
from pixio_robot.errors import SettingError
from pixio_robot.images import normalize
from pixio_robot.nn import VisionTransformer, initialize_blocks
from pixio_robot.tokens import Tokens, take


@dataclass(kw_only=True)
class DistillConfig(ObjectiveConfig):
    """Settings of distillation; the defaults are those of Pixio's smaller students, which see everything.

    Its larger ones have mask_ratio 0.5 and a drop_path of 0.4, the smaller ones a drop_path of 0.1.

    Attributes:
        teacher: What ``load_encoder`` reads.
        students: Encoders to be trained, by the name of the folder each one goes to. Patch size and class tokens are
            the teacher's, the image size is the same for all.
        mask_block: Side of the blocks hidden from the students, in patches; must divide the grid.
        mask_ratio: Share of the blocks that is hidden; 0 shows students all.
    """

    name: str = "distill"
    teacher: str = ""
    students: dict[str, EncoderConfig] = field(default_factory=dict)
    mask_block: int = 4
    mask_ratio: float = 0.0

    def __post_init__(self) -> None:
        self.students = {  # a run's identity holds them as plain mappings
            name: student if isinstance(student, EncoderConfig) else EncoderConfig(**student)
            for name, student in self.students.items()
        }

    def build(self) -> "Distillation":
        """Build the students and load the teacher.

        Raises:
            UnknownNameError: If there is no such teacher or encoder.
            CheckpointError: If the teacher cannot be read.
            SettingError: If the settings do not fit together.
        """
        self.check()
        return self.build_under(load_encoder(self.teacher))

    def check(self) -> None:
        """See, before a teacher is read, whether the settings fit together; errors as for ``build``."""
        if not self.teacher or not self.students:
            raise SettingError(
                "distill wants a teacher and at least one student: objective.teacher=facebook/pixio-vith16 "
                "'+objective.students={base:{encoder:pixio_vitb16}}'."
            )
        specs = {name: student.spec() for name, student in self.students.items()}
        for name in specs:
            if not re.fullmatch(r"[\w-]+", name):
                raise SettingError(f"Student {name!r} cannot name a folder; use letters, digits, _ and -.")
        first, *others = specs
        for name in others:
            if specs[name].image_size != specs[first].image_size:
                raise SettingError(
                    f"Students see the same images: {first!r} has {specs[first].image_size} pixels, {name!r} "
                    f"{specs[name].image_size}. Set students.{name}.image_size={specs[first].image_size}."
                )
        if self.mask_ratio:
            check_mask(specs[first].image_size // specs[first].patch_size, self.mask_block, self.mask_ratio)

    def build_under(self, teacher: Encoder) -> "Distillation":
        """Build the students of a teacher that is at hand.

        Raises:
            SettingError: If a student's tokens have no counterparts among the teacher's.
        """
        for name, student in self.students.items():
            _check_pair(name, student.spec(), self.teacher, teacher.spec)
        return Distillation(self, teacher)


def _check_pair(name: str, student: EncoderSpec, teacher_name: str, teacher: EncoderSpec) -> None:
    """Refuse a student whose tokens have no counterparts.

    Raises:
        SettingError: Names both.
    """
    if student.patch_size != teacher.patch_size:
        near = max(1, round(student.image_size / teacher.patch_size)) * teacher.patch_size
        size = "" if near == student.image_size else f" and students.{name}.image_size={near}"
        raise SettingError(
            f"Student {name!r} has patches of {student.patch_size} pixels and teacher {teacher_name!r} of "
            f"{teacher.patch_size}, so their tokens show different places: set students.{name}.patch_size="
            f"{teacher.patch_size}{size}."
        )
    if student.class_tokens != teacher.class_tokens:
        raise SettingError(
            f"Student {name!r} has {student.class_tokens} class tokens and teacher {teacher_name!r} has "
            f"{teacher.class_tokens}, but each learns from its own: set students.{name}.class_tokens="
            f"{teacher.class_tokens}, or choose a teacher with {student.class_tokens}."
        )


class DistillOutput(NamedTuple):
    """What distillation says about a batch.

    Attributes:
        loss: Scalar, float32: the sum over students of the mean of the two terms.
        classes: One minus the mean cosine of class tokens, by student.
        patches: The same of the patches that the student sees.
    """

    loss: Tensor
    classes: dict[str, Tensor]
    patches: dict[str, Tensor]


class Student(nn.Module):
    """An encoder under training, and the MLP that speaks the teacher's language.

    Args:
        spec: Sizes of the encoder.
        width: Token width of the teacher.
        drop_path: Stochastic depth of the encoder's last block.
    """

    def __init__(self, spec: EncoderSpec, width: int, *, drop_path: float) -> None:
        super().__init__()
        self.spec = spec
        self.vit = VisionTransformer(**asdict(spec), drop_path=drop_path)
        self.projection = nn.Sequential(
            nn.Linear(spec.width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)
        )

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights."""
        self.vit.initialize(generator)
        initialize_blocks(self.projection, generator)

    def forward(self, pixels: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
        """Say what the teacher would: class tokens [b c d] and patches [b k d] in the teacher's width d.

        Args:
            pixels: Normalised images [b 3 h w].
            visible: Indices [b k] of the patches to see; all, row-major, when absent.
        """
        tokens = self.vit(pixels) if visible is None else encode_visible(self.vit, pixels, visible)
        said = self.projection(tokens)
        return said[:, : self.spec.class_tokens], said[:, self.spec.class_tokens :]


class Distillation(Objective):
    """Students under one teacher.

    The teacher is no submodule: it is neither trained nor sharded, and checkpoints do not carry it.

    Args:
        config: All settings.
        teacher: The frozen encoder.

    Attributes:
        config: All settings.
        students: By name.
        mask_blocks: Blocks per image.
        visible_patches: Patches per image that students see.
    """

    loss_meaning = "one minus the cosine to the teacher's tokens, class tokens and patches alike, summed over students"

    def __init__(self, config: DistillConfig, teacher: Encoder) -> None:
        super().__init__()
        self.config: DistillConfig = config
        self._teacher = (teacher,)  # a tuple hides it from nn.Module
        width = teacher.spec.width
        self.students = nn.ModuleDict(
            {name: Student(own.spec(), width, drop_path=own.drop_path) for name, own in config.students.items()}
        )
        self.spec = next(iter(config.students.values())).spec()
        self.grid = self.spec.image_size // self.spec.patch_size
        block = config.mask_block if config.mask_ratio else 1
        self.mask_blocks = (self.grid // block) ** 2
        self.visible_patches = count_visible(self.mask_blocks, config.mask_ratio) * block**2
        self.initialize()

    def fresh(self) -> "Distillation":
        """Build fresh students for the same teacher: a second one might not fit, nor be the same."""
        return Distillation(self.config, self.teacher)

    @property
    def teacher(self) -> Encoder:
        """The frozen encoder."""
        return self._teacher[0]

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.spec.image_size

    @property
    def encoders(self) -> dict[str, Encoder]:
        """Frozen copies of the students as they are now; their provenance names the teacher and its licence."""
        known = self.teacher.provenance
        facts = {key: known[key] for key in ("name", "licence") if key in known} | {"sha256": self.teacher.fingerprint}
        found = {}
        for name, config in self.config.students.items():
            student = self.students[name]
            assert isinstance(student, Student)
            provenance = {"name": config.encoder, "teacher": facts}
            found[name] = Encoder(student.spec, copy.deepcopy(student.vit), provenance=provenance)
        return found

    @property
    def origins(self) -> dict[str, str]:
        """The teacher's hash: the name may come to stand for other weights."""
        return {"teacher": self.teacher.fingerprint}

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights for all students."""
        for student in self.students.values():
            assert isinstance(student, Student)
            student.initialize(generator)

    def samples(self, *, crop_scale: float) -> SampleMaker:
        """Crops, and the noise that decides which blocks students do not see."""
        return crop_with_noise(self.image_size, blocks=self.mask_blocks, crop_scale=crop_scale)

    def forward(self, images: Tensor, *, noise: Tensor | None = None) -> DistillOutput:
        """Compare what students say with what the teacher says.

        Args:
            images: RGB [b 3 h w] of the native size, uint8 or float in [0, 1].
            noise: [b mask_blocks], row-major over the grid of blocks; the smallest entries are seen. Uniform when
                absent; without any effect when nothing is hidden.

        Raises:
            ImageError: If the images are of another shape, size or range.
            SettingError: If the noise is of another shape.
        """
        images = self._check(images)
        wanted, visible = self.teach(images), None
        if self.config.mask_ratio:
            order = draw_order(images, noise, grid=self.grid, block=self.config.mask_block)
            visible = order[:, : self.visible_patches]
            wanted = wanted._replace(patches=take(wanted.patches, visible))
        pixels, classes, patches = normalize(images, torch.float32), {}, {}
        for name, student in self.students.items():
            said_classes, said_patches = student(pixels, visible)
            classes[name] = distance(said_classes, wanted.classes)
            patches[name] = distance(said_patches, wanted.patches)
        total = torch.stack([(classes[name] + patches[name]) / 2 for name in classes]).sum()
        return DistillOutput(total, classes, patches)

    def teach(self, images: Tensor) -> Tokens:
        """Give the teacher's tokens of whole images [b 3 h w], before its final norm."""
        if images.is_meta:  # the teacher must not follow there, where its weights would be lost; shapes are enough
            shapes = {key: value.to("meta") for key, value in self.teacher.state_dict().items()}
            return functional_call(self.teacher, shapes, images)
        if next(self.teacher.parameters()).device != images.device:
            self.teacher.to(images.device)
        return self.teacher.intermediate(images, blocks=[-1], norm=False)[0]

    @torch.no_grad()
    def baselines(self, train: Iterable[Batch], held_out: Iterable[Batch]) -> dict[str, float]:
        """Held-out loss of students who say the same of every image: the mean direction of each of the tokens.

        All patches have one direction in common.
        """
        classes = patches = torch.zeros((), device=next(self.students.parameters()).device)
        for number, batch in enumerate(train, start=1):
            tokens = self.teach(self._check(batch["images"])).map(lambda part: F.normalize(part.float(), dim=-1))
            classes = classes + (tokens.classes.mean(dim=0) - classes) / number  # c d
            patches = patches + (tokens.patches.mean(dim=(0, 1)) - patches) / number  # d
        total, count = 0.0, 0
        for batch in held_out:
            tokens = self.teach(self._check(batch["images"]))
            term = distance(classes, tokens.classes) + distance(patches, tokens.patches)
            total, count = total + term.item() / 2 * len(tokens.patches), count + len(tokens.patches)
        return {"the teacher's mean tokens": total / count * len(self.students)}

    def _check(self, images: Tensor) -> Tensor:
        check_native(images, self.image_size)
        return images.to(next(self.students.parameters()).device)


def distance(said: Tensor, wanted: Tensor) -> Tensor:
    """One minus the mean cosine of tokens [b n d], or what broadcasts to it, in float32; in [0, 2]."""
    return 1 - F.cosine_similarity(said.float(), wanted.float(), dim=-1).mean()
