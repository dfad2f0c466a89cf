"""How an algorithm that is no meta-learner is tested on a new task: it goes on from where training left it.

In the Meta-CPO paper (Figure 5, third row) CPO and TRPO are deployed as they were trained and adapt by further steps;
the released code does the same. Here each further step is the inner step of the bilevel loop, on the same amount of
data and with the same trust region as Meta-CPO's, so that only the policy that they start from differs.
"""

from typing import Any, get_args

from safemeta.experiment.errors import UserError


def learner_at_test(run: Any) -> tuple[Any, Any]:
    """Algorithm and state that adapt the run's policy: its own, or inner steps from the policy it ended with."""
    if run.is_meta:
        return run.algorithm, run.state
    from safemeta.algorithms import bilevel, trust_region
    from safemeta.algorithms.bilevel_config import BilevelConfig, Inner

    name, config = run.config.algorithm, run.config.options
    if name not in get_args(Inner) or not isinstance(config, trust_region.TrustRegionConfig):
        raise UserError(f"'{name}' can neither adapt nor go on with steps of its own, so it cannot be tested.")
    inner = BilevelConfig(
        inner=name,
        episodes=config.episodes,
        hidden=config.hidden,
        deviation=config.deviation,
        inner_radius=config.kl_radius,
        margin=config.margin,
        critic=config.critic,
        gae_smoothing=config.gae_smoothing,
        cg_iterations=config.cg_iterations,
        damping=config.damping,
    )
    return bilevel.Algorithm(inner), bilevel.State(run.state.policy, run.state.critics)
