"""What both policies do alike around the forward pass of LeRobot's: look, hear the task, check, save, be trained."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import repeat
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from lerobot_policy_pixio.conditioning import make_task_embedding, read_tasks
from lerobot_policy_pixio.options import PixioOptions
from lerobot_policy_pixio.vision import Eyes
from pixio_robot.encoder import Encoder
from pixio_robot.errors import CheckpointError, DataError, SettingError
from pixio_robot.tokens import Tokens

Batch = dict[str, Any]  # of tensors, of Tokens for cameras whose frames were encoded before, and of task names

# LeRobot wants the class attributes of a policy from every subclass of PreTrainedPolicy, and a mixin has none.
_Base = PreTrainedPolicy if TYPE_CHECKING else object


class PixioPolicy(_Base):
    """A LeRobot policy with ``Eyes``, and ears for its task; comes before LeRobot's own class among the bases.

    Attributes:
        eyes: The encoder and its adapter; None in a blind policy.
        task_embedding: What turns a task's name into a vector; None without task conditioning.
    """

    config: PixioOptions  # type: ignore[assignment]
    eyes: Eyes | None
    task_embedding: nn.Module | None

    def _equip(
        self, *, dim: int, output: Literal["tokens", "vector"], encoder: Encoder | None, dataset_meta: Any
    ) -> None:
        """Give the policy its eyes and ears; the head is there already."""
        config = self.config
        self.eyes = None if config.blind else Eyes(config, dim=dim, output=output, encoder=encoder)
        self.task_embedding = make_task_embedding(config, dataset_meta)
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_check_stored)
        self.register_load_state_dict_post_hook(_check_loaded)

    def get_optim_params(self) -> Any:
        """Parameter groups: head, adapter and task embedding; and what is trained of the encoder, at its own rate."""
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[name.startswith("eyes.encoder.")].append(parameter)
        encoder = [{"params": groups[True], "lr": self.config.optimizer_lr_encoder}] if groups[True] else []
        return [{"params": groups[False]}, *encoder]

    def _views(self, batch: Batch) -> list[Tensor | Tokens]:
        """What each camera holds, in the order of the settings.

        Raises:
            DataError: If one is missing.
            SettingError: If a gradient is wanted, and what a cache should give arrives otherwise, or not at all.
        """
        cameras, cache = list(self.config.image_features), self.config.cache
        if cache and torch.is_grad_enabled() and not all(isinstance(batch.get(key), Tokens) for key in cameras):
            raise SettingError(
                f"This policy is to be trained from the cache {cache}, but its tokens do not arrive: LeRobot keeps the "
                "pipelines of a checkpoint that --policy.path names, and they read no cache. Train on with "
                f"`pixio-train --policy.path=... --cache={cache}`, which has no --peft, or from images with "
                "--policy.cache=null."
            )
        missing = [camera for camera in cameras if camera not in batch]
        if missing:
            there = [key for key in batch if key.startswith("observation.image")]
            raise DataError(f"The policy looks through {missing}, but the batch has the cameras {there}.")
        return [batch[camera] for camera in cameras]

    def _check_widths(self, batch: Batch) -> None:
        """Refuse states and actions of another robot.

        Raises:
            DataError: If their width is not the policy's.
        """
        for key, feature in ((OBS_STATE, self.config.robot_state_feature), (ACTION, self.config.action_feature)):
            assert feature is not None, "validate_features has seen both"
            given = batch.get(key)  # at evaluation, LeRobot's pipelines hand on an action of None
            if given is not None and given.shape[-1] != feature.shape[0]:
                raise DataError(
                    f"{key!r} is {given.shape[-1]} wide, and the policy was made for {feature.shape[0]}: is it of "
                    "another robot or data set?"
                )

    def _tell_task(self, batch: Batch) -> Batch:
        """Put the task's vector behind the environment's state, at every observation step.

        Raises:
            DataError: If the batch says no task.
            UnknownNameError: If it says one that the policy never learned.
        """
        if self.task_embedding is None:
            return batch
        state = batch[OBS_STATE]
        told = self.task_embedding(read_tasks(batch, len(state)))  # b task_dim
        if state.ndim == 3:
            told = repeat(told, "b d -> b t d", t=state.shape[1])
        given = [batch[OBS_ENV_STATE]] if self.config.given_env_state is not None else []
        return batch | {OBS_ENV_STATE: torch.cat([*given, told], dim=-1)}

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """What LeRobot's ``--peft`` flags adapt: the head's linear layers by additions, and the adapter in full.

        The encoder is no part of it: ``train_encoder`` says what of the encoder is trained, with or without a cache.
        """
        head = [
            name
            for name, layer in self.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv1d)
            and not name.startswith(("eyes.", "task_embedding."))
            and not name.endswith(".out_proj")  # attention reads this layer's weight without calling it
        ]
        whole = [name for name in ("eyes.adapter", "task_embedding") if name in dict(self.named_modules())]
        return {"target_modules": head, "modules_to_save": whole}

    def _validate_peft_config(self, peft_config: Any) -> None:
        """Refuse additions that could learn nothing.

        Raises:
            SettingError: If they lie in the encoder, or the encoder is trained by ``train_encoder`` already.
        """
        super()._validate_peft_config(peft_config)
        if self.config.train_encoder != "frozen":
            raise SettingError(
                f"--peft adapts the head of a policy with a frozen encoder; this one has train_encoder="
                f"{self.config.train_encoder!r}, which trains the encoder by itself: leave --peft out."
            )
        inside = [
            name
            for name, _ in self.named_modules()
            if name.startswith("eyes.encoder.") and check_target_module_exists(peft_config, name)
        ]
        if inside:
            raise SettingError(
                f"--peft.target_modules match {inside[0]!r} in the encoder, which is frozen and takes no gradient: "
                "name layers of the head, or train the encoder with train_encoder='lora'."
            )


def check_finite(number: Tensor, name: str, config: PixioOptions) -> None:
    """Stop a training that has diverged.

    Args:
        number: What should be finite.
        name: What it is called.
        config: The settings of the policy that is trained.

    Raises:
        SettingError: If it is not.
    """
    if not torch.isfinite(number):
        rate: Any = getattr(config, "optimizer_lr", None)
        raise SettingError(
            f"The {name} became {number.item()}: training diverged. Lower optimizer_lr (now {rate:g}), or look for NaN "
            "in the states and actions."
        )


def _leave_out(policy: PixioPolicy, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    """Take the untrained encoder out of a state dict."""
    if policy.eyes is not None:
        for name in policy.eyes.left_out:
            state.pop(f"{prefix}eyes.{name}", None)


def _check_stored(policy: PixioPolicy, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Name weights as they are named here, compiled or not, and refuse to lose what was trained of the encoder."""
    if prefix:
        return  # the policy is a part of something else, such as a PEFT model, and this is not our file
    here = {_plain(name): name for name in policy.state_dict()}
    for name in list(state):
        state[here.get(_plain(name), name)] = state.pop(name)
    if policy.eyes is not None:
        seen = {name.removeprefix("eyes."): state[name] for name in state if name.startswith("eyes.encoder.")}
        policy.eyes.check_stored(seen)


def _plain(name: str) -> str:
    """A weight's name without what ``torch.compile`` puts into it, as LeRobot's ``compile_model`` has it do."""
    return name.replace("_orig_mod.", "")


def _check_loaded(policy: PixioPolicy, keys: Any) -> None:
    """Do not miss what checkpoints leave out, and refuse those that lack more of what is ours."""
    if any("eyes." in key and not key.startswith("eyes.") for key in keys.missing_keys):
        return  # the policy is a part of something else, such as a PEFT model, and this is not our file
    if policy.eyes is not None:
        policy.eyes.check_loaded([key.removeprefix("eyes.") for key in keys.missing_keys if key.startswith("eyes.")])
        keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith("eyes.")]
    deaf = [key for key in keys.missing_keys if key.startswith("task_embedding.")]
    if deaf:
        raise CheckpointError(f"The checkpoint lacks {deaf[0]!r}: it is of a policy with another task_conditioning.")
    lacking = sorted(set(keys.missing_keys) & set(policy.state_dict()))
    if lacking:
        raise CheckpointError(
            f"The checkpoint lacks {len(lacking)} weights of the policy's head, such as {lacking[0]!r}: it is of other "
            "settings, or damaged."
        )
