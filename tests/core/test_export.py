"""Exports: they answer as torch does, and whatever does not is refused."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from pixio_robot import Encoder, VisualFeatureAdapter, create_encoder, learn_keypoints, load_encoder
from pixio_robot.errors import DataError, ExportError, ImageError, SettingError, UnknownNameError
from pixio_robot.export import OnePass, export, load_export, verify
from pixio_robot.export import write as writing
from pixio_robot.export.folder import FACTS, read_facts, write_facts
from pixio_robot.export.samples import sample_cameras, sample_images
from pixio_robot.geometry.depth import DepthModel, DepthSettings
from pixio_robot.hashes import file_sha256

BACKENDS = ("onnxruntime", "openvino")
TINY = {"width": 24, "depth": 2, "heads": 2, "image_size": 32, "patch_size": 8, "class_tokens": 3}


class Made(NamedTuple):
    model: OnePass
    folder: Path
    size: tuple[int, int]


def make_encoder(seed: int = 0, **sizes: int) -> Encoder:
    """An encoder whose weights are large enough for each of them to matter."""
    encoder = create_encoder("pixio_vitt16", seed=seed, **(TINY | sizes))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed + 1)
        for parameter in encoder.backbone.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return encoder


def make_depth(encoder: Encoder, **settings: Any) -> DepthModel:
    torch.manual_seed(0)
    return DepthModel(encoder, DepthSettings(**settings))


def make_adapter(cameras: int, **settings: Any) -> VisualFeatureAdapter:
    torch.manual_seed(1)
    return VisualFeatureAdapter(24, dim=16, cameras=cameras, class_tokens=3, grid=2, **settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Exports by name, each made once, when it is asked for."""
    encoder = make_encoder()
    recipes: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "encoder, any batch, wide": ({}, {"size": (24, 48), "batch": None}),
        "sigmoid depth, floats": (
            {"depth": make_depth(encoder, coding="sigmoid", head="linear")},
            {"images": "float32"},
        ),
        "canonical depth, high, batch 2": (
            {"depth": make_depth(encoder, coding="canonical", rays=True, detail=True)},
            {"size": (40, 24), "batch": 2},
        ),
        "support depth and adapter, two cameras": (
            {"depth": make_depth(encoder, coding="support", head="linear", rays=True), "adapter": make_adapter(2)},
            {},
        ),
    }
    found: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in found:
            parts, settings = recipes[name]
            folder = export(encoder, tmp_path_factory.mktemp("exports") / "model", **parts, **settings)
            found[name] = Made(OnePass(encoder, **parts), folder, settings.get("size", (32, 32)))
        return found[name]

    return make


ALL = "support depth and adapter, two cameras"
WIDE = "encoder, any batch, wide"


def new_inputs(one: Made, batch: int) -> dict[str, Tensor]:
    """Inputs of a model that its self-test does not hold."""
    facts, cameras = read_facts(one.folder), one.model.cameras
    images = sample_images(batch * cameras + 3, one.size)[2:-1].flip(-1)
    intrinsics, poses = (x[5:] for x in sample_cameras(batch * cameras + 5, one.size))
    found = {"images": images, "intrinsics": intrinsics * torch.tensor([[1.1], [1.1], [1]]), "cam2base": poses}
    if facts.inputs["images"]["dtype"] == "float32":
        found["images"] = images / 255
    lead = (batch, cameras) if cameras > 1 else (batch,)
    return {name: found[name].unflatten(0, lead) for name in one.model.inputs}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "batches", "inputs", "outputs"),
    [
        (WIDE, (1, 3), 1, ["classes", "patches"]),
        ("sigmoid depth, floats", (1,), 1, ["classes", "patches", "depth", "confidence"]),
        ("canonical depth, high, batch 2", (2,), 3, ["classes", "patches", "depth", "confidence"]),
        (ALL, (1,), 3, ["classes", "patches", "depth", "confidence", "policy"]),
    ],
)
def test_an_export_answers_new_inputs_as_torch_does(
    made: Callable[[str], Made], backend: str, name: str, batches: tuple[int, ...], inputs: int, outputs: list[str]
) -> None:
    one = made(name)
    loaded = load_export(one.folder, backend, threads=1)
    for batch in batches:
        given = new_inputs(one, batch)
        assert len(given) == inputs
        found, right = loaded(**given), one.model(**given)
        assert list(found.named()) == list(right.named()) == outputs
        assert found.tokens.grid == right.tokens.grid
        for output, value in right.named().items():
            torch.testing.assert_close(found.named()[output], value, atol=1e-4, rtol=0)
            assert value.std() > 1e-3, f"{output} says nothing"


@pytest.mark.parametrize("backend", BACKENDS)
def test_keypoints_answer_for_the_camera_that_a_picture_is_of(tmp_path: Path, backend: str) -> None:
    pictures = sample_images(12, (128, 128))
    keypoints = learn_keypoints(load_encoder("shipped:descriptors"), [pictures[:4], 255 - pictures[4:8]], count=6)
    loaded = load_export(export(keypoints, tmp_path / "model", batch=None), backend, threads=1)
    given = torch.cat([pictures[8:], 255 - pictures[9:]])
    right = keypoints(given).patches
    assert {row[:, -12:-6].any().item() for row in right} == {True, False}  # the first camera's cosines
    torch.testing.assert_close(loaded(images=given).tokens.patches, right, atol=1e-4, rtol=0)


def test_arrays_of_numpy_are_read_and_every_input_matters(made: Callable[[str], Made]) -> None:
    one = made(ALL)
    loaded = load_export(one.folder)
    given = {name: value.numpy() for name, value in new_inputs(one, 1).items()}
    before = loaded(**given).depth
    assert before is not None
    for name, other in zip(("intrinsics", "cam2base"), sample_cameras(2, one.size), strict=True):
        after = loaded(**given | {name: other[None].numpy()}).depth
        assert after is not None
        assert (after.depth - before.depth).abs().max() > 1e-2


def test_an_export_says_what_it_is(made: Callable[[str], Made]) -> None:
    one = made(ALL)
    facts = read_facts(one.folder)
    assert facts.encoder["sha256"] == one.model.encoder.fingerprint
    assert facts.encoder["licence"] == "not stated"
    assert facts.inputs["cam2base"]["shape"] == [1, 2, 4, 4]
    assert facts.outputs["depth"] | {"meaning": ""} == {
        "shape": [1, 2, 32, 32],
        "dtype": "float32",
        "unit": "metres",
        "meaning": "",
    }
    assert read_facts(made(WIDE).folder).outputs["patches"]["shape"] == ["batch", 18, 24]
    assert all(0 < found["depth"] < 1e-4 for found in facts.deviations.values())
    graph = onnx.load(one.folder / "model.onnx").graph
    assert {node.domain for node in graph.node} == {""}
    wide = onnx.load(made(WIDE).folder / "model.onnx").graph
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in (*wide.input, *wide.output)] == ["batch"] * 3


def change_one_weight(path: Path) -> None:
    """Turn the sign of one weight of the largest matrix."""
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data) if tensor.data_type == 1 else 0)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[abs(values).argmax()] *= -1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_changed_weight_is_refused(made: Callable[[str], Made], backend: str, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made(ALL).folder, folder)
    assert verify(folder, [backend])[backend]
    change_one_weight(folder / "model.onnx")
    with pytest.raises(ExportError, match=r"model\.onnx was changed after it was exported"):
        verify(folder, [backend])
    facts = read_facts_unchecked(folder)
    write_facts(folder, replace(facts, files=facts.files | {"model.onnx": file_sha256(folder / "model.onnx")}))
    with pytest.raises(ExportError, match=f"{backend} does not answer as torch does: '.*' of self-test sample"):
        load_export(folder, backend)


def read_facts_unchecked(folder: Path) -> Any:
    """The facts of a folder whose file was changed."""
    from pixio_robot.export.folder import ExportFacts

    return ExportFacts(**json.loads((folder / FACTS).read_text()))


def test_a_wrong_export_is_never_left_behind(
    made: Callable[[str], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = made(WIDE)
    encoder = one.model.encoder

    def write_wrong(model: OnePass, example: object, outputs: object, folder: Path, *, dynamic: bool) -> None:
        shutil.copy(one.folder / "model.onnx", folder)
        change_one_weight(folder / "model.onnx")

    monkeypatch.setattr(writing, "write_onnx", write_wrong)
    with pytest.raises(ExportError, match="does not answer as torch does"):
        export(encoder, tmp_path / "new", size=one.size, batch=None)
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(one.folder, tmp_path / "old")
    with pytest.raises(SettingError, match="--overwrite"):
        export(encoder, tmp_path / "old", size=one.size)
    with pytest.raises(ExportError, match="does not answer as torch does"):
        export(encoder, tmp_path / "old", size=one.size, batch=None, overwrite=True)
    assert verify(tmp_path / "old", ["onnxruntime"])
    monkeypatch.setattr(writing, "write_onnx", lambda *_, **__: shutil.copy(one.folder / "model.onnx", _[3]))
    before = read_facts(tmp_path / "old").made
    export(encoder, tmp_path / "old", size=one.size, batch=None, overwrite=True)
    assert read_facts(tmp_path / "old").made["date"] >= before["date"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_is_cut_short_is_refused(made: Callable[[str], Made], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no exported model: it holds no export\.json"):
        load_export(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(made(WIDE).folder, folder)
    (folder / "selftest.npz").unlink()
    with pytest.raises(ExportError, match=r"holds no selftest\.npz: it was not copied whole"):
        load_export(folder)
    text = (folder / FACTS).read_text()
    (folder / FACTS).write_text(text[:100])
    with pytest.raises(ExportError, match="damaged"):
        load_export(folder)
    (folder / FACTS).write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(ExportError, match="not of format 1"):
        load_export(folder)
    (folder / FACTS).write_text(text.replace('"tolerance"', '"leniency"'))
    with pytest.raises(ExportError, match="leniency"):
        load_export(folder)
    with pytest.raises(SettingError, match="exists and is no export"):
        export(make_encoder(), tmp_path)


def test_missing_packages_are_told_before_any_work(
    made: Callable[[str], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(WIDE).folder
    with monkeypatch.context() as without:
        for backend in BACKENDS:
            without.setitem(sys.modules, backend, None)
            with pytest.raises(ExportError, match=rf'{backend}, which is not .*pip install "pixio-robot\[export\]"'):
                load_export(folder, backend)
        with pytest.raises(ExportError, match=r"onnxruntime.*pip install"):
            export(make_encoder(), tmp_path / "model")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"onnxscript.*pip install"):
        export(make_encoder(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_wrong_calls_are_told(made: Callable[[str], Made]) -> None:
    wide, both = (load_export(made(name).folder) for name in (WIDE, ALL))
    given = new_inputs(made(ALL), 1)
    with pytest.raises(ImageError, match="24 x 48 pixels, not"):
        wide(torch.zeros(1, 3, 48, 24, dtype=torch.uint8))
    with pytest.raises(ImageError, match=r"type uint8, not torch\.float32"):
        wide(torch.zeros(1, 3, 24, 48))
    with pytest.raises(ImageError, match="exported for images"):
        both(**{name: value.expand(2, *value.shape[1:]) for name, value in given.items()})
    with pytest.raises(ImageError, match="Divide by 255"):
        load_export(made("sigmoid depth, floats").folder)(torch.full((1, 3, 32, 32), 99.0))
    with pytest.raises(SettingError, match="has no input 'intrinsics'; it reads images"):
        wide(torch.zeros(1, 3, 24, 48, dtype=torch.uint8), given["intrinsics"])
    with pytest.raises(SettingError, match="needs 'cam2base'"):
        both(given["images"], given["intrinsics"])
    with pytest.raises(DataError, match=r"intrinsics must be \[1, 2, 3, 3\]"):
        both(**given | {"intrinsics": given["intrinsics"][0]})
    with pytest.raises(DataError, match="no rotation"):
        both(**given | {"cam2base": given["cam2base"] * 2 - torch.diag(torch.tensor([0.0, 0, 0, 1]))})
    with pytest.raises(UnknownNameError, match="'openvino'"):
        load_export(made(WIDE).folder, "openvno")
    with pytest.raises(SettingError, match="not 'bfloat16'"):
        load_export(made(WIDE).folder, precision="bfloat16")
    with pytest.raises(SettingError, match="at least 1"):
        load_export(made(WIDE).folder, threads=0)


def test_bfloat16_is_measured_and_not_judged(made: Callable[[str], Made]) -> None:
    loaded = load_export(made(WIDE).folder, "openvino", precision="bfloat16")
    assert loaded.deviations
    assert all(one.absolute < 1 for one in loaded.deviations)


def test_parts_that_cannot_be_exported_are_told(tmp_path: Path) -> None:
    encoder = make_encoder()
    with pytest.raises(SettingError, match="on another encoder"):
        export(encoder, tmp_path / "a", depth=make_depth(make_encoder(5)))
    with pytest.raises(SettingError, match="earlier frames"):
        export(encoder, tmp_path / "a", adapter=make_adapter(1, steps=2))
    with pytest.raises(SettingError, match="5 class tokens, 24 wide; the encoder gives 3"):
        export(encoder, tmp_path / "a", adapter=VisualFeatureAdapter(24, class_tokens=5))
    with pytest.raises(SettingError, match="float32 on the CPU"):
        export(make_encoder().bfloat16(), tmp_path / "a")
    with pytest.raises(ImageError, match="nearest size that can is 32 x 24"):
        export(encoder, tmp_path / "a", size=(30, 24))
    with pytest.raises(SettingError, match="batch=0"):
        export(encoder, tmp_path / "a", batch=0)
    with pytest.raises(UnknownNameError, match="'uint8'"):
        export(encoder, tmp_path / "a", images="uint")  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_one_file_lie_beside_it_and_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixio_robot.export.convert.LARGEST", 1000)
    folder = export(make_encoder(depth=1), tmp_path / "model")
    beside = [name for name in read_facts(folder).files if name not in ("model.onnx", "selftest.npz")]
    assert beside == ["model.onnx.data"]
    assert verify(folder)
    bytes_ = bytearray((folder / beside[0]).read_bytes())
    bytes_[3] ^= 0x80
    (folder / beside[0]).write_bytes(bytes_)
    with pytest.raises(ExportError, match=r"model\.onnx\.data was changed"):
        verify(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("pixio_vitt16", (128, 160)), ("pixio_vitb16", (256, 256))])
def test_real_sizes_pass_the_gate(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    encoder = create_encoder(name, seed=0)
    depth = make_depth(encoder, coding="support", rays=True)
    folder = export(encoder, tmp_path / "model", depth=depth, size=size)
    for deviations in read_facts(folder).deviations.values():
        assert max(deviations.values()) < 1e-4
