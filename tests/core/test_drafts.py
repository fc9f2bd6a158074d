import os
from pathlib import Path

import pytest

from pixio_robot import drafts
from pixio_robot.drafts import draft_of, write_whole


def test_two_processes_that_write_a_file_at_once_each_write_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.md"
    with draft_of(file) as draft:
        draft.write_text("first, beg")
        with monkeypatch.context() as other:
            other.setattr(drafts.os, "getpid", lambda: -1)
            write_whole(file, "second")
        assert file.read_text() == "second"
        draft.write_text("first, begun and ended")
    assert file.read_text() == "first, begun and ended"
    assert [path.name for path in tmp_path.iterdir()] == ["results.md"]


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "results.md"
    file.write_text("old")

    def break_off() -> None:
        with draft_of(file) as draft:
            draft.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.md"]


def test_what_a_killed_process_of_the_same_number_left_is_no_beginning(tmp_path: Path) -> None:
    file = tmp_path / "results.md"
    (tmp_path / f"results.md.{os.getpid()}.writing").write_text("half of ")
    with draft_of(file) as draft, draft.open("a") as opened:
        opened.write("all")
    assert file.read_text() == "all"
    assert [path.name for path in tmp_path.iterdir()] == ["results.md"]
