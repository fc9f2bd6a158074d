"""Self-contained HTML pages: one look, pictures inside, written whole or not at all."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from pixio_robot.drafts import write_whole


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Fill a template, which extends ``page.html.jinja``, and write it.

    Args:
        path: The HTML file.
        template: The template.
        **values: What it shows.
    """
    folders = [template.parent, Path(__file__).parent]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True, undefined=jinja2.StrictUndefined
    )
    write_whole(path, environment.get_template(template.name).render(**values))


def to_base64(data: bytes) -> str:
    """Bytes as a data URI carries them."""
    return base64.b64encode(data).decode("ascii")


def to_svg(figure: Figure) -> str:
    """A figure as an element of a page; the figure is closed."""
    buffer = io.StringIO()
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(buffer, format="svg", transparent=True)
    plt.close(figure)
    return buffer.getvalue().split("?>", 1)[1].split(">", 1)[1]
