"""FAC-SIS's Figure 6: zero sublevel sets of indices beside the Hamilton-Jacobi avoidable set.

No learning is involved but for one index that was learned. The paper gives neither bounds of the actions nor the
slice's speed, nor the headings; here the bounds are the released code's, 4 m/s^2 and pi rad/s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safemeta.experiment import figures
from safemeta.papers import drawing
from safemeta.papers.tables import Cell, Table

if TYPE_CHECKING:
    from safemeta.certificates.reachability import Inclusion

HEADINGS = {"heading 45°": np.pi / 4, "heading 90°": np.pi / 2, "heading 135°": 3 * np.pi / 4}
SPEED = 2.0  # m / s, of the slices: half a metre to stop
HALF_WIDTH, POINTS = 2.0, 161  # m, of the slices
FASTEST = (2.0, 4.0)  # m / s: the counts are of states from 0 up to here
LEARNED = "learned here"
NAMES = {"zero": "phi_0", "initial": "phi_i", "synthesised": "phi_SIS", "feasible": "phi_F", "handcrafted": "phi_h"}
SLICES = (("phi_h", False), ("phi_SIS", False), (LEARNED, False), ("phi_h", True), ("phi_SIS", True))


Inclusions = Mapping[tuple[str, bool, float], "Inclusion"]  # (index, whether d_dot is flipped, fastest) -> counts


@dataclass(frozen=True)
class Comparison:
    """What is drawn and told. Slices are `[headings, y, x]`."""

    inclusions: Inclusions
    value: NDArray
    energy: Mapping[tuple[str, bool], NDArray]
    unsettled: float


def compare(shape: tuple[int, int, int], learned: list[float] | None) -> Comparison:
    """Sets of all named indices, and of the learned one (sigma, k, n), on a grid of this shape."""
    from safemeta.certificates import INDICES, SafetyIndex
    from safemeta.certificates.reachability import inclusion, unicycle_clearance
    from safemeta.tasks.collision_avoidance import HAZARD_RADIUS

    avoidable = _avoidable(shape)
    indices = {NAMES[name]: SafetyIndex.named(name, HAZARD_RADIUS) for name in INDICES}
    if learned is not None:
        sigma, k, n = learned
        indices[LEARNED] = SafetyIndex(sigma, [k], n, HAZARD_RADIUS)  # type: ignore[arg-type]

    def flipped_clearance(states: Any) -> Any:
        return unicycle_clearance(states).at[..., 1].multiply(-1)

    found = {}
    for name, index in indices.items():
        for flipped, clearance in ((False, unicycle_clearance), (True, flipped_clearance)):
            for fastest in FASTEST:
                # of closed ranges, so that a state on the hazard's border counts
                ranges = {"distance": (HAZARD_RADIUS, np.inf), "speed": (0.0, fastest)}
                found[name, flipped, fastest] = inclusion(index, avoidable, clearance, ranges)
    energy = {(name, flipped): _energy(indices[name], flipped) for name, flipped in SLICES if name in indices}
    return Comparison(found, _value(avoidable), energy, float(avoidable.unsettled))


@cache
def _avoidable(shape: tuple[int, int, int]) -> Any:
    from safemeta.certificates.reachability import unicycle_avoidable_set

    return unicycle_avoidable_set(shape=shape)


def _plane() -> tuple[NDArray, NDArray]:
    along = np.linspace(-HALF_WIDTH, HALF_WIDTH, POINTS, dtype=np.float32)
    x, y = np.meshgrid(along, along)
    return x, y


def _value(avoidable: Any) -> NDArray:
    import jax.numpy as jnp

    from safemeta.certificates.reachability import reduced_unicycle

    position = jnp.stack(_plane(), axis=-1)
    return np.stack([np.asarray(avoidable.value(reduced_unicycle(position, SPEED, h))) for h in HEADINGS.values()])


def _energy(index: Any, flipped: bool) -> NDArray:
    import jax.numpy as jnp

    from safemeta.tasks.collision_avoidance import CollisionAvoidance, UnicycleState

    environment = CollisionAvoidance(flipped_rate=flipped)
    x, y = (jnp.asarray(axis) for axis in _plane())
    nothing = jnp.zeros_like(x)
    states = [UnicycleState(x, y, nothing + SPEED, nothing + h, nothing) for h in HEADINGS.values()]
    return np.stack([np.asarray(index.index(environment.clearance({}, state))) for state in states])


def table(compared: Comparison) -> Table:
    """How much of each index's safe set is inevitably unsafe."""
    rows: list[tuple[Cell, ...]] = []
    for (name, flipped, fastest), counts in compared.inclusions.items():
        rows.append((
            name, "released sign" if flipped else "true", fastest, counts.sublevel_share, counts.unsafe_share,
            counts.sublevel, counts.unsafe_inside, counts.unsafe_well_inside,
        ))  # fmt: skip
    columns = (
        "index", "d_dot", "speeds up to, m/s", "share with phi <= 0", "share inevitably unsafe", "points with phi <= 0",
        "of them unsafe", "of them unsafe, more than a cell inside",
    )  # fmt: skip
    note = (
        "Grid points outside the hazard. Unsafe: no control with |a| <= 4 m/s^2, |w| <= pi rad/s avoids the hazard"
        f" (V < 0). The solver's last quarter second moved {compared.unsettled:.2%} of the points across. Released"
        " sign: d_dot as the released environment has it left of the hazard, taken for all states here."
    )
    return Table("figure-6", "Figure 6: zero sublevel sets and the avoidable set", columns, tuple(rows), note)


def draw(path: Path, compared: Comparison) -> Path:
    """Energy (colour), its zero level (black), the border of the avoidable set (red), the hazard."""
    rows = [_label(*key) for key in compared.energy]
    subtitle = f"at {SPEED:g} m/s; black: phi = 0, red: border of the avoidable set (V = 0), grey: hazard of 0.5 m"
    x, y = _plane()
    with drawing.grid("FAC-SIS, Figure 6", subtitle, rows, [*HEADINGS]) as (page, axes):
        bound = 3.0
        shaded = None
        for row, energy in zip(axes, compared.energy.values(), strict=True):
            for position, axis in enumerate(row):
                shaded = axis.contourf(
                    x, y, energy[position], np.linspace(-bound, bound, 25), cmap="RdBu_r", extend="both", alpha=0.7
                )
                axis.contour(x, y, energy[position], [0], colors=figures.INK, linewidths=1.6)
                axis.contour(x, y, compared.value[position], [0], colors=figures.LIMIT_COLOUR, linewidths=1.6)
                axis.add_patch(_circle())
                heading = list(HEADINGS.values())[position]
                axis.annotate(
                    "", (-1.5 + 0.5 * np.cos(heading), -1.6 + 0.5 * np.sin(heading)), (-1.5, -1.6),
                    arrowprops={"arrowstyle": "->", "color": figures.INK},
                )  # fmt: skip
                axis.set(aspect="equal", xlabel="x (m)", xticks=(-2, -1, 0, 1, 2), yticks=(-2, -1, 0, 1, 2))
                axis.grid(False)
        if shaded is not None:
            page.colorbar(shaded, ax=axes, label="phi", shrink=0.5, ticks=(-3, -2, -1, 0, 1, 2, 3))
        return figures.save(page, path)


def _label(name: str, flipped: bool) -> str:
    return f"{name}, released sign" if flipped else name


def _circle() -> Any:
    from matplotlib.patches import Circle

    from safemeta.tasks.collision_avoidance import HAZARD_RADIUS

    return Circle((0, 0), HAZARD_RADIUS, facecolor="#888888", edgecolor="none", alpha=0.7, zorder=2)
