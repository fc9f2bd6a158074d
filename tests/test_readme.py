"""What the README shows works as shown."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_python_examples_run_and_their_comments_are_true() -> None:
    example = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    scope: dict[str, object] = {}
    exec(example, scope)  # noqa: S102
    claims = re.findall(r"^((?:tokens\.|adapter\()[^#]*?)\s+# (\[[\d, ]+\])", example, re.MULTILINE)
    assert len(claims) == 4
    for expression, shape in claims:
        assert str(list(eval(expression, scope).shape)) == shape  # noqa: S307


def test_every_link_into_the_repository_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} points to {link}"


def test_every_script_that_a_page_calls_can_be_called() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for script in re.findall(r"scripts/\w+\.py", page.read_text()):
            assert (ROOT / script).is_file(), f"{page.name} calls {script}"
    for script in (ROOT / "scripts").glob("*.py"):
        assert os.access(script, os.X_OK) == script.read_text().startswith("#!"), script.name
