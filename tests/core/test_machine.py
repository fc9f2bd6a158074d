"""What a figure was measured on."""

import os
import sys
from pathlib import Path

import pytest

from pixio_robot.machine import device_name, machine_name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_processor_has_the_name_that_the_system_gives_it() -> None:
    lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    if lines:  # some ARM systems tell none
        assert device_name() == lines[0].partition(": ")[2]
    assert device_name()


def test_a_machine_is_named_with_its_cores() -> None:
    assert machine_name() == f"{device_name()}, {os.cpu_count()} cores, no GPU"
