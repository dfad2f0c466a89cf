"""Replay of the Real-World RL suite's cartpole, as `safemeta.tasks.replay` does it: re-synchronised at every step."""

import numpy as np

from safemeta.tasks.trace import MaxError, Replay, Trace, TraceError, largest

RECORDED = ("slider_pos", "slider_accel", "balance_velocity")  # in the order of the original's vector


def replay_cartpole(trace: Trace) -> Replay:
    """Cartpole swing-up in closed form, with the original's stale acceleration. Raises `TraceError`.

    The observation is position, velocity and the constraints, row 0 included; a cost agrees where all constraints do.
    """
    import jax
    import jax.numpy as jnp

    from safemeta.tasks import cartpole

    coefficient = trace.meta.get("safety_coeff")
    if (trace.meta.get("domain"), trace.meta.get("task")) != ("cartpole", "realworld_swingup"):
        raise TraceError(f"{trace.file} was not recorded from cartpole/realworld_swingup")
    if not (isinstance(coefficient, int | float) and 0 <= coefficient <= 1):
        raise TraceError(f"{trace.file}: its 'meta' does not give a safety_coeff within [0, 1]")
    steps = trace.arrays["action"].shape[0] if "action" in trace.arrays and trace.arrays["action"].ndim else 0
    if steps < 1:
        raise TraceError(f"{trace.file} holds no steps")
    action = trace.array("action", steps, cartpole.ACTION_SIZE)
    qpos, qvel = trace.array("qpos", steps + 1, 2), trace.array("qvel", steps + 1, 2)
    sizes = {"position": 3, "velocity": 2, "constraints": len(RECORDED)}
    observation = np.concatenate([trace.array(f"obs/{name}", steps + 1, size) for name, size in sizes.items()], axis=1)
    reward = trace.array("reward", steps)

    with jax.enable_x64(True):
        single = cartpole.CartpoleRange(safety_coeff=(coefficient, coefficient))
        parameters = {name: jnp.asarray(span[0]) for name, span in single.spans().items()}
        environment = cartpole.Cartpole(RECORDED, observe_constraints=True, stale_acceleration=True)
        control = np.concatenate([[0.0], action[:, 0]])  # the one that led to each row
        rows = cartpole.CartpoleState(
            *(jnp.asarray(values) for values in (qpos[:, 0], qpos[:, 1], qvel[:, 0], qvel[:, 1], control))
        )
        first = jax.tree.map(lambda leaf: leaf[0], rows)
        seen_first = environment.observe(first, environment.violations(parameters, first, first.control, None))
        before = jax.tree.map(lambda leaf: leaf[:-1], rows)
        step = jax.jit(jax.vmap(environment.step, in_axes=(None, 0, 0)))
        state, result = step(parameters, before, jnp.asarray(action))
        seen = np.concatenate([np.asarray(seen_first)[None], np.asarray(result.observation)])
        places = np.column_stack([state.position, state.angle])
        speeds = np.column_stack([state.velocity, state.angular_velocity])
        agreed = (np.asarray(result.costs) == 1 - observation[1:, 5:]).all(axis=1)
        ours = np.asarray(result.reward)
    return Replay(
        file=trace.file,
        steps=steps,
        skipped=[],
        max_error=MaxError(
            qpos=largest(places, qpos[1:]),
            qvel=largest(speeds, qvel[1:]),
            observation=largest(seen, observation),
            reward=largest(ours, reward),
        ),
        cost_agreement=float(agreed.mean()),
    )
