import io
import os
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pixio_pretrain.curation import CurationConfig
from pixio_pretrain.curation.scores import Scores
from pixio_pretrain.curation.table import as_table
from pixio_pretrain.data import Loader, Source, open_frames, open_source
from pixio_pretrain.data.samples import Sample
from pixio_pretrain.data.shards import TarShards, expand_braces
from pixio_pretrain.data.skips import Skipped
from pixio_robot.errors import DataError, ImageError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # two workers on one core


def encode(number: int, kind: str = "jpeg") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 100, 200)).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, *counts: int) -> Path:
    for shard, count in enumerate(counts):
        members = {f"{number:04d}.jpg": encode(20 * shard + number) for number in range(count)}
        write_tar(folder / f"train-{shard:03d}.tar", members)
    return folder


def visit(source: Source) -> list[str]:
    return [key for key, _ in source.visit()]


def make_sample(image: Image.Image, random: np.random.Generator) -> Sample:
    return {"images": np.asarray(image), "noise": random.random(2)}


def test_images_of_all_formats_are_read_and_other_members_passed_over(tmp_path: Path) -> None:
    members = {f"{kind}.{kind}": encode(7, kind) for kind in ("jpeg", "png", "webp")}
    tar = write_tar(tmp_path / "a.tar", {"labels.json": b"{}", **members, "B.JPG": encode(7), "x.cls": b"3"})
    images = dict(open_source(tar).visit())
    assert list(images) == ["a.tar/jpeg.jpeg", "a.tar/png.png", "a.tar/webp.webp", "a.tar/B.JPG"]
    assert np.asarray(images["a.tar/png.png"])[0, 0].tolist() == [7, 100, 200]


@pytest.mark.parametrize(
    "pattern", ["{}", "{}/*.tar", "{}/train-00?.tar", "{}/train-{{000..002}}.tar", "{}/train-{{000,001,002}}.tar"]
)
def test_shards_are_found_by_folder_wildcard_and_braces(pattern: str, tmp_path: Path) -> None:
    write_shards(tmp_path, 2, 1, 1)
    found = ["train-000.tar/0000.jpg", "train-000.tar/0001.jpg", "train-001.tar/0000.jpg", "train-002.tar/0000.jpg"]
    assert visit(open_source(pattern.format(tmp_path))) == found


def test_shards_of_one_name_in_several_folders_have_keys_of_their_own(tmp_path: Path) -> None:
    write_shards(tmp_path / "left", 1)
    write_shards(tmp_path / "right" / "far", 1)
    assert visit(open_source(tmp_path)) == ["left/train-000.tar/0000.jpg", "right/far/train-000.tar/0000.jpg"]


def test_braces_are_written_out_in_any_number() -> None:
    assert expand_braces("a") == ["a"]
    assert expand_braces("{008..010}.tar") == ["008.tar", "009.tar", "010.tar"]
    assert expand_braces("{a,b}-{0..1}") == ["a-0", "a-1", "b-0", "b-1"]
    assert expand_braces("{a,b{0..1}}") == ["a", "b0", "a", "b1"]


def test_shards_come_from_any_file_system_of_fsspec(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for shard in write_shards(tmp_path, 2, 1).iterdir():
        memory.pipe(f"/bucket/train/{shard.name}", shard.read_bytes())
    keys = ["train-000.tar/0000.jpg", "train-000.tar/0001.jpg", "train-001.tar/0000.jpg"]
    for pattern in (
        "memory://bucket/train",
        "memory://bucket/train/*.tar",
        "memory://bucket/train/train-{000..001}.tar",
    ):
        assert visit(open_source(pattern)) == keys


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nowhere-*.tar", "There are no tar shards at"),
        ("nowhere-{000..003}.tar", "There are no tar shards at .*nowhere-000.tar"),
        ("nosuch://bucket/*.tar", "Cannot look for tar shards at"),
    ],
)
def test_shards_that_are_not_there_are_refused(pattern: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_source(pattern if "://" in pattern else f"{tmp_path}/{pattern}")


@pytest.mark.parametrize("place", ["in a header", "in an image", "between images", "in place of a header"])
def test_a_torn_shard_gives_what_lies_before_the_tear_and_is_reported_by_name(place: str, tmp_path: Path) -> None:
    write_shards(tmp_path, 4, 2)
    torn = tmp_path / "train-000.tar"
    block = 512 + -(-len(encode(0)) // 512) * 512  # header and padded content of each image
    if place == "in place of a header":
        whole = torn.read_bytes()
        torn.write_bytes(whole[: 2 * block] + b"?" * 512 + whole[2 * block + 512 :])
    else:
        os.truncate(torn, 2 * block + {"in a header": 100, "in an image": 512 + 30, "between images": 0}[place])
    skipped = Skipped()
    keys = [key for key, _ in open_source(tmp_path).visit(skipped)]
    assert keys == ["train-000.tar/0000.jpg", "train-000.tar/0001.jpg", *(f"train-001.tar/000{n}.jpg" for n in (0, 1))]
    assert list(skipped) == ["train-000.tar"]
    assert "cannot be read beyond 2 images" in skipped["train-000.tar"]


class CutShort(BaseHTTPRequestHandler):
    """Serves a shard: all of it is promised, half of it sent."""

    content = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: len(self.content) // 2] if self.command == "GET" else b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002, as in the class above
        """Say nothing."""


def test_a_stream_that_is_cut_off_gives_what_came_before(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    CutShort.content = (write_shards(tmp_path, 200) / "train-000.tar").read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), CutShort) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        entries = list(TarShards([f"http://127.0.0.1:{server.server_port}/train-000.tar"]).read(0))
        server.shutdown()
    assert entries[-1].torn
    assert isinstance(entries[-1].content, ImageError)
    assert "cannot be read beyond" in str(entries[-1].content)


@pytest.mark.parametrize("unlisted", ["refuse", "drop"])
def test_curation_is_not_asked_about_a_tear_and_does_not_hide_it(unlisted: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "web", 4, 2)
    rows = [Scores(key=key, histogram_score=6.0, height=8, width=8) for key in visit(open_source(tmp_path / "web"))]
    pq.write_table(as_table(rows), tmp_path / "scores.parquet")
    os.truncate(tmp_path / "web" / "train-000.tar", 2000)
    curation = CurationConfig(table=str(tmp_path / "scores.parquet"), unlisted=unlisted).build()
    assert curation is not None
    loader = Loader(open_source(tmp_path / "web"), make_sample, batch_size=3, seed=0, keep=curation.keep)
    for _ in islice(loader, 2):
        pass
    assert list(loader.skipped) == ["train-000.tar"]


def test_a_file_that_is_no_tar_a_missing_shard_and_a_corrupt_image_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "good.tar", {"0.jpg": encode(1), "1.jpg": encode(1)[:200]})
    (tmp_path / "bad.tar").write_bytes(b"no tar at all")
    (tmp_path / "gone.tar").touch()
    source, skipped = open_source(tmp_path), Skipped()
    (tmp_path / "gone.tar").unlink()
    assert [key for key, _ in source.visit(skipped)] == ["good.tar/0.jpg"]
    assert set(skipped) == {"bad.tar", "gone.tar", "good.tar/1.jpg"}


def test_shards_without_images_are_an_error(tmp_path: Path) -> None:
    source = open_source(write_tar(tmp_path / "a.tar", {"labels.json": b"{}"}))
    with pytest.raises(DataError, match="There is not one sample"):
        visit(source)
    with pytest.raises(DataError, match="no sample for lane 1 of 1"):
        next(iter(Loader(source, make_sample, batch_size=1, seed=0)))


def test_compressed_shards_are_read(tmp_path: Path) -> None:
    assert visit(open_source(write_tar(tmp_path / "a.tar.gz", {"0.jpg": encode(1)}, "w:gz"))) == ["a.tar.gz/0.jpg"]


def test_whole_shards_are_held_out(tmp_path: Path) -> None:
    source = open_source(write_shards(tmp_path, 3, 3, 3, 3))
    train, held_out = (visit(part) for part in source.split(0.25))
    assert sorted(train + held_out) == visit(source)
    assert len({key.split("/")[0] for key in held_out}) == 1
    assert {key.split("/")[0] for key in train}.isdisjoint(key.split("/")[0] for key in held_out)


def test_of_a_single_shard_samples_are_held_out_together_with_their_other_images(tmp_path: Path) -> None:
    members = {f"{number}.{side}.jpg": encode(number) for number in range(40) for side in ("left", "right")}
    source = open_source(write_tar(tmp_path / "a.tar", members))
    train, held_out = (visit(part) for part in source.split(0.25))
    assert sorted(train + held_out) == sorted(visit(source))
    assert 8 <= len(held_out) <= 32
    names = [{key.split(".")[1] for key in part} for part in (train, held_out)]
    assert names[0].isdisjoint(names[1])


def test_a_single_shard_of_which_nothing_is_held_out_says_what_would(tmp_path: Path) -> None:
    _, held_out = open_source(write_tar(tmp_path / "a.tar", {"1.jpg": encode(1)})).split(0.001)
    with pytest.raises(DataError, match=r"for a single tar shard, whose few samples views\.held_out"):
        next(iter(Loader(held_out, make_sample, batch_size=1, seed=0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_resume_at_the_exact_next_sample(workers: int, tmp_path: Path) -> None:
    write_shards(tmp_path, 7, 9, 4)
    os.truncate(tmp_path / "train-001.tar", 4000)

    def loader() -> Loader:
        return Loader(open_source(tmp_path), make_sample, batch_size=3, seed=0, buffer=5, workers=workers)

    unbroken = loader()
    batches, states = [], [unbroken.state_dict()]
    for loaded in islice(unbroken, 15):
        batches.append(loaded)
        states.append(unbroken.state_dict())
    assert list(unbroken.skipped) == ["train-001.tar"]
    for at in range(13) if not workers else (5,):
        resumed = loader()
        resumed.load_state_dict(states[at])
        assert [loaded.keys for loaded in islice(resumed, 2)] == [loaded.keys for loaded in batches[at : at + 2]]


def test_random_access_to_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"can only be read in runs \(tar shards\)"):
        open_frames(write_shards(tmp_path, 1))


def test_the_description_names_the_shards_but_not_where_they_lie(tmp_path: Path) -> None:
    here, there = write_shards(tmp_path / "here", 1, 1), write_shards(tmp_path / "there", 1, 1)
    assert open_source(here).describe() == open_source(there).describe()
    assert open_source(here / "train-000.tar").describe() != open_source(there).describe()
    assert isinstance(open_source(here), TarShards)
