"""Pictures of a MuJoCo episode by MuJoCo's own renderer, in a process of its own.

Which OpenGL MuJoCo uses is settled when it is imported, and a bad one can take its process along; so each that there
may be is tried in a fresh process.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's module is compiled and brings no stubs.)

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from safemeta.experiment.errors import UserError
from safemeta.experiment.recording import Bodies

SIZE = 480  # pixels, each way
BACKENDS = ("egl", "osmesa", "glfw")
MODEL, POSES, FRAMES = "model.mjb", "poses.npz", "frames.npy"


def render(bodies: Bodies, moments: np.ndarray) -> np.ndarray:
    """Pictures `[moments, SIZE, SIZE, 3]`; `UserError` where no OpenGL works."""
    import mujoco

    chosen = os.environ.get("MUJOCO_GL", "").lower()
    with tempfile.TemporaryDirectory(prefix="safemeta-") as name:
        folder = Path(name)
        mujoco.mj_saveModel(bodies.model, str(folder / MODEL), None)
        np.savez(folder / POSES, qpos=bodies.qpos[moments], mocap=bodies.mocap[moments])
        for backend in (chosen,) if chosen else BACKENDS:
            command = [sys.executable, "-m", __name__, name]
            environment = {**os.environ, "MUJOCO_GL": backend}
            try:
                subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
            except (subprocess.SubprocessError, OSError):
                continue
            return np.load(folder / FRAMES)
    tried = f"MUJOCO_GL={chosen}" if chosen else f"{', '.join(BACKENDS)}"
    raise UserError(
        f"This task is drawn by MuJoCo's renderer, which found no OpenGL here (tried {tried}): install a software one,"
        " such as libosmesa6 with MUJOCO_GL=osmesa, or run on a machine with a GPU or a display.",
        exit_code=1,
    )


def main(folder: Path) -> None:
    """Draw all poses in `folder`."""
    import mujoco

    model: Any = mujoco.MjModel.from_binary_path(str(folder / MODEL))
    data: Any = mujoco.MjData(model)
    model.vis.global_.offwidth = model.vis.global_.offheight = SIZE
    camera, frames = None, []
    with mujoco.Renderer(model, SIZE, SIZE) as renderer, np.load(folder / POSES) as poses:
        for qpos, mocap in zip(poses["qpos"], poses["mocap"], strict=True):
            data.qpos[:], data.mocap_pos[:] = qpos, mocap
            mujoco.mj_forward(model, data)
            camera = camera or _camera(mujoco, model, data)
            renderer.update_scene(data, camera)
            frames.append(renderer.render())
    np.save(folder / FRAMES, np.stack(frames))


def _camera(mujoco: Any, model: Any, data: Any) -> Any:
    """From the side and so near that the robot fills the picture; from above where it lies flat."""
    own = [index for index in range(model.ngeom) if model.geom_bodyid[index] > 0]
    reach = model.geom_rbound[own, None]
    low, high = (data.geom_xpos[own] - reach).min(0), (data.geom_xpos[own] + reach).max(0)
    size = high - low
    camera = mujoco.MjvCamera()
    camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, min(1, model.nbody - 1)
    camera.distance, camera.azimuth = 1.7 * float(np.linalg.norm(size)), 105.0
    camera.elevation = -60.0 if size[2] < 0.4 * size[:2].max() else -12.0
    return camera


if __name__ == "__main__":
    main(Path(sys.argv[1]))
