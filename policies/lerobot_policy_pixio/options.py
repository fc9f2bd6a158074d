"""The settings that all policies here share: their eyes, what of them is trained, and how they hear their task."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig

from pixio_robot.adapter import ClassRead, PatchRead
from pixio_robot.encoder import EncoderSpec
from pixio_robot.errors import DataError, SettingError, UnknownNameError

TrainEncoder = Literal["frozen", "last_blocks", "lora", "full"]
TaskConditioning = Literal["none", "index", "language"]
EncoderDtype = Literal["float32", "bfloat16"]


def default_grid(patches: PatchRead, side: int) -> int:
    """What an encoder's patches, ``side`` x ``side`` of them, are pooled to if nothing is said (docs/benchmark.md)."""
    return max(1, min(4, side // 2) if patches == "merge" else min(8, side))


# A dataclass takes the defaults of every base in turn, so that a base above PreTrainedConfig would set those of ACT and
# Diffusion back. To a type checker it is one all the same.
_Base = PreTrainedConfig if TYPE_CHECKING else object


@dataclass
class PixioOptions(_Base):
    """Settings of a policy with a pre-trained encoder for eyes, beside those of the LeRobot policy that it extends.

    LeRobot's ``vision_backbone`` fields have no effect in such a policy.
    """

    encoder: str = "shipped:pixio_vitt16"
    """The encoder: anything that ``pixio_robot.load_encoder`` reads."""
    encoder_hash: str | None = None
    """Sha-256 of the encoder's sizes and of its weights before this policy's training. Written when a policy is made; a
    checkpoint refuses any other encoder."""
    encoder_licence: str | None = None
    """The licence of the encoder's weights, as far as it is known. Written when a policy is made; if it is not
    apache-2.0 and the checkpoint holds such weights, LeRobot's ``license`` is "other" by default."""
    encoder_spec: dict[str, Any] | None = None
    """The encoder's sizes, written with ``save_backbone`` so that the checkpoint needs no other file."""
    image_size: int | None = None
    """Live images are resized to this many pixels a side; the encoder's native size when absent."""
    classes: ClassRead = "each"
    """Class tokens for the policy: "each" of them, their "mean", their "concat"enation, or "none"."""
    patches: PatchRead = "average"
    """Patches for the policy: pooled by "average", "merge", "attention" or "spatial_softmax", or "none"."""
    grid: int | None = None
    """Patches become grid x grid tokens per camera. When absent it is 8, or 4 where patches are merged, and never more
    than there are; what it came to is written when a policy is made."""
    standardize: bool = False
    """Standardise tokens, slot by slot, by what training saw there: better where scenes look as they did in training,
    and much worse where lights or cameras change. Else each is normalised by itself."""
    blind: bool = False
    """Act on proprioception alone: the same policy without visual tokens, as a control."""
    save_backbone: bool = False
    """Store the encoder's weights in the checkpoint too."""
    cache: str | None = None
    """A feature cache to train from with ``lerobot-train``; never used at inference."""

    train_encoder: TrainEncoder = "frozen"
    """What of the encoder is trained: nothing ("frozen"), its "last_blocks" and final norm, low-rank additions to its
    attention ("lora"), or all of it ("full"). Only a frozen one trains from a cache."""
    train_blocks: int = 2
    """How many "last_blocks"."""
    lora_rank: int = 8
    """Rank of the additions of "lora"."""
    optimizer_lr_encoder: float = 1e-5
    """Learning rate of what is trained of the encoder; the rest has ``optimizer_lr``."""

    task_conditioning: TaskConditioning = "none"
    """How the policy is told its task, ``batch["task"]``: not at all ("none"), by a learned vector for each of
    ``tasks`` ("index"), or by what a frozen language model makes of the words ("language")."""
    tasks: list[str] = field(default_factory=list)
    """The tasks; those of the data set when none are named."""
    task_dim: int = 32
    """Width of the vector that stands for a task."""
    language_model: str | None = None
    """For "language": a text model of transformers with its tokenizer, as a folder or a hub name."""
    language_hash: str | None = None
    """Sha-256 of its weights. Written when a policy is made; any other model is refused."""
    language_width: int | None = None
    """Width of its output. Written when a policy is made."""

    encoder_dtype: EncoderDtype = "float32"
    """What a frozen encoder computes in, with or without ``use_amp``."""
    compile_encoder: bool = False
    """Run the encoder through ``torch.compile``."""

    # LeRobot's fields, with defaults that need no download and no account.
    pretrained_backbone_weights: str | None = None
    push_to_hub: bool = False  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("grid", "image_size", "train_blocks", "lora_rank", "task_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name} must be at least 1, not {value}.")
        for name, choices in (
            ("classes", ClassRead),
            ("patches", PatchRead),
            ("train_encoder", TrainEncoder),
            ("task_conditioning", TaskConditioning),
            ("encoder_dtype", EncoderDtype),
        ):
            if getattr(self, name) not in get_args(choices):
                raise UnknownNameError(f"choice of {name}", getattr(self, name), get_args(choices))
        seen = getattr(self, "normalization_mapping", {}).get("VISUAL", NormalizationMode.IDENTITY)
        if seen is not NormalizationMode.IDENTITY:
            raise SettingError(
                f"normalization_mapping says {seen.name} for VISUAL, but the encoder takes raw pixels and normalises "
                "them itself: choose IDENTITY."
            )
        self._check_training()
        if self.task_conditioning == "language" and self.language_model is None:
            raise SettingError(
                "task_conditioning='language' needs language_model: a folder or hub name of a text model of "
                "transformers, such as 'sentence-transformers/all-MiniLM-L6-v2'."
            )
        if len(set(self.tasks)) < len(self.tasks):
            twice = next(task for task in self.tasks if self.tasks.count(task) > 1)
            raise SettingError(f"The task {twice!r} stands twice in tasks.")

    def _check_training(self) -> None:
        if self.train_encoder == "frozen":
            return
        if self.blind:
            raise SettingError(f"train_encoder={self.train_encoder!r}, but blind=true leaves no encoder to train.")
        if self.cache is not None:
            raise SettingError(
                f"train_encoder={self.train_encoder!r} cannot train from the cache {self.cache}: it holds what the "
                "encoder said before. Train from images with cache=null, or set train_encoder='frozen'."
            )
        if self.encoder_dtype != "float32":
            raise SettingError(
                f"train_encoder={self.train_encoder!r} needs encoder_dtype='float32': {self.encoder_dtype} would round "
                "its small steps away. For mixed precision set use_amp=true."
            )

    def settle_grid(self, spec: EncoderSpec) -> int:
        """Choose ``grid`` for an encoder, where none is named."""
        if self.grid is None:
            self.grid = default_grid(self.patches, (self.image_size or spec.image_size) // spec.patch_size)
        return self.grid

    @property
    def cached_grid(self) -> int | None:
        """What a cache for this policy may average patches to; None where the policy reads each of them.

        Raises:
            SettingError: If ``grid`` is not settled yet.
        """
        if self.grid is None:
            raise SettingError("grid is chosen when a policy is made: make that first, or name grid.")
        return {"average": self.grid, "none": self.grid, "merge": 2 * self.grid}.get(self.patches)

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        """The cameras that the policy looks through: none if it is blind."""
        return {} if self.blind else super().image_features

    @property
    def given_env_state(self) -> PolicyFeature | None:
        """The environment's state as the data set has it."""
        return super().env_state_feature

    @property
    def env_state_feature(self) -> PolicyFeature | None:
        """The environment's state as the policy reads it: the data set's, and behind it the task's vector."""
        given = self.given_env_state
        if self.task_conditioning == "none":
            return given
        return PolicyFeature(FeatureType.ENV, ((given.shape[0] if given else 0) + self.task_dim,))

    def validate_features(self) -> None:
        """Check that the inputs can carry this policy.

        Cameras may differ in size: each is resized to what the encoder sees.

        Raises:
            DataError: If there is no proprioception, or no camera to look through.
        """
        inputs = ", ".join(self.input_features or {}) or "nothing"
        if self.robot_state_feature is None:
            raise DataError(f"The policy needs 'observation.state' among its inputs; they are: {inputs}.")
        if self.action_feature is None:
            raise DataError(
                f"The policy needs 'action' among its outputs; they are: {list(self.output_features or {})}."
            )
        if not self.blind and not self.image_features:
            raise DataError(
                f"The policy needs a camera, such as 'observation.images.top', among its inputs; they are: {inputs}. "
                "For a policy without eyes, set blind=true."
            )
        for name, feature in self.image_features.items():
            if feature.shape[0] != 3:
                raise DataError(f"The camera {name!r} has {feature.shape[0]} channels; the encoder reads RGB.")
