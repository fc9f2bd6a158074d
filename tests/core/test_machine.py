"""What a figure was measured on."""

import os
import sys
from pathlib import Path

import pytest
import torch

from pixio_robot.machine import device_name, machine_name


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
