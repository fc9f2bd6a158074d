"""The pieces of an export that need no export: the comparison, a policy's adapter, the command line."""

import itertools
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pixio_robot import Encoder, Tokens, VisualFeatureAdapter, create_encoder
from pixio_robot.adapter import ClassRead, PatchRead
from pixio_robot.errors import CheckpointError, ExportError, SettingError
from pixio_robot.export.adapters import describe_adapter, load_adapter
from pixio_robot.export.cli import main
from pixio_robot.export.gate import ask, check, compare
from pixio_robot.export.latency import measure
from pixio_robot.export.samples import sample_cameras, sample_images
from pixio_robot.geometry.cameras import check_intrinsics, check_poses

BLIND = ("none", "none")


def test_a_deviation_says_how_far_and_where() -> None:
    right = {"depth": np.array([[1.0, 8.0], [0.5, 100.0]], dtype=np.float32)}
    found = {"depth": np.array([[1.0, 8.0004], [0.5002, 100.005]], dtype=np.float32)}
    (one,) = compare(found, right)
    assert one.where == (1, 0)
    assert one.absolute == pytest.approx(0.005, rel=1e-2)  # the largest number, which float32 resolves least
    assert one.scaled == pytest.approx(2e-4, rel=1e-2)
    with pytest.raises(
        ExportError, match=r"'depth' of self-test sample 1 is 0\.5002 at \[0\], and torch says 0\.5, off"
    ):
        check([one], "tensorrt")
    check([one], "tensorrt", tolerance=3e-4)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({}, "no output 'depth'"),
        ({"depth": np.zeros(2)}, r"is \[2\], and torch's is \[3\]"),
        ({"depth": np.array([0, np.nan, 0])}, r"nan at \[1\], where torch says 0"),
    ],
)
def test_answers_that_cannot_be_compared_are_refused(found: dict[str, np.ndarray], told: str) -> None:
    with pytest.raises(ExportError, match=told):
        compare(found, {"depth": np.zeros(3)})


def test_samples_are_asked_in_the_batches_of_the_graph() -> None:
    sizes: list[int] = []

    def session(feed: Any) -> dict[str, np.ndarray]:
        sizes.append(len(feed["images"]))
        return {"double": 2 * feed["images"]}

    inputs = {"images": np.arange(4)}
    for batch in (None, 1, 2):
        np.testing.assert_array_equal(ask(session, inputs, batch)["double"], [0, 2, 4, 6])
    assert sizes == [1, 3, 1, 1, 1, 1, 2, 2]


def test_samples_are_pictures_and_cameras_that_can_be() -> None:
    images = sample_images(4, (48, 64))
    assert images.shape == (4, 3, 48, 64)
    steps = images.float().diff(dim=-1).abs().mean(dim=(1, 2, 3))
    assert (steps[:3] < 20).all()  # neighbours in a picture are alike
    assert steps[3] > 60  # in noise they are not
    intrinsics, poses = sample_cameras(12, (48, 64))
    check_intrinsics(intrinsics, (48, 64))
    check_poses(poses)
    assert len(intrinsics.unique(dim=0)) == len(poses.unique(dim=0)) == 12


FORMS = [pair for pair in itertools.product(get_args(ClassRead), get_args(PatchRead)) if pair != BLIND]


@pytest.mark.parametrize(("classes", "patches"), FORMS)
@pytest.mark.parametrize(("output", "standardize"), [("tokens", True), ("vector", True), ("tokens", False)])
def test_an_adapter_is_built_again_from_its_description(
    classes: Any, patches: Any, output: Any, standardize: bool
) -> None:
    form = {"classes": classes, "patches": patches, "output": output, "standardize": standardize}
    made = VisualFeatureAdapter(32, dim=16, cameras=2, class_tokens=3, grid=3, patch_count=36, **form)
    described = describe_adapter(made)
    again = VisualFeatureAdapter(**json.loads(json.dumps(described)))
    tokens = [Tokens(torch.randn(2, 3, 32), torch.randn(2, 36, 32), (6, 6)) for _ in range(2)]
    made(tokens)  # takes note of what there is to standardise
    again.load_state_dict(made.state_dict())
    torch.testing.assert_close(again.eval()(tokens), made.eval()(tokens))


def write_policy(folder: Path, encoder: Encoder, adapter: VisualFeatureAdapter, **settings: Any) -> Path:
    """A checkpoint as lerobot_policy_pixio writes it, without its head."""
    folder.mkdir()
    shape = {"type": "VISUAL", "shape": [3, 64, 64]}
    config = {
        "type": "pixio_act",
        "input_features": {"images.top": shape, "images.wrist": shape, "state": {"type": "STATE", "shape": [4]}},
        "encoder": "mine",
        "encoder_hash": encoder.fingerprint,
        "image_size": None,
        "train_encoder": "frozen",
        "classes": "mean",
        "patches": "attention",
        "grid": 2,
        "standardize": adapter.standardize,
    }
    (folder / "config.json").write_text(json.dumps(config | settings))
    state = {f"eyes.adapter.{name}": value for name, value in adapter.state_dict().items()}
    save_file(state | {"model.head.weight": torch.zeros(3)}, folder / "model.safetensors")
    return folder


ATTENTIVE: dict[str, Any] = {"cameras": 2, "class_tokens": 3, "classes": "mean", "patches": "attention", "grid": 2}


@pytest.mark.parametrize(("output", "patch_count"), [("tokens", 16), ("vector", 16), ("tokens", None)])
def test_a_policys_adapter_is_read_from_its_checkpoint(
    encoder: Encoder, output: Any, patch_count: int | None, tmp_path: Path
) -> None:
    form = ATTENTIVE | {"output": output, "patch_count": patch_count, "standardize": patch_count is not None}
    made = VisualFeatureAdapter(32, dim=16, **form)
    made([Tokens(torch.randn(4, 3, 32), torch.randn(4, 16, 32), (4, 4)) for _ in range(2)])
    made.eval()
    eyes = load_adapter(write_policy(tmp_path / "policy", encoder, made), encoder)
    assert eyes.size == (64, 64)
    assert eyes.cameras == ["images.top", "images.wrist"]
    tokens = [Tokens(torch.randn(1, 3, 32), torch.randn(1, 16, 32), (4, 4)) for _ in range(2)]
    torch.testing.assert_close(eyes.adapter(tokens), made(tokens))


def test_a_policy_whose_adapter_cannot_be_used_is_told(encoder: Encoder, tmp_path: Path) -> None:
    made = VisualFeatureAdapter(32, dim=16, patch_count=16, standardize=True, **ATTENTIVE)
    with pytest.raises(CheckpointError, match="no pretrained_model folder"):
        load_adapter(tmp_path, encoder)
    folder = write_policy(tmp_path / "trained", encoder, made, train_encoder="lora")
    with pytest.raises(CheckpointError, match="trained its encoder"):
        load_adapter(folder, encoder)
    folder = write_policy(tmp_path / "other", encoder, made, encoder_hash="0" * 64)
    with pytest.raises(CheckpointError, match=r"trained on the encoder 'mine' \(sha256 000000000000"):
        load_adapter(folder, encoder)
    folder = write_policy(tmp_path / "settings", encoder, made, patches="average")
    with pytest.raises(CheckpointError, match="settings promise"):
        load_adapter(folder, encoder)
    save_file({"model.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="'pixio_act' without an adapter of ours"):
        load_adapter(folder, encoder)
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="truncated"):
        load_adapter(folder, encoder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes of a stored encoder."""
    root = tmp_path_factory.mktemp("command")
    create_encoder("pixio_vitt16", seed=0, width=32, depth=1, heads=4, image_size=32).save_pretrained(root / "encoder")
    assert main([str(root / "encoder"), str(root / "out"), "--size", "32", "48"]) == 0
    return root / "out"


def test_the_command_writes_checks_and_times(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "every file is as it was written" in told
    assert "openvino: largest difference from torch: classes" in told
    assert main(["latency", str(folder), "--rounds", "2", "--backend", "onnxruntime", "--bfloat16"]) == 0
    assert "| onnxruntime | float32 |" in capsys.readouterr().out
    report = json.loads((folder / "latency.json").read_text())
    assert [(row["arm"], row["precision"]) for row in report["latency"]] == [
        ("torch, eager", "float32"),
        ("onnxruntime", "float32"),
        ("openvino", "bfloat16"),
    ]
    assert report["latency"][0]["speedup"] == 1
    assert all(0 < row["median"] <= row["p95"] for row in report["latency"])
    assert main(["verify", str(folder)]) == 0  # a report beside it does no harm


def test_the_command_tells_what_is_wrong(folder: Path) -> None:
    with pytest.raises(SystemExit, match="pixio-export: "):
        main([str(folder.parent / "encoder"), str(folder)])
    with pytest.raises(SystemExit, match="no exported model"):
        main(["verify", str(folder.parent)])
    with pytest.raises(SettingError, match="rounds=0"):
        measure(folder, rounds=0)


@pytest.mark.parametrize(
    ("command", "told"),
    [([], "verify outputs/eyes"), (["write"], "0 leaves it"), (["verify"], "not sound"), (["latency"], "--rounds")],
)
def test_help_explains(command: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert told in capsys.readouterr().out
