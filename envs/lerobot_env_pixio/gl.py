"""Can MuJoCo render on this machine, and what to install if it cannot. Imports no MuJoCo: that may fail already."""

import os
import subprocess
import sys

from pixio_robot.errors import RenderError


def check_rendering() -> None:
    """Render one tiny frame in a process of its own, since a failing OpenGL driver may take its process along.

    Raises:
        RenderError: It failed; says which package to install.
    """
    scene = "<mujoco><worldbody><geom size='1'/></worldbody></mujoco>"
    code = (
        "import lerobot_env_pixio, mujoco\n"
        f'renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("{scene}"), 16, 16)\n'
        "renderer.render()\nrenderer.close()"
    )
    command = [sys.executable, "-c", code]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired as error:
        raise RenderError(advise("no frame within 120 seconds")) from error
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise RenderError(advise(lines[-1]))


def advise(reason: str) -> str:
    """Say what to install on a machine where MuJoCo cannot render, for ``reason``."""
    return (
        f"MuJoCo cannot render here (MUJOCO_GL is {os.environ.get('MUJOCO_GL', 'unset')}): {reason}\n"
        "  Debian, Ubuntu: sudo apt install libegl1 libgl1-mesa-dri       (MUJOCO_GL=egl)\n"
        "              or: sudo apt install libosmesa6                    (MUJOCO_GL=osmesa)\n"
        "  Fedora:         sudo dnf install mesa-libEGL mesa-dri-drivers  (MUJOCO_GL=egl)\n"
        "              or: sudo dnf install mesa-libOSMesa                (MUJOCO_GL=osmesa)\n"
        "  macOS:          nothing to install; unset MUJOCO_GL and MuJoCo uses the system's CGL"
    )
