"""Judge a safety index: its value, where it leaves a safe action, and whether its safe set can be kept at all.

    python examples/safety_index.py [INDEX]

INDEX is zero, handcrafted, feasible, initial or synthesised (of FAC-SIS); the robot is its unicycle before a round
hazard, with a model at hand. Takes about ten seconds on two cores.
"""

import sys

import jax.numpy as jnp

from safemeta.certificates import SafetyIndex, action_grid, feasible_states, filter_action
from safemeta.certificates.reachability import inclusion, unicycle_avoidable_set, unicycle_clearance
from safemeta.tasks.collision_avoidance import HAZARD_RADIUS, CollisionAvoidance, UnicycleState, advance

TOP_SPEED = 4.0  # m / s


def clearance(state: UnicycleState) -> jnp.ndarray:
    """(d, d') of the one hazard."""
    return CollisionAvoidance().clearance({}, state)


def main(name: str = "handcrafted", shape: tuple[int, int, int] = (41, 61, 32)) -> None:
    """Print what the index says of one state, and shares over a grid of states."""
    index = SafetyIndex.named(name, d_min=HAZARD_RADIUS)
    actions = action_grid(2, 17)

    # one state: the hazard at the origin, the robot a metre below it and on its way there
    state = UnicycleState(*map(jnp.asarray, (0.05, -1.0, 2.0, jnp.pi / 2, 0.0)))
    chosen = filter_action(index, advance, clearance, state, jnp.array([1.0, 0.0]), actions)
    distance, rate = clearance(state)[0]
    print(f"d = {distance:.2f} m, d' = {rate:.2f} m/s: phi = {index.index(clearance(state)):.3f}")
    print(f"wanted (1, 0), full throttle; the filter takes ({chosen.action[0]:.2f}, {chosen.action[1]:.2f})")

    # all states: distance, speed and heading less the direction from the hazard (0: straight away)
    avoidable = unicycle_avoidable_set(shape=shape)
    z = avoidable.states.reshape(-1, 3)
    z = z[(z[:, 0] > HAZARD_RADIUS) & (z[:, 1] > -0.01) & (z[:, 1] < TOP_SPEED + 0.01)]  # rounding aside
    nothing = jnp.zeros(len(z))
    found = feasible_states(
        index, advance, clearance, UnicycleState(z[:, 0], nothing, z[:, 1], z[:, 2], nothing), actions
    )
    print(f"states without a safe action: {1 - found.feasible.mean():.2%} of {len(z)}")
    worst = z[jnp.argmax(found.least_violation)]
    print(f"  worst: d = {worst[0]:.2f} m, v = {worst[1]:.2f} m/s, psi = {worst[2]:.2f} rad")

    ranges = {"distance": (HAZARD_RADIUS, jnp.inf), "speed": (0.0, TOP_SPEED)}
    compared = inclusion(index, avoidable, unicycle_clearance, ranges)
    print(f"states with phi <= 0: {compared.sublevel_share:.1%}; from which a collision is inevitable: ", end="")
    print(f"{compared.unsafe_inside} of these, {compared.unsafe} of all {compared.points}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "handcrafted")
