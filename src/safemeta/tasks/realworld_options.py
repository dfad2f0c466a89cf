"""Options of the Real-World RL suite's tasks: constraints, faults of the original, challenges. Imports no JAX.

Names and bounds of the perturbed dynamics are those of the suite (github.com/google-research/realworldrl_suite:
`PERTURB_PARAMS` and `_setup_perturb` of each environment); the last constraint of each is inactive there by default.
"""

from safemeta.tasks.options import Option

CARTPOLE_CONSTRAINTS = ("slider_pos", "slider_accel", "balance_velocity", "action_roc")
WALKER_CONSTRAINTS = ("joint_angle", "joint_velocity", "dangerous_fall", "torso_upright", "action_roc")
QUADRUPED_CONSTRAINTS = ("joint_angle", "joint_velocity", "upright", "foot_force", "action_roc")
HUMANOID_CONSTRAINTS = ("joint_angle", "joint_velocity", "upright", "dangerous_fall", "foot_force", "action_roc")

CHALLENGES = (
    Option("action_delay", "count", 0, "control steps after which an action takes effect"),
    Option("observation_delay", "count", 0, "control steps after which a state is seen"),
    Option("reward_delay", "count", 0, "control steps after which a reward is paid"),
    Option("action_noise", "number", 0.0, "standard deviation of Gaussian noise on every action, in [-1, 1]"),
    Option("observation_noise", "number", 0.0, "standard deviation of Gaussian noise on every observation"),
    Option("action_repetition", "count", 1, "control steps for which an action is held", low=1.0),
    Option("observation_dropped", "number", 0.0, "probability with which an entry that is seen drops to 0", high=1.0),
    Option("observation_dropped_steps", "count", 1, "control steps for which it does", low=1.0),
    Option("observation_stuck", "number", 0.0, "probability with which an entry that is seen sticks", high=1.0),
    Option("observation_stuck_steps", "count", 1, "control steps for which it does", low=1.0),
)


def _safety(constraints: tuple[str, ...], default: str) -> tuple[Option, ...]:
    return (
        Option("constraint", "names", default, "constraints, one cost each", choices=constraints),
        Option("safety_coeff", "range", 0.3, "scale of the constraints: smaller is stricter", high=1.0, above=True),
        Option("observe_constraints", "switch", False, "whether satisfied constraints are part of the observation"),
    )


CARTPOLE = (
    *_safety(CARTPOLE_CONSTRAINTS, "slider_pos"),
    Option("stale_acceleration", "switch", False, "slider_accel as in the original: of no state of the trajectory"),
    Option("pole_length", "range", 1.0, "length of the pole (m), at the same mass per metre", 0.3, 3.0),
    Option("pole_mass", "range", 0.1, "mass of a pole of 1 m (kg)", 0.1, 10.0),
    Option("joint_damping", "range", 2e-6, "damping of the pole's hinge (N m s)", 2e-6, 0.2),
    Option("slider_damping", "range", 5e-4, "damping of the cart (N s / m)", 5e-4, 3.0),
    *CHALLENGES,
)
WALKER = (
    *_safety(WALKER_CONSTRAINTS, "joint_velocity"),
    Option("any_joint", "switch", False, "joint_angle as in the original: satisfied if any joint is"),
    Option("thigh_length", "number", 0.225, "half the length of each thigh (m)", 0.1, 0.7),
    Option("torso_length", "number", 0.3, "half the length of the torso (m)", 0.1, 0.7),
    Option("joint_damping", "number", 0.1, "damping of hips, knees and ankles (N m s)", 0.1, 10.0),
    Option("contact_friction", "number", 0.7, "coefficient of sliding friction", 0.01, 2.0),
    *CHALLENGES,
)
QUADRUPED = (*_safety(QUADRUPED_CONSTRAINTS, "joint_angle"), *CHALLENGES)
HUMANOID = (
    *_safety(HUMANOID_CONSTRAINTS, "joint_angle"),
    Option("skipped_joint", "switch", False, "joint_velocity as in the original: the first joint is not seen"),
    *CHALLENGES,
)
