"""Replay of the Real-World RL suite's walker, quadruped and humanoid: all steps of a trace at once."""

import jax
import jax.numpy as jnp
import numpy as np

from safemeta.sim.mujoco import Placement, engine_of
from safemeta.tasks.realworld import Humanoid, Quadruped, RealWorld, Walker
from safemeta.tasks.trace import MaxError, Replay, Trace, TraceError, largest

# With the faults of the original, since that is what was recorded.
ENVIRONMENTS: dict[str, RealWorld] = {
    "walker": Walker(Walker.known[:-1], observe_constraints=True, any_joint=True),
    "quadruped": Quadruped(Quadruped.known[:-1], observe_constraints=True),
    "humanoid": Humanoid(Humanoid.known[:-1], observe_constraints=True, skipped_joint=True),
}
COMPONENTS = {
    "walker": ("orientations", "height", "velocity"),
    "quadruped": ("egocentric_state", "torso_velocity", "torso_upright", "imu", "force_torque"),
    "humanoid": ("joint_angles", "head_height", "extremities", "torso_vertical", "com_velocity", "velocity"),
}


def replay_realworld(trace: Trace) -> Replay:
    """Walker, quadruped and humanoid walk on MuJoCo, re-synchronised at every step. Raises `TraceError`.

    The observation includes the constraints; a cost agrees where all constraints do.
    """
    domain, coefficient = trace.meta.get("domain"), trace.meta.get("safety_coeff")
    if domain not in ENVIRONMENTS or trace.meta.get("task") != "realworld_walk":
        raise TraceError(f"{trace.file} was not recorded from realworld_walk of {', '.join(ENVIRONMENTS)}")
    if not (isinstance(coefficient, int | float) and 0 <= coefficient <= 1):
        raise TraceError(f"{trace.file}: its 'meta' does not give a safety_coeff within [0, 1]")
    steps = trace.arrays["action"].shape[0] if "action" in trace.arrays and trace.arrays["action"].ndim else 0
    if steps < 1:
        raise TraceError(f"{trace.file} holds no steps")
    environment = ENVIRONMENTS[domain]
    engine = engine_of(environment)
    model = engine.model
    control = trace.array("action", steps, model.nu)
    qpos, qvel = trace.array("qpos", steps + 1, model.nq), trace.array("qvel", steps + 1, model.nv)
    act = trace.array("act", steps + 1, model.na)
    reward = trace.array("reward", steps)
    sizes = trace.meta.get("obs_layout", {})
    recorded = np.concatenate(
        [
            trace.array(f"obs/{name}", steps + 1, int(sizes.get(name, 1)))
            for name in (*COMPONENTS[domain], "constraints")
        ],
        axis=1,
    )
    if recorded.shape[1] != environment.observation_size:
        raise TraceError(
            f"{trace.file}: its observation has {recorded.shape[1]} numbers, not {environment.observation_size}"
        )

    with jax.enable_x64(True):
        session, _ = engine.start(Placement(qpos[:-1], qvel[:-1], np.zeros((steps, 0, 3))))
        for data, activation in zip(engine.data(session), act, strict=False):
            data.act[:] = activation
        reading = engine.named(jnp.asarray(engine.advance(session, control, None, np.ones(steps, bool))))
        rows = engine.data(session)
        ours_qpos, ours_qvel = np.stack([data.qpos for data in rows]), np.stack([data.qvel for data in rows])
        engine.finish(session)
        parameters = {"safety_coeff": jnp.asarray(float(coefficient))}
        before = {"control": jnp.asarray(np.concatenate([np.zeros((1, model.nu)), control[:-1]]))}
        step = jax.jit(jax.vmap(environment.step, in_axes=(None, 0, 0, 0)))
        _, result = step(parameters, before, reading, environment.action(jnp.asarray(control)))
        agreed = (np.asarray(result.costs) == 1 - recorded[1:, environment.seen :]).all(axis=1)
    return Replay(
        file=trace.file,
        steps=steps,
        skipped=[],
        max_error=MaxError(
            qpos=largest(ours_qpos, qpos[1:]),
            qvel=largest(ours_qvel, qvel[1:]),
            observation=largest(result.observation, recorded[1:]),
            reward=largest(result.reward, reward),
        ),
        cost_agreement=float(agreed.mean()),
    )
