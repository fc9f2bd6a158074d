"""What a figure was measured on, and what memory is left."""

import os
import sys
from pathlib import Path

import pytest
import torch

from pixio_robot import machine
from pixio_robot.machine import device_name, free_memory, machine_name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_processor_has_the_name_that_the_system_gives_it() -> None:
    lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    if lines:  # some ARM systems tell none
        assert device_name() == lines[0].partition(": ")[2]
    assert device_name()


def test_a_machine_is_named_with_its_cores() -> None:
    assert machine_name() == f"{device_name()}, {os.cpu_count()} cores, no GPU"


def test_a_gpu_is_named_beside_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"cuda": "Orin", "cuda:1": "H100"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[str(device)])
    assert device_name(torch.device("cuda:1")) == "H100"
    assert machine_name("cuda") == f"{device_name()}, {os.cpu_count()} cores, Orin"


def test_memory_is_read_from_machine_and_container(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("3145728\n")
    (tmp_path / "memory.current").write_text("2097152\n")
    (tmp_path / "memory.stat").write_text("anon 4096\nfile 1048576\nactive_file 524288\ninactive_file 524288\n")
    assert machine._free_in_container(tmp_path) == 2**21  # of what is used, half is cached files
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._free_in_container(tmp_path) is None
    assert machine._free_in_container(tmp_path / "none") is None


def test_free_memory_is_the_lesser_of_machine_and_container(monkeypatch: pytest.MonkeyPatch) -> None:
    for here, container, expected in ((1000, None, 1000), (1000, 2000, 1000), (1000, 10, 10), (None, None, None)):
        monkeypatch.setattr(machine, "_free_in_machine", lambda found=here: found)
        monkeypatch.setattr(machine, "_free_in_container", lambda _, found=container: found)
        assert free_memory() == expected
