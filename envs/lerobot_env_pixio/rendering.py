"""Pictures, metric depth and calibration of the cameras of a MuJoCo model.

Images are as the renderer gives them: top row first, never flipped. Cameras follow OpenCV: x right, y down,
z forward, pixel centres at +0.5, metres.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

import atexit
import weakref
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from lerobot_env_pixio.gl import advise
from pixio_robot.errors import RenderError, SettingError, UnknownNameError


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderPreset:
    """What the rasteriser spends time on. ``samples`` is the number of multisampling samples, 0 for none."""

    shadows: bool
    reflections: bool
    samples: int


RENDER_PRESETS = {
    "fast": RenderPreset(shadows=False, reflections=False, samples=0),
    "full": RenderPreset(shadows=True, reflections=True, samples=4),
}


class Cameras:
    """Named cameras of one model, rendered at one size.

    The OpenGL context is created on first use, in the process that uses it: a context does not survive a fork.

    Args:
        model: The MuJoCo model; its offscreen buffer is enlarged if need be.
        data: The state that is drawn.
        names: The cameras.
        size: Height and width in pixels.
        preset: A key of ``RENDER_PRESETS``.

    Raises:
        UnknownNameError: A camera that the model lacks, or an unknown preset.
        SettingError: No camera, one named twice, or a size below 1.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        *,
        names: tuple[str, ...],
        size: tuple[int, int],
        preset: str,
    ) -> None:
        if preset not in RENDER_PRESETS:
            raise UnknownNameError("render preset", preset, RENDER_PRESETS)
        known = [model.camera(index).name for index in range(model.ncam)]
        for name in names:
            if name not in known:
                raise UnknownNameError("camera", name, known)
        if not names or len(set(names)) < len(names):
            raise SettingError(f"cameras={names}: name at least one camera, and none twice.")
        if min(size) < 1:
            raise SettingError(f"size={size}: height and width must be at least 1 pixel.")
        self.names, self.size = names, size
        self._preset = RENDER_PRESETS[preset]
        self._model, self._data = model, data
        self._renderer: mujoco.Renderer | None = None

    def color(self, name: str) -> NDArray[np.uint8]:
        """Render one camera: RGB [h w 3]."""
        return self._aim(name).render()

    def depth(self, name: str) -> NDArray[np.float32]:
        """Render the distance along the optical axis in metres [h w]; the sky reads as the far plane, over 10 m."""
        renderer = self._aim(name)
        renderer.enable_depth_rendering()
        try:
            return renderer.render()
        finally:
            renderer.disable_depth_rendering()

    def intrinsics(self, name: str) -> NDArray[np.float64]:
        """Give the pinhole matrix [3 3] in pixels; MuJoCo's pixels are square, its lenses free of distortion."""
        height, width = self.size
        focal = 0.5 * height / np.tan(0.5 * np.deg2rad(self._model.camera(name).fovy[0]))
        return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])

    def cam2world(self, name: str) -> NDArray[np.float64]:
        """Give the camera's pose [4 4]. MuJoCo's cameras look along -z with y up, so two axes turn round."""
        camera = self._data.camera(name)
        pose = np.eye(4)
        pose[:3, :3] = camera.xmat.reshape(3, 3) * (1, -1, -1)
        pose[:3, 3] = camera.xpos
        return pose

    def close(self) -> None:
        """Free the OpenGL context; the next picture makes a new one."""
        if self._renderer is not None:
            self._finalizer()
            self._renderer = None

    def _aim(self, name: str) -> mujoco.Renderer:
        if self._renderer is None:
            self._renderer = self._create()
            # Closed with this object or at exit, whichever is first, and at exit before EGL shuts down: atexit runs
            # last in, first out, and EGL registered itself when the renderer was made.
            self._finalizer = weakref.finalize(self, self._renderer.close)
            self._finalizer.atexit = False
            atexit.register(self._finalizer)
        self._renderer.update_scene(self._data, camera=name)
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self._preset.shadows
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = self._preset.reflections
        return self._renderer

    def _create(self) -> mujoco.Renderer:
        height, width = self.size
        buffer = self._model.vis.global_
        buffer.offheight, buffer.offwidth = max(buffer.offheight, height), max(buffer.offwidth, width)
        self._model.vis.quality.offsamples = self._preset.samples
        try:
            return mujoco.Renderer(self._model, height, width)
        except Exception as error:  # every OpenGL back end raises its own
            raise RenderError(advise(str(error))) from error
