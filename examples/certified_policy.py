"""Learn a policy and the certificate that it keeps to, and try both: about a minute on two cores.

A unicycle drives to a goal; a round hazard is in the way. FAC-SIS learns to drive and, at the same time, a safety
index: an energy that must stay low, or fall, with every step.
"""

import jax

import safemeta

run = safemeta.train("fac-sis", "collision-avoidance", preset="fast", iterations=200, seed=0)

report = safemeta.evaluate(run, tasks=1, episodes=100)
within = report.largest_cost[0].cost.mean
print(f"return {report.episode_return.mean:.1f}; steps within the hazard per episode: {within:.2f}")

index = run.state.learner.index
sigma, k, n = index.clipped()
print(
    f"phi = {float(sigma):.3f} + d_min^n - d^n - {float(k[0]):.3f} d_dot, n = {float(n):.3f}, d_min = {index.d_min} m"
)

# The energy of driving at the hazard's centre at 1 m/s, from ever nearer: where it is above zero, brake or turn.
for distance in (2.0, 1.5, 1.0, 0.7):
    energy = index.index(jax.numpy.array([[distance, -1.0]]))
    print(f"{distance} m ahead: phi = {float(energy):+.2f}")
