"""Weights on disk: three layouts in, one out, and what is refused."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PixioModel

from pixio_robot import create_encoder, load_encoder
from pixio_robot.checkpoints import SHIPPED
from pixio_robot.errors import CheckpointError, UnknownNameError
from pixio_robot.images import normalize


def states_equal(one, other) -> bool:
    left, right = one.backbone.state_dict(), other.backbone.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_a_round_trip_through_transformers_is_bit_equal(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "ours")
    PixioModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    back = load_encoder(tmp_path / "theirs")
    assert states_equal(encoder, back)
    assert back.fingerprint == encoder.fingerprint
    assert back.spec == encoder.spec


@pytest.mark.parametrize("spelling", ["encoder.layer.{}.attention.attention.{}", "encoder.layer.{}.attention.{}_proj"])
def test_both_spellings_of_query_key_value_are_read(encoder, tmp_path, spelling):
    encoder.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    renamed = {}
    for key, value in state.items():
        for part in ("query", "key", "value"):
            old = f".attention.attention.{part}."
            if old in key:
                name = part[0] if "_proj" in spelling else part
                key = spelling.format(key.split(".")[2], name) + "." + key.rsplit(".", 1)[1]
        renamed[key] = value
    save_file(renamed, tmp_path / "model.safetensors")
    assert states_equal(encoder, load_encoder(tmp_path))


@pytest.mark.parametrize("wrapped", [False, True])
def test_metas_layout_is_read_bit_equal_and_its_decoder_ignored(encoder, tmp_path, wrapped):
    state = dict(encoder.backbone.state_dict()) | {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_norm.weight": torch.ones(8),
    }
    torch.save({"model": state, "epoch": 3} if wrapped else state, tmp_path / "pixio.pth")
    back = load_encoder(tmp_path / "pixio.pth", heads=4)
    assert states_equal(encoder, back)
    assert back.spec == encoder.spec


def test_metas_layout_of_a_published_size_needs_no_head_count(tmp_path):
    encoder = create_encoder("pixio_vitt16", seed=0)
    torch.save(encoder.backbone.state_dict(), tmp_path / "tiny.pth")
    assert load_encoder(tmp_path / "tiny.pth").spec == encoder.spec


def test_metas_layout_of_an_unknown_size_asks_for_the_head_count(encoder, tmp_path):
    torch.save(encoder.backbone.state_dict(), tmp_path / "pixio.pth")
    with pytest.raises(CheckpointError, match="pass heads="):
        load_encoder(tmp_path / "pixio.pth")


def test_half_precision_halves_the_file_and_computes_in_float32(encoder, images, tmp_path):
    encoder.save_pretrained(tmp_path / "full")
    encoder.save_pretrained(tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    half = load_encoder(tmp_path / "half")
    assert half(images).patches.dtype == torch.float32
    assert half.fingerprint == half.provenance["sha256"] != encoder.fingerprint
    cast = load_encoder(tmp_path / "half", dtype=torch.bfloat16)
    assert cast.fingerprint == half.fingerprint
    assert cast(images).patches.dtype == torch.bfloat16


def test_weights_split_over_files_are_read_until_others_take_their_place(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: state[key] for key in keys}, tmp_path / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors").unlink()
    assert states_equal(encoder, load_encoder(tmp_path))
    other = encoder.redrawn(1)
    other.save_pretrained(tmp_path)
    assert states_equal(other, load_encoder(tmp_path))


def test_the_licence_of_a_model_card_is_known(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A card\n")
    assert load_encoder(tmp_path).provenance["licence"] == "apache-2.0"


def test_weights_changed_behind_the_recorded_hash_are_told(encoder, tmp_path, caplog):
    encoder.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["layernorm.bias"] = state["layernorm.bias"] + 1
    save_file(state, tmp_path / "model.safetensors")
    changed = load_encoder(tmp_path)
    assert "were changed" in caplog.text
    assert changed.provenance["sha256"] == changed.fingerprint


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


def test_a_pickle_with_code_is_never_executed(tmp_path):
    torch.save({"model": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        load_encoder(tmp_path / "bomb.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(CheckpointError, match="could run code"):
        load_encoder(tmp_path / "bare.pth")


def test_truncated_files_are_refused(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "folder")
    weights = tmp_path / "folder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_encoder(tmp_path / "folder")
    torch.save(encoder.backbone.state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_encoder(tmp_path / "cut.pth")


def test_foreign_checkpoints_are_refused(encoder, tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "linear.pth")
    with pytest.raises(CheckpointError, match="neither a Pixio nor an MAE encoder"):
        load_encoder(tmp_path / "linear.pth")
    encoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="'bert'"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(CheckpointError, match="promise"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_encoder(tmp_path)


def test_missing_checkpoints_are_told_apart(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_encoder(tmp_path / "nothing.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_encoder(tmp_path / "empty")
    with pytest.raises(UnknownNameError, match="Did you mean 'pixio_vitb16'"):
        load_encoder("pixio_vit_b16")
    with pytest.raises(CheckpointError, match="create_encoder"):
        load_encoder("pixio_vits16")
    with pytest.raises(UnknownNameError, match="shipped encoder"):
        load_encoder("shipped:pixio_vitg16")


@pytest.mark.parametrize("name", sorted(folder.name for folder in SHIPPED.iterdir()))
def test_what_ships_is_whole(name):
    encoder = load_encoder(f"shipped:{name}")
    written = json.loads((SHIPPED / name / "config.json").read_text())["pixio_robot"]
    assert encoder.fingerprint == written["sha256"]
    card = (SHIPPED / name / "README.md").read_text()
    assert f"# {name}\n" in card
    assert f"library_name: {'pixio-robot' if name == 'descriptors' else 'transformers'}\n" in card


@pytest.mark.parametrize("name", ["pixio_vitt16", "mae_vitt16"])
def test_transformers_reads_the_same_of_what_ships(name):
    encoder = load_encoder(f"shipped:{name}")
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    their = AutoModel.from_pretrained(SHIPPED / name, dtype=torch.float32).eval()
    masked = {"noise": torch.arange(64.0).expand(2, -1)} if name.startswith("mae") else {}  # nothing hidden, in order
    if masked:
        their.config.mask_ratio = 0.0
    with torch.no_grad():
        expected = their(normalize(images, torch.float32), **masked).last_hidden_state
        tokens = encoder(images)
    torch.testing.assert_close(torch.cat([tokens.classes, tokens.patches], dim=1), expected)


def test_what_ships_is_small():
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) <= 40e6


def test_a_folder_that_holds_one_encoder_names_it(encoder, tmp_path):
    with pytest.raises(CheckpointError, match="pixio-pretrain export"):
        load_encoder(tmp_path)
    for step, one in ((200, encoder.redrawn(1)), (400, encoder)):  # by `pixio-pretrain export`
        one.save_pretrained(tmp_path / "exported" / f"step-{step:08d}" / "encoder")
    assert load_encoder(tmp_path).fingerprint == encoder.fingerprint
    encoder.redrawn(2).save_pretrained(tmp_path / "student")
    assert load_encoder(tmp_path).fingerprint == encoder.redrawn(2).fingerprint
    encoder.save_pretrained(tmp_path / "teacher")
    with pytest.raises(CheckpointError, match=r"several encoders; name one: .*student, .*teacher"):
        load_encoder(tmp_path)


def test_an_unreachable_hub_is_told(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="hub cannot be reached"):
        load_encoder("facebook/pixio-that-is-not-there")


def test_a_failed_write_leaves_the_old_encoder_whole(encoder, tmp_path, monkeypatch):
    encoder.save_pretrained(tmp_path)
    before = encoder.fingerprint

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("pixio_robot.checkpoints.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        create_encoder("pixio_vitt16", seed=9).save_pretrained(tmp_path)
    assert load_encoder(tmp_path).fingerprint == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
