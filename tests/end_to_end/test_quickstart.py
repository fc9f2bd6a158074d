"""The newcomer's command, end to end, at the smallest sizes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ["--rollouts", "3", "--steps", "4", "--demonstrations", "2"]


def quickstart(folder: Path) -> str:
    command = [sys.executable, "scripts/quickstart.py", "--folder", str(folder), *TINY]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.returncode == 0, process.stdout
    return process.stdout


@pytest.mark.slow
def test_the_quickstart_measures_three_policies_and_reports_once(tmp_path: Path) -> None:
    printed = quickstart(tmp_path)
    rates = re.findall(r"│ (\d/3) +│", printed)
    assert len(rates) == 3
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == 3
    assert page.count("data:image/png;base64,") == 2
    assert page.count("<svg") == 2
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page), "the page must need no other file"
    again = quickstart(tmp_path)
    assert "roll out" not in again, "what is done must not be done again"
    assert re.findall(r"│ (\d/3) +│", again) == rates
