"""Navigation seen from above."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from safemeta.experiment.figures import INK, LIMIT_COLOUR
from safemeta.experiment.recording import Recording

COLOURS = {
    "hazards": "#D55E00",
    "pillars": "#5B6770",
    "buttons": "#E69F00",
    "goal": "#009E73",
    "circle": "#009E73",
    "box": "#B8860B",
    "robot": "#0072B2",
}
FLOOR, AWAY = "#F6F5F1", 50.0  # m: things that a task lacks are put farther than this
FLASH = 0.16  # opacity


@dataclass(frozen=True)
class Discs:
    """Round things of one class: centres `[moments, count, 2]`."""

    kind: str
    centres: np.ndarray
    radius: float


@dataclass(frozen=True)
class Track:
    """A navigation episode: the robot's place and heading at each moment, and what lies around (m, rad)."""

    robot: str
    place: np.ndarray
    heading: np.ndarray
    extent: float
    discs: tuple[Discs, ...] = ()
    lit: np.ndarray | None = None  # which of the buttons, -1 for none
    box: tuple[np.ndarray, np.ndarray] | None = None  # place and heading
    circle: tuple[float, float, int] | None = None  # radius, distance of the walls, how many walls
    lidar: tuple[tuple[str, np.ndarray], ...] = field(default=())  # class, and its bins [moments, bins]


def track_of(environment: Any, recording: Recording) -> Track | None:
    """The track of a navigation task, or None of another one."""
    from safemeta.tasks.circle import PointCircle
    from safemeta.tasks.scene import MujocoScene, PointScene

    if isinstance(environment, PointCircle):
        state, radius = recording.state, float(recording.parameters["radius"])
        place = np.stack([state.x, state.y], axis=-1)
        ring = (radius, float(recording.parameters["wall"]), 2)
        bins = recording.observation[:, 12:]
        return Track("point", place, state.yaw, _extent(place, radius), circle=ring, lidar=(("circle", bins),))
    if isinstance(environment, PointScene):
        robot = recording.state.robot
        place = np.stack([robot.x, robot.y], axis=-1)
        return _with_scene("point", place, robot.yaw, environment.scene, recording.state.scene, recording, 12)
    if isinstance(environment, MujocoScene):
        assert recording.bodies is not None
        position, rotation = recording.bodies.of("agent")
        heading = np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])
        kind = type(environment.robot).__name__.lower()
        sensors = environment.robot.sensor_size
        return _with_scene(kind, position[:, :2], heading, environment.scene, recording.state, recording, sensors)
    return None


def _with_scene(
    robot: str, place: np.ndarray, heading: np.ndarray, scene: Any, state: Any, recording: Recording, sensors: int
) -> Track:
    """What the scenes of `tasks` have in common, and what each has of its own."""
    from safemeta.tasks.button import BUTTON_RADIUS
    from safemeta.tasks.circle_scene import Circle
    from safemeta.tasks.goal import Goal

    parameters, objects = recording.parameters, state.objects
    discs, rest = [], {}
    if "hazards" in objects:
        discs.append(Discs("hazards", objects["hazards"], scene.hazard_size))
    if isinstance(scene, Circle):
        radius = float(parameters["radius"])
        rest["circle"] = (radius, float(parameters["wall"]), scene.walls)
        classes = ["circle", *(["hazards"] if scene.most_hazards else [])]
        extent = max(radius, float(parameters.get("extent", 0.0)))
    elif isinstance(scene, Goal):
        discs.append(Discs("goal", state.memory["goal"][:, None], scene.goal_size))
        discs.append(Discs("pillars", objects["pillars"], scene.pillar_size))
        there = (scene.most_hazards, scene.most_pillars, scene.push)
        classes = ["goal", *(name for name, any_ in zip(("hazards", "pillars", "box"), there, strict=True) if any_)]
        extent = float(parameters["extent"])
        if scene.push:
            assert recording.bodies is not None
            position, rotation = recording.bodies.of("box")
            rest["box"] = (position[:, :2], np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0]))
    else:
        discs.append(Discs("buttons", objects["buttons"], BUTTON_RADIUS))
        rest["lit"] = np.where(state.memory["timer"] > 0, -1, state.memory["goal"])
        classes = ["buttons", "goal", "hazards"]
        extent = float(parameters["extent"])
    bins = recording.observation[:, sensors:].reshape(len(place), len(classes), -1)
    lidar = tuple((name, bins[:, index]) for index, name in enumerate(classes))
    return Track(robot, place, heading, _extent(place, extent), tuple(discs), lidar=lidar, **rest)


def _extent(place: np.ndarray, least: float) -> float:
    return max(1.15 * least, 1.08 * float(np.abs(place).max()) + 0.15) + 0.1


class TopDown:
    """Draws a track: `start` what stays, `show` what a moment looks like."""

    def __init__(self, track: Track, costly: np.ndarray, rays: bool) -> None:
        self.track, self.costly, self.rays = track, costly, rays
        self.scale = max(1.0, 0.35 * track.extent)  # to scale, unless it would hardly be seen

    def start(self, axes: Any) -> None:
        """Everything, once."""
        from matplotlib.patches import Polygon

        track, extent = self.track, self.track.extent
        axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", facecolor=FLOOR)
        axes.set_xlabel("m")
        if track.circle is not None:
            self._walls(axes, *track.circle)
        self.discs = [self._round_things(axes, each) for each in track.discs]
        self.box = None
        if track.box is not None:
            self.box = axes.add_patch(Polygon(np.zeros((4, 2)), facecolor=COLOURS["box"], edgecolor=INK, zorder=4))
        (self.path,) = axes.plot([], [], color=COLOURS["robot"], linewidth=1.3, alpha=0.55, zorder=3)
        (self.costs,) = axes.plot([], [], "o", color=LIMIT_COLOUR, markersize=3.2, markeredgewidth=0, zorder=3)
        self.lines = [axes.plot([], [], color=COLOURS[kind], linewidth=1.6, alpha=0.75, zorder=5)[0] for kind, _ in
                      (track.lidar if self.rays else ())]  # fmt: skip
        self.parts = [
            axes.add_patch(Polygon(part, facecolor=colour, edgecolor="white", linewidth=0.4, zorder=6))
            for part, colour in robot_parts(track.robot)
        ]

    def show(self, moment: int) -> None:
        """Move everything to where it was."""
        track = self.track
        place, heading = track.place[moment], float(track.heading[moment])
        self.path.set_data(*track.place[: moment + 1].T)
        self.costs.set_data(*track.place[1 : moment + 1][self.costly[:moment]].T)
        for patch, (part, _) in zip(self.parts, robot_parts(track.robot), strict=True):
            patch.set_xy(place + self.scale * part @ turned(heading).T)
        for patches, each in zip(self.discs, track.discs, strict=True):
            for index, patch in enumerate(patches):
                patch.set_center(each.centres[moment, index])
                if each.kind == "buttons":
                    self._light(patch, moment, index)
        if self.box is not None and track.box is not None:
            corners = 0.2 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
            self.box.set_xy(track.box[0][moment] + corners @ turned(float(track.box[1][moment])).T)
        for number, (line, (_, bins)) in enumerate(zip(self.lines, track.lidar, strict=False)):
            line.set_data(*_rays(place, heading, bins[moment], 0.004 * track.extent * number))

    def _light(self, patch: Any, moment: int, index: int) -> None:
        """A button: green where it is lit, grey while all are dark."""
        lit = int(self.track.lit[moment]) if self.track.lit is not None else -1
        patch.set_facecolor(COLOURS["goal"] if index == lit else ("#C9C6BC" if lit < 0 else COLOURS["buttons"]))
        patch.set_linewidth(3.0 if index == lit else 0.8)
        patch.set_edgecolor("#7CD6B8" if index == lit else "white")

    def _round_things(self, axes: Any, discs: Discs) -> list[Any]:
        """One patch for each thing of a class that the task has."""
        from matplotlib.patches import Circle

        look: dict[str, Any] = {"facecolor": COLOURS[discs.kind], "edgecolor": "white", "linewidth": 0.8, "zorder": 4}
        if discs.kind in ("hazards", "goal"):
            look |= {"alpha": 0.42, "edgecolor": COLOURS[discs.kind], "linewidth": 1.4, "zorder": 2}
        patches = [Circle((0, 0), discs.radius, **look) for _ in range(discs.centres.shape[1])]
        for patch, centre in zip(patches, discs.centres[0], strict=True):
            patch.set_visible(bool(np.abs(centre).max() < AWAY))
            axes.add_patch(patch)
        return patches

    def _walls(self, axes: Any, radius: float, wall: float, walls: int) -> None:
        """The circle, the walls, and what lies beyond them."""
        from matplotlib.patches import Circle

        far = 2 * self.track.extent
        for side in (-1, 1):
            axes.axvspan(*sorted((side * wall, side * far)), color=LIMIT_COLOUR, alpha=0.09, linewidth=0, zorder=0)
            axes.axvline(side * wall, color=LIMIT_COLOUR, linewidth=1.8, zorder=1)
            if walls == 4:
                axes.axhspan(*sorted((side * wall, side * far)), color=LIMIT_COLOUR, alpha=0.09, linewidth=0, zorder=0)
                axes.axhline(side * wall, color=LIMIT_COLOUR, linewidth=1.8, zorder=1)
        style: dict[str, Any] = {"fill": False, "edgecolor": COLOURS["circle"], "linewidth": 1.8, "zorder": 1}
        axes.add_patch(Circle((0, 0), radius, linestyle=(0, (5, 3)), **style))
        axes.plot(0, 0, "+", color=COLOURS["circle"], markersize=9, markeredgewidth=1.8, zorder=1)


def robot_parts(kind: str) -> list[tuple[np.ndarray, str]]:
    """Outlines `[points, 2]` of a robot's parts in its own frame (m), and their colours: drawn in this order."""
    body = COLOURS["robot"]
    if kind == "point":
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        disc = 0.1 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return [(_rectangle(0.1, 0.0, 0.05, 0.05), "#003E66"), (disc, body)]
    return [  # the car, which drives along -y
        (_rectangle(-0.13, 0.1, 0.025, 0.05), INK),
        (_rectangle(0.13, 0.1, 0.025, 0.05), INK),
        (_rectangle(0.0, -0.165, 0.05, 0.02), "#003E66"),
        (_rectangle(0.0, 0.0, 0.1, 0.14), body),
        (_rectangle(0.0, -0.085, 0.03, 0.03), "white"),
    ]


def _rectangle(x: float, y: float, half_x: float, half_y: float) -> np.ndarray:
    return np.array([x, y]) + np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * (half_x, half_y)


def turned(angle: float) -> np.ndarray:
    """The matrix `[2, 2]` of a rotation in the plane by `angle` (rad)."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _rays(place: np.ndarray, heading: float, bins: np.ndarray, aside: float) -> tuple[np.ndarray, np.ndarray]:
    """One line from the robot's edge for each bin of a lidar, the longer the closer what it sees."""
    angle = heading + (np.arange(len(bins)) + 0.5) * 2 * np.pi / len(bins) + aside
    ahead = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    near, far = place + 0.16 * ahead, place + (0.16 + 0.6 * bins[:, None]) * ahead
    points = np.stack([near, far, np.full_like(near, np.nan)], axis=1).reshape(-1, 2)
    return points[:, 0], points[:, 1]
