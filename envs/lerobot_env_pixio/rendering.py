"""Pictures, metric depth, segmentation and calibration of the cameras of a MuJoCo model.

Images are as the renderer gives them: top row first, never flipped. Cameras follow OpenCV: x right, y down,
z forward, pixel centres at +0.5, metres.

Equal states give equal pixels with one OpenGL driver on one kind of processor, in any number of processes; between
drivers they do not. A software renderer (Mesa's llvmpipe) and a graphics card differ in how they round at the edges of
surfaces, filter textures and place the samples of multisampling; expect single pixels at edges to differ by a lot, and
surfaces by a few levels out of 255. Depth and calibration are the same to a fraction of a millimetre off the edges.
Therefore train and test with the same driver, or check what the change costs. The preset matters more: "fast" leaves
out shadows, which a policy that was trained with them misses.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

import atexit
import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from lerobot_env_pixio.distractors import Distractor
from lerobot_env_pixio.gl import advise
from pixio_robot.errors import RenderError, SettingError, UnknownNameError

_UNSEEN = 5  # a group of geoms that MuJoCo does not draw unless asked to

NO_BODY = -1
"""What a segmentation shows where no body of the model is: in the sky, and on distractors."""


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
    """Named cameras of one model, each rendered at a size of its own.

    The OpenGL context is created on first use, in the process that uses it: a context does not survive a fork.

    Args:
        model: The MuJoCo model; its offscreen buffer is enlarged if need be.
        data: The state that is drawn.
        sizes: Camera to height and width in pixels.
        preset: A key of ``RENDER_PRESETS``.

    Attributes:
        names: The cameras.
        sizes: What was given.
        distractors: Things that are drawn but that the physics knows nothing of; may be changed between pictures.

    Raises:
        UnknownNameError: A camera that the model lacks, or an unknown preset.
        SettingError: No camera, or a size below 1.
    """

    def __init__(
        self, model: mujoco.MjModel, data: mujoco.MjData, *, sizes: Mapping[str, tuple[int, int]], preset: str
    ) -> None:
        if preset not in RENDER_PRESETS:
            raise UnknownNameError("render preset", preset, RENDER_PRESETS)
        known = [model.camera(index).name for index in range(model.ncam)]
        for name, size in sizes.items():
            if name not in known:
                raise UnknownNameError("camera", name, known)
            if min(size) < 1:
                raise SettingError(f"size={size}: height and width must be at least 1 pixel.")
        if not sizes:
            raise SettingError("cameras=(): name at least one camera.")
        self.names, self.sizes = tuple(sizes), dict(sizes)
        self.distractors: list[Distractor] = []
        self._preset = RENDER_PRESETS[preset]
        self._model, self._data = model, data
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
        self._finalizers: list[weakref.finalize] = []

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

    def segmentation(self, name: str) -> NDArray[np.int32]:
        """Render which body each pixel shows [h w]: a key of ``bodies``, or ``NO_BODY``."""
        renderer = self._aim(name)
        renderer.enable_segmentation_rendering()
        try:
            objects, kinds = np.moveaxis(renderer.render(), -1, 0)
        finally:
            renderer.disable_segmentation_rendering()
        # What is drawn are geoms and sites, which become the bodies they are on; a tendon or a line is on none.
        result = np.full(objects.shape, NO_BODY, np.int32)
        for kind, owners in (
            (mujoco.mjtObj.mjOBJ_GEOM, self._model.geom_bodyid),
            (mujoco.mjtObj.mjOBJ_SITE, self._model.site_bodyid),
        ):
            shown = kinds == kind
            result[shown] = owners[objects[shown]]
        return result

    @property
    def bodies(self) -> dict[int, str]:
        """The names behind a segmentation's ids; "world" is what stands fixed without a body of its own."""
        return {index: self._model.body(index).name or f"body {index}" for index in range(self._model.nbody)}

    def intrinsics(self, name: str) -> NDArray[np.float64]:
        """Give the pinhole matrix [3 3] in pixels; MuJoCo's pixels are square, its lenses free of distortion."""
        height, width = self.sizes[name]
        focal = 0.5 * height / np.tan(0.5 * np.deg2rad(self._model.camera(name).fovy[0]))
        return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])

    def cam2world(self, name: str) -> NDArray[np.float64]:
        """Give the camera's pose [4 4]. MuJoCo's cameras look along -z with y up, so two axes turn round."""
        camera = self._data.camera(name)
        pose = np.eye(4)
        pose[:3, :3] = camera.xmat.reshape(3, 3) * (1, -1, -1)
        pose[:3, 3] = camera.xpos
        return pose

    def refresh_textures(self, textures: list[int]) -> None:
        """Send textures whose pixels have changed in the model to the renderers that hold older ones."""
        for renderer in self._renderers.values():  # MuJoCo's own has no public way to do this
            renderer._gl_context.make_current()
            for texture in textures:
                mujoco.mjr_uploadTexture(self._model, renderer._mjr_context, texture)

    def close(self) -> None:
        """Free the OpenGL contexts; the next picture makes a new one."""
        for finalizer in self._finalizers:
            finalizer()
        self._finalizers.clear()
        self._renderers.clear()

    def _aim(self, name: str) -> mujoco.Renderer:
        size = self.sizes[name]
        if size not in self._renderers:
            self._renderers[size] = self._create(size)
        renderer = self._renderers[size]
        groups = self._model.geom_group.copy()
        if not (self._preset.shadows or self._preset.reflections):  # which show what is out of view
            self._model.geom_group[self._out_of_view(name)] = _UNSEEN
        renderer.update_scene(self._data, camera=name)
        self._model.geom_group[:] = groups
        flags = renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self._preset.shadows
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = self._preset.reflections
        for distractor in self.distractors:
            distractor.draw(renderer.scene)
        return renderer

    def _out_of_view(self, name: str) -> NDArray[np.bool_]:
        """Find the geoms whose bounding spheres lie outside of a camera's view [n].

        MuJoCo sends all to OpenGL, whose software renderer works on every corner of every mesh before it finds that
        none is in the picture. A wrist camera sees few of them.
        """
        (height, width), pose = self.sizes[name], self.cam2world(name)
        focal, radius = self.intrinsics(name)[0, 0], self._model.geom_rbound  # 0: a plane, which has no end
        centre = (self._data.geom_xpos - pose[:3, 3]) @ pose[:3, :3]
        outside = centre[:, 2] < -radius  # behind the camera
        for axis, half in ((0, width / 2), (1, height / 2)):
            distance = (focal * np.abs(centre[:, axis]) - half * centre[:, 2]) / np.hypot(focal, half)
            outside |= distance > radius  # beyond the nearer of two sides of the pyramid of sight
        return outside & (radius > 0)

    def _create(self, size: tuple[int, int]) -> mujoco.Renderer:
        height, width = size
        buffer = self._model.vis.global_
        buffer.offheight, buffer.offwidth = max(buffer.offheight, height), max(buffer.offwidth, width)
        self._model.vis.quality.offsamples = self._preset.samples
        try:
            renderer = mujoco.Renderer(self._model, height, width)
        except Exception as error:  # every OpenGL back end raises its own
            raise RenderError(advise(str(error))) from error
        # Closed with this object or at exit, whichever is first, and at exit before EGL shuts down: atexit runs last
        # in, first out, and EGL registered itself when the renderer was made.
        finalizer = weakref.finalize(self, renderer.close)
        finalizer.atexit = False
        atexit.register(finalizer)
        self._finalizers.append(finalizer)
        return renderer
