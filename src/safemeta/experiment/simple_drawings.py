"""Drawings of the tasks that are neither navigation nor on MuJoCo: point mass, collision avoidance, cartpole."""

from typing import Any

import numpy as np

from safemeta.experiment.figures import INK, LIMIT_COLOUR
from safemeta.experiment.recording import Recording
from safemeta.experiment.top_down import COLOURS, FLOOR, turned


def drawing_of(environment: Any, recording: Recording) -> Any:
    """What draws an episode of this environment, or None."""
    from safemeta.tasks.cartpole import Cartpole
    from safemeta.tasks.collision_avoidance import CollisionAvoidance
    from safemeta.tasks.point_mass import PointMass

    if isinstance(environment, PointMass):
        return _point_mass(recording)
    if isinstance(environment, CollisionAvoidance):
        return _collision_avoidance(recording)
    if isinstance(environment, Cartpole):
        return CartpoleDrawing(environment, recording)
    return None


class MapDrawing:
    """A moving body among round things on a plane: `start` what stays, `show` what a moment looks like."""

    def __init__(
        self,
        place: np.ndarray,
        heading: np.ndarray | None,
        costly: np.ndarray,
        view: tuple[float, float, float],
        hazard: tuple[float, float, float],
        goal: tuple[float, float],
        arena: float | None = None,
    ) -> None:
        self.place, self.heading, self.costly = place, heading, costly
        self.view, self.hazard, self.goal, self.arena = view, hazard, goal, arena

    def start(self, axes: Any) -> None:
        """Everything, once."""
        from matplotlib.patches import Circle, Polygon, Rectangle

        x, y, half = self.view
        axes.set(xlim=(x - half, x + half), ylim=(y - half, y + half), aspect="equal", facecolor=FLOOR)
        axes.set_xlabel("m")
        if self.arena is not None:
            a = self.arena
            axes.set_facecolor("#F6E7E3")
            axes.add_patch(Rectangle((-a, -a), 2 * a, 2 * a, facecolor=FLOOR, edgecolor=LIMIT_COLOUR, linewidth=1.8))
        colour = COLOURS["hazards"]
        axes.add_patch(
            Circle(self.hazard[:2], self.hazard[2], facecolor=colour, alpha=0.42, edgecolor=colour, zorder=2)
        )
        axes.plot(*self.goal, "*", color=COLOURS["goal"], markersize=18, markeredgecolor="white", zorder=3)
        (self.path,) = axes.plot([], [], color=COLOURS["robot"], linewidth=1.5, alpha=0.55, zorder=3)
        (self.costs,) = axes.plot([], [], "o", color=LIMIT_COLOUR, markersize=3.6, markeredgewidth=0, zorder=4)
        self.size = 0.045 * half
        look: dict[str, Any] = {"facecolor": COLOURS["robot"], "edgecolor": "white", "linewidth": 0.9, "zorder": 6}
        if self.heading is None:
            self.body: Any = axes.add_patch(Circle((0, 0), self.size, **look))
        else:
            self.body = axes.add_patch(Polygon(np.zeros((4, 2)), **look))

    def show(self, moment: int) -> None:
        """Move everything to where it was."""
        self.path.set_data(*self.place[: moment + 1].T)
        self.costs.set_data(*self.place[1 : moment + 1][self.costly[:moment]].T)
        if self.heading is None:
            self.body.set_center(self.place[moment])
        else:
            arrow = 1.6 * self.size * np.array([[1.3, 0], [-0.9, 0.75], [-0.45, 0], [-0.9, -0.75]])
            self.body.set_xy(self.place[moment] + arrow @ turned(float(self.heading[moment])).T)


def _point_mass(recording: Recording) -> MapDrawing:
    numbers = {name: float(value) for name, value in recording.parameters.items()}
    place = recording.state.position
    half = max(1.15 * numbers["half_width"], 1.08 * float(np.abs(place).max()))
    hazard = (numbers["obstacle_x"], numbers["obstacle_y"], numbers["radius"])
    goal = (numbers["goal_x"], numbers["goal_y"])
    return MapDrawing(place, None, recording.costly, (0.0, 0.0, half), hazard, goal, numbers["half_width"])


def _collision_avoidance(recording: Recording) -> MapDrawing:
    from safemeta.tasks.collision_avoidance import GOAL, HAZARD_RADIUS, HAZARD_X

    state = recording.state
    place = np.stack([state.x, state.y], axis=-1)
    hazard = (HAZARD_X, float(state.hazard_y[0]), HAZARD_RADIUS)
    both = np.vstack([place, [GOAL]])
    low, high = both.min(0) - 0.6, both.max(0) + 0.6
    middle, half = (low + high) / 2, float((high - low).max()) / 2
    return MapDrawing(place, state.heading, recording.costly, (float(middle[0]), float(middle[1]), half), hazard, GOAL)


class CartpoleDrawing:
    """A cart on its rail seen from the side; where its position is constrained, what is forbidden is red."""

    def __init__(self, environment: Any, recording: Recording) -> None:
        self.state = recording.state
        self.length = float(recording.parameters["pole_length"])
        allowed = 2 * float(recording.parameters["safety_coeff"])
        self.allowed = allowed if "slider_pos" in environment.constraints else None

    def start(self, axes: Any) -> None:
        """Everything, once."""
        from matplotlib.patches import FancyBboxPatch

        from safemeta.tasks.cartpole import RAIL

        axes.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal", facecolor=FLOOR)
        axes.set_xlabel("m")
        if self.allowed is not None:
            for side in (-1, 1):
                span = sorted((side * self.allowed, side * 2.2))
                axes.axvspan(*span, color=LIMIT_COLOUR, alpha=0.09, linewidth=0, zorder=0)
                axes.axvline(side * self.allowed, color=LIMIT_COLOUR, linewidth=1.8, zorder=1)
        axes.plot([-RAIL, RAIL], [0, 0], color="#9A978E", linewidth=3, solid_capstyle="round", zorder=2)
        for side in (-1, 1):
            axes.plot([side * RAIL] * 2, [-0.12, 0.12], color=INK, linewidth=3, zorder=2)
        (self.trail,) = axes.plot([], [], color=COLOURS["hazards"], linewidth=1.0, alpha=0.45, zorder=2)
        self.cart = FancyBboxPatch((0, 0), 0.4, 0.2, boxstyle="round,pad=0,rounding_size=0.04", zorder=4)
        self.cart.set(facecolor=COLOURS["robot"], edgecolor="white")
        axes.add_patch(self.cart)
        (self.pole,) = axes.plot([], [], color=COLOURS["hazards"], linewidth=7, solid_capstyle="round", zorder=5)
        (self.hinge,) = axes.plot([], [], "o", color="white", markersize=4, zorder=6)

    def show(self, moment: int) -> None:
        """Move everything to where it was."""
        state, first = self.state, max(0, moment - 60)
        x, angle = state.position, state.angle
        tip = np.stack([x + self.length * np.sin(angle), self.length * np.cos(angle)])
        self.cart.set_x(x[moment] - 0.2)
        self.cart.set_y(-0.1)
        self.pole.set_data([x[moment], tip[0, moment]], [0, tip[1, moment]])
        self.hinge.set_data([x[moment]], [0])
        self.trail.set_data(tip[0, first : moment + 1], tip[1, first : moment + 1])
