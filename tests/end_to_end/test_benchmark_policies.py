"""What the benchmark trains: every arm under every policy, on a data set of random walks, without a simulator."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark.acting import HistoryActor, open_actor
from benchmark.arms import Sight, draw_cnn, open_sight
from benchmark.configuration_pixio_mlp import PixioMLPConfig
from benchmark.pictures import copy_picture, draw_patches
from benchmark.recipes import check_arms, configure, soften
from benchmark.remembering import EARLIER
from benchmark.settings import Benchmark
from benchmark.tasks import check_features
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.feature_utils import dataset_to_policy_features
from PIL import Image
from safetensors.torch import load_file

from lerobot_policy_pixio.acting import Actor
from lerobot_policy_pixio.augmentation import ImageAugmentation
from lerobot_policy_pixio.cached_tokens import cache_settings
from lerobot_policy_pixio.decoded import DecodedFrames, decode_frames
from lerobot_policy_pixio.demonstrations import Demonstrations
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.training import make_policy, make_processors, train
from pixio_robot import build_cache, create_encoder
from pixio_robot.checkpoints import SHIPPED
from pixio_robot.errors import DataError, SettingError, UnknownNameError
from pixio_robot.images import resize

SIDE, STATE = 64, 7
CAMERA = "observation.images.top"
MODEL = Path("checkpoints", "last", "pretrained_model")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> DatasetFrames:
    """Three walks of 9 steps; what the whole state tells last hardly varies."""
    root = tmp_path_factory.mktemp("data") / "walks"
    image = {"dtype": "video", "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": (3,), "names": None}
    features = {"observation.state": vector, "action": vector, CAMERA: image}
    features["observation.environment_state"] = {"dtype": "float32", "shape": (STATE,), "names": None}
    dataset = LeRobotDataset.create(
        "local/walks", fps=10, features=features, root=root, rgb_encoder=RGBEncoderConfig(vcodec="h264")
    )
    random = np.random.default_rng(0)
    for _ in range(3):
        for _ in range(9):
            whole = random.normal(0, [1] * (STATE - 1) + [1e-5]).astype(np.float32)
            picture = random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
            told = {"observation.environment_state": whole, "observation.state": whole[:3], "action": whole[3:6]}
            dataset.add_frame({**told, CAMERA: picture, "task": "walk"})
        dataset.save_episode()
    dataset.finalize()
    opened = DatasetFrames(root)
    soften(opened.dataset.meta.stats)  # type: ignore[arg-type]
    return opened


@pytest.fixture(scope="module")
def pixio(tmp_path_factory: pytest.TempPathFactory) -> Sight:
    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    create_encoder("pixio_vitt16", seed=0, width=32, depth=2, heads=2, image_size=SIDE).save_pretrained(folder)
    return open_sight(
        config({"pixio": str(folder)}, folder), "pixio", 0, pictures=lambda *_, **__: [torch.empty(0)], shared=folder
    )


def config(arms: dict[str, str], folder: Path, **settings: Any) -> Benchmark:
    return Benchmark(folder=str(folder / "benchmark"), arms=arms, size=SIDE, **settings)


def settings(policy: str, sight: Sight, frames: DatasetFrames, suite: str = "metaworld") -> Any:
    features = dataset_to_policy_features(frames.dataset.features)
    del features["action"]
    return configure(policy, sight, features, suite=suite, steps=4, device="cpu")


def observe(frames: DatasetFrames, rows: list[int]) -> dict[str, Any]:
    """What a ``RememberingEnv`` shows at some frames, none of them among the first two of an episode."""
    pictures = frames.read(CAMERA, 0, len(frames)).permute(0, 2, 3, 1).numpy()
    table: Any = frames.dataset.hf_dataset.with_format("numpy")[:]
    return {
        "pixels": {"top": pictures[rows]},
        f"{EARLIER}top": np.stack([pictures[row - 2 : row] for row in rows]),
        "agent_pos": np.stack(list(table["observation.state"]))[rows],
        "environment_state": np.stack(list(table["observation.environment_state"]))[rows],
    }


@pytest.mark.parametrize("policy", ["act", "diffusion", "mlp"])
def test_every_arm_reads_what_is_its_own_and_acts(
    policy: str, frames: DatasetFrames, pixio: Sight, tmp_path: Path
) -> None:
    whole, eyes = "observation.environment_state", CAMERA
    for name, sight, read in (
        ("pixio", pixio, {eyes}),
        ("blind", Sight(), set()),
        ("state", Sight(state=True), {whole}),
    ):
        chosen, cache = settings(policy, sight, frames), None
        assert set(chosen.input_features) == {"observation.state", *read}
        if sight.encoder is not None:
            cache = tmp_path / "cache"
            build_cache(cache, sight.encoder, frames, grid=chosen.grid)
        train(chosen, frames, cache, tmp_path / name, steps=2, batch_size=4, encoder=sight.encoder)
        actor = open_actor(policy, tmp_path / name / MODEL, device="cpu")
        seen = observe(frames, [4, 20])
        if policy != "mlp":
            del seen[f"{EARLIER}top"]
        torch.manual_seed(0)
        actions = actor(seen)
        assert actions.shape == (2, 1 if policy == "mlp" else 8, 3)
        torch.manual_seed(0)
        changed = actor(seen | {"environment_state": seen["environment_state"] + 1})
        assert (actions != changed).any() == (name == "state")
        torch.manual_seed(0)
        dark = actor(seen | {"pixels": {"top": np.zeros_like(seen["pixels"]["top"])}})
        assert (actions != dark).any() == (name == "pixio")


def test_a_picture_shows_what_the_patches_of_a_policys_own_encoder_say(
    frames: DatasetFrames, pixio: Sight, tmp_path: Path
) -> None:
    policies = [make_policy(settings("act", pixio, frames), frames, seed=0) for _ in range(2)]
    with torch.no_grad():
        policies[1].eyes.encoder.backbone.patch_embed.proj.weight.zero_()
    shown = []
    for number, policy in enumerate(policies):
        draw_patches(tmp_path / f"{number}.png", policy.eyes, frames)
        shown.append(np.asarray(Image.open(tmp_path / f"{number}.png")))
    seen, said = np.split(shown[0], 2)
    assert seen.shape == said.shape == (128, 2 * 128, 3)
    patch = 128 // (SIDE // 16)
    cells = said.reshape(4, patch, 8, patch, 3)
    assert (cells == cells[:, :1, :, :1]).all(), "one colour per patch"
    assert len(np.unique(cells[:, 0, :, 0].reshape(-1, 3), axis=0)) > 16
    assert (shown[0][:128] == shown[1][:128]).all()
    assert (shown[0][128:] != shown[1][128:]).any()


def test_the_picture_that_pre_training_left_is_found_beside_an_encoder_and_may_be_missing(tmp_path: Path) -> None:
    copy_picture(tmp_path / "shipped.png", "shipped:pixio_vitt16")
    assert (tmp_path / "shipped.png").read_bytes() == (SHIPPED / "pixio_vitt16" / "picture.png").read_bytes()
    (tmp_path / "run" / "encoder").mkdir(parents=True)
    copy_picture(tmp_path / "mine.png", str(tmp_path / "run"))
    assert not (tmp_path / "mine.png").exists()
    (tmp_path / "run" / "encoder" / "picture.png").write_bytes(b"seen")
    copy_picture(tmp_path / "mine.png", str(tmp_path / "run"))
    assert (tmp_path / "mine.png").read_bytes() == b"seen"
    copy_picture(tmp_path / "hub.png", "facebook/pixio-vitb16")
    assert not (tmp_path / "hub.png").exists()


def test_a_policy_of_three_frames_acts_as_it_was_trained_and_encodes_no_frame_twice(
    frames: DatasetFrames, pixio: Sight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings("mlp", pixio, frames)
    assert (chosen.classes, chosen.patches) == ("mean", "none")
    assert pixio.encoder is not None
    build_cache(tmp_path / "cache", pixio.encoder, frames, grid=chosen.grid)
    facts: dict[str, Any] = {"steps": 3, "batch_size": 8, "encoder": pixio.encoder}
    policy, _ = train(chosen, frames, tmp_path / "cache", tmp_path / "run", **facts)
    actor: Any = open_actor("mlp", tmp_path / "run" / MODEL, device="cpu")
    assert isinstance(actor, HistoryActor)
    demonstrations = Demonstrations(frames, policy, make_processors(policy, frames)[0], tmp_path / "cache")
    with torch.no_grad():
        trained = policy.predict_action_chunk(demonstrations.gather(torch.tensor([4, 20]))).numpy()
    encoded: list[int] = []
    encode = actor.policy.eyes.encode

    def count(views: list[Any]) -> Any:
        encoded.extend(len(view) for view in views if torch.is_tensor(view))
        return encode(views)

    monkeypatch.setattr(actor.policy.eyes, "encode", count)
    np.testing.assert_allclose(actor(observe(frames, [4, 20])), trained, atol=2e-3)  # the cache holds half precision
    assert encoded == [6]
    actor(observe(frames, [5, 21]))
    assert encoded == [6, 2]


def test_the_three_frame_policy_says_who_remembers_frames_for_it(frames: DatasetFrames) -> None:
    policy: Any = make_policy(settings("mlp", Sight(), frames), frames, seed=0)
    with pytest.raises(SettingError, match=r"let benchmark\.acting\.HistoryActor act"):
        policy.select_action({"observation.state": torch.zeros(1, 3)})


@pytest.mark.parametrize("policy", ["act", "mlp"])
def test_the_cnn_learns_from_decoded_frames_and_a_killed_training_ends_the_same(
    policy: str, frames: DatasetFrames, tmp_path: Path
) -> None:
    sight = open_sight(
        config({}, tmp_path), "cnn", 3, pictures=lambda *_, **__: [frames.read(CAMERA, 0, 16)], shared=tmp_path
    )
    assert sight.trained
    chosen, seen = settings(policy, sight, frames), {"variants": 1, "augment": ImageAugmentation()}
    pixels = decode_frames(frames, tmp_path / "frames", **seen)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "frames").iterdir()}
    facts: dict[str, Any] = {"steps": 4, "batch_size": 4, "seed": 3, "save_every": 2, "encoder": sight.encoder}
    whole = train(chosen, frames, None, tmp_path / "whole", pixels=pixels, **facts)[1]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "frames").iterdir()} == before

    train(chosen, frames, None, tmp_path / "killed", pixels=pixels, **facts)
    shutil.rmtree(max((tmp_path / "killed" / "checkpoints").glob("[0-9]*")))  # as if killed after the second step
    pixels = decode_frames(frames, tmp_path / "frames", **seen)
    clean = DecodedFrames(images={camera: one[:1] for camera, one in pixels.images.items()})
    other = replace(pixels, augmentation={"tfs": {}})
    for wrong, differs in ((clean, "cache_variants"), (other, "cache_augmentation")):
        with pytest.raises(SettingError, match=differs):
            train(chosen, frames, None, tmp_path / "killed", pixels=wrong, **facts)
    again = train(chosen, frames, None, tmp_path / "killed", pixels=pixels, **facts)[1]
    assert again[-1]["loss"] == whole[-1]["loss"]
    one, two = (load_file(tmp_path / name / MODEL / "model.safetensors") for name in ("whole", "killed"))
    assert any(name.startswith("eyes.encoder") for name in one)
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=0, atol=0)
    assert sight.encoder is not None
    fresh = {f"eyes.encoder.{name}": weight for name, weight in sight.encoder.state_dict().items()}
    assert any((one[name] != weight).any() for name, weight in fresh.items() if "convolution.weight" in name)
    actor: Actor = open_actor(policy, tmp_path / "whole" / MODEL, device="cpu")
    seen = observe(frames, [4])
    if policy != "mlp":
        del seen[f"{EARLIER}top"]
    assert np.isfinite(actor(seen)).all()


def test_an_arm_has_options_of_its_own_and_a_tuned_encoder_begins_as_it_was_trained(
    frames: DatasetFrames, pixio: Sight, tmp_path: Path
) -> None:
    assert pixio.encoder is not None
    arms, options = {"keys": pixio.source, "tuned": pixio.source}, {"keys": {"patches": "spatial_softmax", "grid": 3}}
    options |= {"tuned": {"train_encoder": "last_blocks", "train_blocks": 1, "optimizer_lr_encoder": 1e-3}}
    made = config(arms, tmp_path, options=options, encoder_dtype="bfloat16")
    keys, tuned = (
        open_sight(made, arm, 0, pictures=lambda *_, **__: [torch.empty(0)], shared=tmp_path)
        for arm in ("keys", "tuned")
    )
    control = open_sight(made, "random", 0, pictures=lambda *_, **__: [torch.empty(0)], shared=tmp_path)
    assert control.options == options["keys"]  # random weights are read as the arm that they are the control of
    assert keys.encoder is not None
    assert tuned.encoder is not None
    assert (keys.trained, next(keys.encoder.parameters()).dtype) == (False, torch.bfloat16)
    assert (tuned.trained, next(tuned.encoder.parameters()).dtype) == (True, torch.float32)
    chosen = settings("act", keys, frames)
    assert (chosen.patches, chosen.grid, chosen.cached_grid) == ("spatial_softmax", 3, None)
    chosen = settings("act", tuned, frames)
    assert (chosen.patches, chosen.grid, chosen.cached_grid) == ("average", 4, 4)
    large = replace(keys, options={"image_size": 2 * SIDE})
    chosen_large = settings("act", large, frames)
    assert (chosen_large.image_size, chosen_large.grid) == (2 * SIDE, 2 * SIDE // 16)
    facts: dict[str, Any] = {"steps": 2, "batch_size": 4, "seed": 0, "save_every": 2}
    cache = tmp_path / "cache"
    build_cache(cache, pixio.encoder, frames, **cache_settings(chosen_large, pixio.encoder, frames))
    train(chosen_large, frames, cache, tmp_path / "large", encoder=pixio.encoder, **facts)
    facts["encoder"] = tuned.encoder
    train(chosen, frames, None, tmp_path / "run", pixels=decode_frames(frames, tmp_path / "frames"), **facts)
    ended = load_file(tmp_path / "run" / MODEL / "model.safetensors")
    moved = {
        name
        for name, weight in tuned.encoder.state_dict().items()
        if (ended.get(f"eyes.encoder.{name}", weight) != weight).any()
    }
    assert moved
    assert all(name.startswith(("backbone.blocks.1.", "backbone.norm.")) for name in moved)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"patches": "spatial_sofmax"}, "Did you mean 'spatial_softmax'"),
        ({"grid": 0}, "grid must be at least 1"),
        ({"grid": 5}, "4 x 4 at 64 pixels: set grid to 4 at most, or image_size to 80"),
        ({"patches": "merge", "grid": 3}, "needs 6 x 6 patches .* set grid to 2 at most"),
        ({"image_size": 100}, "nearest size that can is 96 x 96"),
        ({"classes": "none", "patches": "none"}, "leave the policy blind"),
        ({"train_encoder": "fulll"}, "Did you mean 'full'"),
    ],
)
def test_options_that_do_not_fit_an_arm_are_refused_before_anything_is_run(
    options: dict[str, Any], told: str, pixio: Sight, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"policies": ["act"], "seeds": [0]}
    check_arms(config({"pixio": pixio.source}, tmp_path, **keys))
    with pytest.raises(SettingError, match=rf"arms\.pixio=.* with options\.pixio=.*{told}"):
        check_arms(config({"pixio": pixio.source}, tmp_path, **keys, options={"pixio": options}))
    with pytest.raises(SettingError, match="the arm cnn with"):
        check_arms(config({"pixio": pixio.source}, tmp_path, **keys, options={"cnn": {"patches": "merrge"}}))
    assert not (tmp_path / "benchmark").exists()


def test_live_batches_show_the_frames_of_their_rows(frames: DatasetFrames, tmp_path: Path) -> None:
    sight = open_sight(
        config({}, tmp_path), "cnn", 0, pictures=lambda *_, **__: [frames.read(CAMERA, 0, 16)], shared=tmp_path
    )
    policy = make_policy(settings("mlp", sight, frames), frames, seed=0, encoder=sight.encoder)
    pixels = decode_frames(frames, tmp_path / "frames")
    live = Demonstrations(frames, policy, make_processors(policy, frames)[0], pixels=pixels)
    batch = live.gather(torch.tensor([9, 13]))  # the second episode's first frame, and its fifth
    stored = frames.read(CAMERA, 0, len(frames))
    torch.testing.assert_close(batch[CAMERA], stored[torch.tensor([[9, 9, 9], [11, 12, 13]])])


def test_frozen_encoders_compute_in_the_type_that_is_asked_for_and_keep_their_name(tmp_path: Path) -> None:
    create_encoder("pixio_vitt16", depth=1, width=24, heads=3, image_size=SIDE).save_pretrained(tmp_path / "encoder")
    settings = config({"pixio": str(tmp_path / "encoder")}, tmp_path)
    found = {}
    for settings.encoder_dtype in ("float32", "bfloat16"):
        for arm in ("pixio", "random", "cnn"):
            sight = open_sight(
                settings, arm, 0, pictures=lambda *_, **__: [torch.zeros(8, 3, SIDE, SIDE).byte()], shared=tmp_path
            )
            assert sight.encoder is not None
            found[arm, settings.encoder_dtype] = sight.encoder
            wanted = "float32" if arm == "cnn" else settings.encoder_dtype  # it is trained
            assert next(sight.encoder.parameters()).dtype == getattr(torch, wanted)
    assert all(encoder.fingerprint == found[arm, "float32"].fingerprint for (arm, _), encoder in found.items())


def test_a_fresh_cnn_follows_its_seed_and_its_statistics_are_those_of_the_frames() -> None:
    random = torch.randint(0, 256, (24, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, again, other = draw_cnn(0, random), draw_cnn(0, random), draw_cnn(1, random)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    means = {name: value for name, value in first.backbone.state_dict().items() if name.endswith("running_mean")}
    assert means
    assert all((value != 0).any() for value in means.values())


def test_a_palette_says_where_colours_are_and_is_an_encoder_like_any_other(
    frames: DatasetFrames, tmp_path: Path
) -> None:
    def show(row: int, column: int, *, background: int) -> torch.Tensor:
        picture = torch.full((3, SIDE, SIDE), background, dtype=torch.uint8)
        picture[:, row : row + 4, column : column + 4] = torch.tensor([250, 10, 10]).view(3, 1, 1)
        return picture

    where = [(8 * number, 60 - 8 * number) for number in range(8)]
    shown = [torch.stack([show(*place, background=grey) for place in where]) for grey in (90, 160)]  # two cameras
    made = config({"colours": "colors:2"}, tmp_path)
    sight = open_sight(made, "colours", 0, pictures=lambda *_, **__: shown, shared=tmp_path)
    assert sight.encoder is not None
    assert not sight.trained
    for camera in shown:
        tokens = sight.encoder(camera)
        assert tokens.patches.shape == (8, 1, 6)
        red = tokens.patches[:, 0, :4].unflatten(1, (2, 2)).abs().sum(dim=2).argmax(dim=1)  # the other is nowhere
        found = tokens.patches[torch.arange(8), 0, :4].unflatten(1, (2, 2))[torch.arange(8), red]
        wanted = torch.tensor(
            [[2 * (column + 1.5) / (SIDE - 1) - 1, 2 * (row + 1.5) / (SIDE - 1) - 1] for row, column in where]
        )
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    again = open_sight(made, "colours", 1, pictures=lambda *_, **__: [], shared=tmp_path)  # every seed has the same
    assert again.encoder is not None
    assert again.encoder.fingerprint == sight.encoder.fingerprint
    with pytest.raises(SettingError, match="reads pictures of 64 x 64"):
        sight.encoder(torch.zeros(1, 3, 2 * SIDE, 2 * SIDE))

    chosen = replace(settings("diffusion", sight, frames), standardize=True)
    assert chosen.grid == 1
    facts = cache_settings(chosen, sight.encoder, frames)
    build_cache(tmp_path / "cache", sight.encoder, frames, **facts)
    train(chosen, frames, tmp_path / "cache", tmp_path / "run", steps=2, batch_size=4, seed=0, encoder=sight.encoder)
    assert (
        open_actor("diffusion", tmp_path / "run" / MODEL, device="cpu").policy.eyes.encoder.spec.family
        == "pixio_palette"
    )


def test_a_palette_without_a_number_is_refused_before_anything_runs(tmp_path: Path) -> None:
    for wrong in ("colors:", "colors:many", "colors:0"):
        with pytest.raises(SettingError, match=rf"arms\.mine={wrong}.*such as colors:64"):
            check_arms(config({"mine": wrong}, tmp_path, without=["random", "cnn", "blind", "state"]))
    check_arms(config({"mine": "colors:8"}, tmp_path, without=["random", "cnn", "blind", "state"]))


def test_act_plans_farther_where_control_is_finer(frames: DatasetFrames) -> None:
    near, far = (settings("act", Sight(state=True), frames, suite) for suite in ("metaworld", "aloha"))
    assert (near.chunk_size, near.n_action_steps, far.chunk_size, far.n_action_steps) == (16, 8, 100, 50)


def test_what_hardly_varies_is_not_blown_up(frames: DatasetFrames) -> None:
    stats: Any = frames.dataset.meta.stats
    deviations = stats["observation.environment_state"]["std"]
    assert deviations[-1] == 0.01
    assert (deviations[:-1] > 0.5).all()


def test_a_data_set_of_another_robot_is_refused_with_what_differs(frames: DatasetFrames) -> None:
    there = frames.dataset.features
    fits = {CAMERA: (16, 16, 3), "observation.state": (3,), "action": (3,), "observation.environment_state": (STATE,)}
    check_features(there, fits, of="walks", state=True)  # pictures of any size
    with pytest.raises(DataError, match=r"'action' of shape \[3\]; the environment's is \[4\]"):
        check_features(there, fits | {"action": (4,)}, of="walks", state=False)
    with pytest.raises(UnknownNameError) as caught:
        check_features(there, fits | {"observation.images.topp": (16, 16, 3)}, of="walks", state=False)
    assert caught.value.nearest == CAMERA
    without = {name: one for name, one in there.items() if "environment" not in name}
    check_features(without, fits, of="walks", state=False)
    with pytest.raises(DataError, match=r"without=\[state\]"):
        check_features(without, fits, of="walks", state=True)


def test_the_mean_of_class_tokens_is_read_where_there_are_some_and_patches_where_not(
    frames: DatasetFrames, pixio: Sight
) -> None:
    for sight in (pixio, replace(pixio, encoder=draw_cnn(0, frames.read(CAMERA, 0, 8)))):
        policy: Any = make_policy(settings("mlp", sight, frames), frames, seed=0, encoder=sight.encoder).eval()
        assert isinstance(policy.config, PixioMLPConfig)
        pictures = frames.read(CAMERA, 0, 3)
        assert sight.encoder is not None
        tokens = sight.encoder(policy.eyes.resize(pictures))
        feature = (tokens.classes if tokens.classes.shape[1] else tokens.patches).mean(dim=1)
        read: list[torch.Tensor] = []
        policy.network.register_forward_pre_hook(lambda _, given, read=read: read.append(given[0]))
        policy.predict_action_chunk({"observation.state": torch.ones(1, 3, 3), CAMERA: pictures[None]})
        expected = torch.cat([torch.ones(3), feature[1] - feature[0], feature[2] - feature[1], feature[2]])
        torch.testing.assert_close(read[0][0], expected, atol=1e-5, rtol=1e-4)


def test_keypoints_are_learnt_from_the_demonstrations_and_are_an_encoder_like_any_other(
    frames: DatasetFrames, tmp_path: Path
) -> None:
    chance = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (4, 3, SIDE, SIDE), generator=chance).to(torch.uint8)
    shown = [noise, noise[..., :4, :4].repeat_interleave(SIDE // 4, -1).repeat_interleave(SIDE // 4, -2)]  # two cameras
    asked: list[tuple[int, bool]] = []

    def pictures(side: int, count: int, *, spread: bool) -> list[torch.Tensor]:
        asked.append((side, spread))
        return [one[:count] for one in shown]

    made = config({"mine": "keypoints:6@random"}, tmp_path)
    sights = [open_sight(made, "mine", seed, pictures=pictures, shared=tmp_path) for seed in (0, 1, 0)]
    first, other, again = (sight.encoder for sight in sights)
    assert first is not None
    assert other is not None
    assert again is not None
    assert first.fingerprint == again.fingerprint != other.fingerprint  # each training seed draws its own
    assert asked == [(made.size, True)] * 2  # the third one is read
    tokens = first(resize(shown[0], (128, 128)))
    assert tokens.patches.shape == (4, 1, 3 * 6 * 2)
    chosen = settings("diffusion", sights[0], frames)
    assert chosen.grid == 1
    build_cache(tmp_path / "cache", first, frames, **cache_settings(chosen, first, frames))
    train(chosen, frames, tmp_path / "cache", tmp_path / "run", steps=2, batch_size=4, seed=0, encoder=first)
    actor = open_actor("diffusion", tmp_path / "run" / MODEL, device="cpu")
    assert actor.policy.eyes.encoder.spec.family == "keypoints"
    draw_patches(tmp_path / "marked.png", actor.policy.eyes, frames)
    with Image.open(tmp_path / "marked.png") as picture:
        assert picture.size == (2 * 384, 384 * len(frames.cameras))  # the frames themselves, with dots on them


def test_misspelt_keypoints_are_refused_before_anything_runs(tmp_path: Path) -> None:
    others = ["random", "cnn", "blind", "state"]
    for wrong in ("keypoints:8", "keypoints:0@random", "keypoints:many@random", "keypoints:@random"):
        with pytest.raises(SettingError, match=rf"arms\.mine={wrong}.*such as keypoints:128@shipped:descriptors"):
            check_arms(config({"mine": wrong}, tmp_path, without=others))
    with pytest.raises(SettingError, match="family 'pixio'"):
        check_arms(config({"mine": "keypoints:8@shipped:pixio_vitt16"}, tmp_path, without=others))
    check_arms(config({"mine": "keypoints:8@random"}, tmp_path, without=others))
