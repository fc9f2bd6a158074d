"""Training the encoder: exactly what should change does, and checkpoints hold exactly that."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    TimmWrapperConfig,
    TimmWrapperModel,
)

from lerobot_policy_pixio import PixioACTConfig
from lerobot_policy_pixio.acting import Actor
from lerobot_policy_pixio.modeling_pixio_act import PixioACTPolicy
from lerobot_policy_pixio.trainable import TrainableEncoder
from pixio_robot import Encoder, create_encoder
from pixio_robot.errors import CheckpointError, SettingError
from pixio_robot.foreign import wrap_model

MODES = ("frozen", "last_blocks", "lora", "full")
TOP, WRIST = "observation.images.top", "observation.images.wrist"
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}

Make = Callable[..., Any]


def step(policy: Any, batch: dict[str, Any], times: int = 2) -> None:
    """Optimizer steps as LeRobot takes them: train mode, the policy's groups and preset."""
    optimizer = policy.train().config.get_optimizer_preset().build(policy.get_optim_params())
    for _ in range(times):
        torch.manual_seed(0)
        policy(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()


def is_trained(mode: str, name: str) -> bool:
    """Whether a mode trains this weight of the encoder of two blocks."""
    return {
        "frozen": False,
        "last_blocks": name.startswith(("backbone.blocks.1.", "backbone.norm.")),
        "lora": ".lora_A." in name or ".lora_B." in name,
        "full": True,
    }[mode]


@pytest.mark.parametrize("mode", MODES)
def test_exactly_the_right_weights_change(kind: str, mode: str, make: Make, make_batch: Make) -> None:
    policy = make(kind, train_encoder=mode, train_blocks=1, optimizer_lr=1e-2, optimizer_lr_encoder=1e-2)
    before = {name: value.clone() for name, value in policy.state_dict(keep_vars=True).items()}
    encoder = {name: value.clone() for name, value in policy.eyes.encoder.state_dict().items()}
    step(policy, make_batch(policy))
    assert not any(module.training for module in policy.eyes.encoder.modules())
    changed = {
        name for name, value in policy.eyes.encoder.state_dict().items() if not torch.equal(value, encoder[name])
    }
    assert changed == {name for name in encoder if is_trained(mode, name)}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and not name.startswith("eyes.encoder."):
            assert not torch.equal(parameter, before[name]) or "vae_encoder" in name, name


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_holds_what_was_trained_and_gives_equal_actions(
    kind: str, mode: str, make: Make, make_batch: Make, act: Make, encoder: Encoder, tmp_path: Path
) -> None:
    policy = make(kind, train_encoder=mode, train_blocks=1, optimizer_lr_encoder=1e-2)
    batch = make_batch(policy)
    untrained = act(policy, batch)
    step(policy, batch)
    policy.save_pretrained(tmp_path)
    names = {
        name.removeprefix("eyes.encoder.")
        for name in load_file(tmp_path / "model.safetensors")
        if ".encoder.backbone" in name
    }
    assert names == {name for name in policy.eyes.encoder.state_dict() if is_trained(mode, name)}
    reloaded = get_policy_class(kind).from_pretrained(tmp_path)
    assert reloaded.config.encoder_hash == encoder.fingerprint
    assert torch.equal(act(reloaded, batch), act(policy, batch))
    assert not torch.equal(act(reloaded, batch), untrained)


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_with_its_encoder_needs_no_other_file(
    kind: str, mode: str, make: Make, make_batch: Make, act: Make, encoder: Encoder, tmp_path: Path
) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    policy = make(
        kind, train_encoder=mode, save_backbone=True, encoder=str(tmp_path / "encoder"), optimizer_lr_encoder=1e-2
    )
    batch = make_batch(policy)
    step(policy, batch)
    policy.save_pretrained(tmp_path / "policy")
    (tmp_path / "encoder").rename(tmp_path / "moved")
    reloaded = get_policy_class(kind).from_pretrained(tmp_path / "policy")
    assert torch.equal(act(reloaded, batch), act(policy, batch))
    reloaded.save_pretrained(tmp_path / "again")
    assert torch.equal(act(get_policy_class(kind).from_pretrained(tmp_path / "again"), batch), act(policy, batch))


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_refuses_another_encoder(
    kind: str, mode: str, make: Make, encoder: Encoder, tmp_path: Path
) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    make(kind, train_encoder=mode, encoder=str(tmp_path / "encoder")).save_pretrained(tmp_path / "policy")
    create_encoder("pixio_vitt16", seed=9, width=32, depth=2, heads=2, image_size=64).save_pretrained(
        tmp_path / "encoder"
    )
    with pytest.raises(CheckpointError, match=r"trained on the encoder"):
        get_policy_class(kind).from_pretrained(tmp_path / "policy")


def with_settings(folder: Path, settings: dict[str, Any]) -> Any:
    """A checkpoint's settings with others, as ``--policy.path=FOLDER --policy.NAME=VALUE`` makes them."""
    words = [f"--{name}={value}" for name, value in settings.items()]
    return PreTrainedConfig.from_pretrained(folder, cli_overrides=words)


@pytest.mark.parametrize("stored", [False, True], ids=["named", "stored"])
@pytest.mark.parametrize(
    ("first", "then"),
    [("last_blocks", "frozen"), ("lora", "frozen"), ("full", "frozen"), ("lora", "full"), ("last_blocks", "lora")],
)
def test_a_checkpoint_whose_trained_encoder_would_be_lost_is_refused(
    first: str, then: str, stored: bool, make: Make, make_batch: Make, encoder: Encoder, tmp_path: Path
) -> None:
    policy = make("pixio_act", train_encoder=first, save_backbone=stored, optimizer_lr_encoder=1e-2)
    step(policy, make_batch(policy))
    policy.save_pretrained(tmp_path)
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    for given in ({}, {"encoder": encoder}):
        with pytest.raises(
            CheckpointError, match=r"holds .*train_encoder='.*as the checkpoint's config\.json has them"
        ):
            PixioACTPolicy.from_pretrained(tmp_path, config=with_settings(tmp_path, {"train_encoder": then}), **given)
    assert all(torch.equal(weight, before[name]) for name, weight in encoder.state_dict().items())


def test_a_block_that_is_trained_no_more_stays_only_where_the_encoder_is_stored(
    make: Make, make_batch: Make, act: Make, tmp_path: Path
) -> None:
    policy = make("pixio_act", train_encoder="last_blocks", train_blocks=2, optimizer_lr_encoder=1e-2)
    batch = make_batch(policy)
    step(policy, batch)
    policy.save_pretrained(tmp_path / "policy")
    fewer = {"train_blocks": 1}
    with pytest.raises(CheckpointError, match=r"holds \d+ weights of a trained encoder.*blocks\.0"):
        PixioACTPolicy.from_pretrained(tmp_path / "policy", config=with_settings(tmp_path / "policy", fewer))
    whole = with_settings(tmp_path / "policy", fewer | {"save_backbone": "true"})
    PixioACTPolicy.from_pretrained(tmp_path / "policy", config=whole).save_pretrained(tmp_path / "again")
    assert torch.equal(act(PixioACTPolicy.from_pretrained(tmp_path / "again"), batch), act(policy, batch))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("frozen", "last_blocks"),
        ("frozen", "lora"),
        ("frozen", "full"),
        ("last_blocks", "last_blocks"),
        ("last_blocks", "full"),
    ],
)
def test_more_of_the_encoder_may_be_trained_than_before(
    first: str, then: str, make: Make, make_batch: Make, act: Make, encoder: Encoder, tmp_path: Path
) -> None:
    """What a checkpoint holds nothing of comes from the encoder that it names."""
    policy = make("pixio_act", train_encoder=first, train_blocks=1, optimizer_lr_encoder=1e-2)
    batch = make_batch(policy)
    step(policy, batch)
    policy.save_pretrained(tmp_path / "policy")
    more = with_settings(tmp_path / "policy", {"train_encoder": then, "train_blocks": 2})
    continued = PixioACTPolicy.from_pretrained(tmp_path / "policy", config=more)
    assert torch.equal(act(continued, batch), act(policy, batch))
    step(continued, batch)
    continued.save_pretrained(tmp_path / "again")
    again = PixioACTPolicy.from_pretrained(tmp_path / "again")
    assert again.config.encoder_hash == encoder.fingerprint
    assert torch.equal(act(again, batch), act(continued, batch))
    assert not torch.equal(act(again, batch), act(policy, batch))


def test_the_encoder_learns_at_a_rate_of_its_own(kind: str, make: Make) -> None:
    policy = make(kind, train_encoder="lora", optimizer_lr=1e-3, optimizer_lr_encoder=1e-4)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in policy.named_parameters():
        expected = None if not parameter.requires_grad else 1e-4 if name.startswith("eyes.encoder.") else 1e-3
        assert rates.get(id(parameter)) == expected, name


@pytest.mark.parametrize("mode", MODES)
def test_an_untrained_encoder_says_what_it_said(mode: str, encoder: Encoder, make: Make) -> None:
    policy = make("pixio_act", train_encoder=mode)
    images = torch.rand(2, 3, 64, 64)
    expected, found = encoder(images), policy.eyes.encoder(images)
    with torch.no_grad():
        assert torch.equal(policy.eyes.encoder(images).patches, expected.patches)
    torch.testing.assert_close(found.patches, expected.patches, atol=1e-3, rtol=1e-3)  # attention in another order
    assert isinstance(policy.eyes.encoder, TrainableEncoder) == (mode != "frozen") == found.patches.requires_grad


def test_frozen_blocks_keep_nothing_for_the_backward_pass() -> None:
    """With the last of several blocks trained, the memory is that of an encoder of one block."""

    def kept(depth: int) -> int:
        numbers: list[int] = []
        encoder = create_encoder("pixio_vitt16", seed=0, width=32, depth=depth, heads=2, image_size=64)
        trained = TrainableEncoder(encoder, PixioACTConfig(device="cpu", train_encoder="last_blocks", train_blocks=1))
        with torch.autograd.graph.saved_tensors_hooks(lambda x: numbers.append(x.numel()) or x, lambda x: x):
            trained(torch.rand(1, 3, 64, 64))
        return sum(numbers)

    assert kept(1) == kept(4) > 0


@pytest.mark.parametrize(
    ("family", "norm", "attention"),
    [
        ("dinov2", "model.layernorm.", 4),
        ("siglip", "model.post_layernorm.", 4),
        ("timm", "model.timm_model.norm.", 2),
        ("resnet", None, 0),
    ],
)
def test_blocks_and_attention_are_found_in_every_family(family: str, norm: str | None, attention: int) -> None:
    vit = {**SIZES, "image_size": 64, "patch_size": 16}
    model: Any = {
        "dinov2": lambda: Dinov2Model(Dinov2Config(**vit)),
        "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**vit)),
        "timm": lambda: TimmWrapperModel(
            TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"depth": 3, "img_size": 64})
        ),
        "resnet": lambda: ResNetModel(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic")
        ),
    }[family]()
    settings = {"device": "cpu", "lora_rank": 2}
    encoder = TrainableEncoder(
        wrap_model(model), PixioACTConfig(**settings, train_encoder="last_blocks", train_blocks=1)
    )
    trained = {name for name, parameter in encoder.backbone.named_parameters() if parameter.requires_grad}
    last = f".{encoder.spec.depth - 1}."
    assert trained
    assert all(last in name or (norm is not None and name.startswith(norm)) for name in trained)
    assert norm is None or any(name.startswith(norm) for name in trained)
    encoder(torch.rand(2, 3, 64, 64)).patches.sum().backward()
    assert all(parameter.grad is not None for name, parameter in encoder.backbone.named_parameters() if name in trained)
    lora = PixioACTConfig(**settings, train_encoder="lora")
    if not attention:
        with pytest.raises(SettingError, match=r"adds to attention, and an encoder of family 'resnet' has none"):
            TrainableEncoder(wrap_model(model), lora)
        return
    added = TrainableEncoder(wrap_model(model), lora)
    names = [name for name, parameter in added.backbone.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * attention * encoder.spec.depth
    assert all("lora_" in name for name in names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_an_encoder_in_training_compiles_as_one_graph() -> None:
    encoder = create_encoder("pixio_vitt16", seed=0, depth=1, width=24, heads=3, image_size=32)
    trained = TrainableEncoder(encoder, PixioACTConfig(device="cpu", train_encoder="full"))
    images = torch.rand(1, 3, 32, 32)
    compiled: Any = torch.compile(trained, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images).patches, trained(images).patches)


def test_maes_fixed_positions_are_not_trained() -> None:
    encoder = create_encoder("mae_vitt16", seed=0, width=32, depth=2, heads=2, image_size=64)
    trained = TrainableEncoder(encoder, PixioACTConfig(device="cpu", train_encoder="full"))
    still = [name for name, parameter in trained.backbone.named_parameters() if not parameter.requires_grad]
    assert still == ["pos_embed"]


def test_cached_tokens_do_not_train_an_encoder(kind: str, make: Make, make_batch: Make) -> None:
    policy = make(kind, train_encoder="lora")
    batch = make_batch(policy)
    tokens = policy.eyes.encode([batch[TOP]])[0]
    with pytest.raises(SettingError, match=r"holds cached tokens, but train_encoder='lora'"):
        policy(batch | {TOP: tokens})


def test_lerobots_peft_flags_adapt_the_head(kind: str, make: Make, make_batch: Make, act: Make, tmp_path: Path) -> None:
    """As ``lerobot-train --policy.path=BASE --peft.r=4`` does, and its checkpoint's way back."""
    base = make(kind, task_conditioning="index", tasks=["task 0", "task 1"])
    base.save_pretrained(tmp_path / "base")
    batch = make_batch(base)
    expected = act(base, batch)
    policy = get_policy_class(kind).from_pretrained(tmp_path / "base")
    policy.config.pretrained_path = tmp_path / "base"
    wrapped: Any = policy.wrap_with_peft(peft_cli_overrides={"r": 4, "method_type": "LORA"})
    trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert not any("eyes.encoder" in name for name in trained)
    assert all(
        "lora_" in name or "eyes.adapter.modules_to_save" in name or "task_embedding" in name for name in trained
    )
    assert any("lora_" in name for name in trained)
    assert any("eyes.adapter.modules_to_save" in name for name in trained)
    torch.testing.assert_close(act(wrapped, batch), expected)
    step(wrapped, batch)
    changed = act(wrapped, batch)
    assert not torch.allclose(changed, expected)
    wrapped.save_pretrained(tmp_path / "adapted")
    wrapped.config.save_pretrained(tmp_path / "adapted")
    for pipeline in make_pre_post_processors(wrapped.config):
        pipeline.save_pretrained(tmp_path / "adapted")
    assert not any("backbone" in name for name in load_file(tmp_path / "adapted" / "adapter_model.safetensors"))
    fresh = PeftModel.from_pretrained(
        get_policy_class(kind).from_pretrained(tmp_path / "base"), str(tmp_path / "adapted")
    )
    assert torch.equal(act(fresh, batch), changed)
    assert torch.equal(act(Actor.from_pretrained(tmp_path / "adapted").policy, batch), changed)


@pytest.mark.slow
def test_lerobots_commands_train_and_adapt_a_policy(dataset_root: Path, encoder_folder: Path, tmp_path: Path) -> None:
    """Last blocks and head by ``lerobot-train``; then a frozen policy, to which ``--peft`` adds."""
    script, environment = Path(sys.executable).with_name("lerobot-train"), os.environ | {"HF_HUB_OFFLINE": "1"}
    data = ["--dataset.repo_id=local/walks", f"--dataset.root={dataset_root}", "--dataset.video_backend=pyav"]
    short = ["--batch_size=4", "--steps=2", "--save_freq=2", "--log_freq=1", "--env_eval_freq=0", "--num_workers=0"]
    small = ["--policy.horizon=8", "--policy.n_action_steps=4", "--policy.down_dims=[16,32]", "--policy.n_groups=4"]
    small += ["--policy.feature_dim=32", "--policy.drop_n_last_frames=0", "--policy.task_conditioning=index"]
    fresh = ["--policy.type=pixio_diffusion", f"--policy.encoder={encoder_folder}", *small]
    base = tmp_path / "frozen" / "checkpoints" / "last" / "pretrained_model"
    for name, settings in {
        "blocks": [*fresh, "--policy.train_encoder=last_blocks", "--policy.train_blocks=1"],
        "frozen": fresh,
        "adapted": [f"--policy.path={base}", "--policy.push_to_hub=false", "--peft.r=4"],
    }.items():
        command = [script, "--policy.device=cpu", *data, *short, *settings, f"--output_dir={tmp_path / name}"]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr[-3000:]
    seen = {"pixels": {name: np.zeros((2, 64, 64, 3), np.uint8) for name in ("top", "wrist")}}
    seen |= {"agent_pos": np.zeros((2, 3), np.float32)}
    for name in ("blocks", "adapted"):
        folder = tmp_path / name / "checkpoints" / "last" / "pretrained_model"
        assert np.isfinite(Actor.from_pretrained(folder, task="walk")(seen)).all()


def test_peft_flags_that_could_learn_nothing_are_refused(kind: str, make: Make) -> None:
    policy = make(kind)
    with pytest.raises(ValueError, match=r"pretrained_path"):
        policy.wrap_with_peft(peft_cli_overrides={"r": 4})
    policy.config.pretrained_path = Path("somewhere")
    with pytest.raises(SettingError, match=r"backbone\.blocks\.0\.attn\.qkv' in the encoder, which is frozen"):
        policy.wrap_with_peft(peft_cli_overrides={"r": 4, "target_modules": ["qkv"]})
    policy.config.train_encoder = "lora"
    with pytest.raises(SettingError, match=r"leave --peft out"):
        policy.wrap_with_peft(peft_cli_overrides={"r": 4})
