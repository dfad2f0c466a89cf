"""D4PG and its shapings: projection and n-step returns against plain loops, and what an iteration keeps."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_worlds import Goals, Reach, reach

from safemeta.algorithms import d4pg, registry
from safemeta.algorithms.categorical import Support
from safemeta.algorithms.d4pg import Penalties
from safemeta.algorithms.n_step import MultiStepBatch, SequenceReplay, multi_step
from safemeta.algorithms.replay import Entry
from safemeta.core import CMDP, Transition
from safemeta.sim import FunctionalWorld
from safemeta.tasks import registry as tasks

CMDP_OF_TWO = CMDP(3, 2, 5, ("one", "other"), (0.1, 0.2), limit_on="per_step")
TINY = {
    "tasks": 2, "hidden": (8, 8), "critic_hidden": (8, 8), "batch": 16, "warm_up": 16, "capacity": 400,
    "steps_per_update": 2, "n_step": 3,
}  # fmt: skip


def random_state(state, seed=0):
    """Networks whose weights and biases are all random, and that differ from their targets."""
    draw = np.random.default_rng(seed).normal

    def networks(s):
        return s.policy, s.critic, s.target_policy, s.target_critic

    noisy = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.3 * draw(size=leaf.shape), leaf.dtype), networks(state))
    return eqx.tree_at(networks, state, noisy)


def some_steps(count, seed=0):
    draw = np.random.default_rng(seed).normal
    return MultiStepBatch(
        jnp.asarray(draw(size=(count, 3))),
        jnp.asarray(np.tanh(draw(size=(count, 2)))),
        jnp.asarray(draw(size=count)),
        jnp.asarray(np.abs(draw(size=(count, 2)))),
        jnp.asarray(draw(size=(count, 3))),
        jnp.asarray([True, False] * (count // 2)),
        jnp.asarray([True] * (count - 2) + [False, True]),
        {},
        {},
        jnp.linspace(0.2, 1, count),
        jnp.asarray([0.0, 0.9] * (count // 2)),
    )


def projected_by_hand(support, values, probabilities):
    """Bellemare, Dabney, Munos 2017, Algorithm 1."""
    found = np.zeros(support.atoms)
    for value, probability in zip(values, probabilities, strict=True):
        position = (min(max(value, support.low), support.high) - support.low) / support.gap
        lower, upper = int(np.floor(position)), int(np.ceil(position))
        if lower == upper:
            found[lower] += probability
        else:
            found[lower] += probability * (upper - position)
            found[upper] += probability * (position - lower)
    return found


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_the_projection_is_that_of_a_plain_loop(x64, spread):
    support = Support(-1.0, 2.0, 7)
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.normal(scale=spread, size=(4, 9)), np.linspace(-1, 2, 7)[[[0, 0, 1, 2, 3, 4, 5, 6, 6]]]]
    )
    probabilities = rng.dirichlet(np.ones(9), size=5)
    found = support.project(jnp.asarray(values), jnp.asarray(probabilities))
    for row in range(5):
        np.testing.assert_allclose(found[row], projected_by_hand(support, values[row], probabilities[row]), atol=1e-12)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-12)
    beyond = np.sum(probabilities * ((values < -1) | (values > 2)), axis=1)
    np.testing.assert_allclose(support.outside(jnp.asarray(values), jnp.asarray(probabilities)), beyond, atol=1e-12)


def test_the_projection_keeps_the_mean_of_what_it_can_hold_and_its_derivative(x64):
    support = Support(-1.0, 2.0, 7)
    values, probabilities = jnp.asarray([-1.4, 0.2, 0.9, 2.6]), jnp.asarray([0.1, 0.4, 0.3, 0.2])
    held = np.clip(values, -1, 2)
    assert float(support.project(values, probabilities) @ support.values(values.dtype)) == pytest.approx(
        float(held @ probabilities)
    )
    slope = jax.jacfwd(support.project)(values, probabilities)
    np.testing.assert_array_equal(slope[:, [0, 3]], 0)  # clipped
    found = slope.T @ support.values(values.dtype)
    np.testing.assert_allclose(found, [0, 0.4, 0.3, 0], atol=1e-12)


def made_up_rows(seed=0, rows=4, horizon=9, episodes=3):
    """Entries `[rows, time]` of episodes that terminate, are cut off early, or last; and the steps of each."""
    rng = np.random.default_rng(seed)
    entries, told = [], []
    for row in range(rows):
        line = []
        for episode in range(episodes):
            length = int(rng.integers(1, horizon + 1))
            terminates = bool(rng.integers(2)) and length < horizon
            steps = []
            for t in range(horizon):
                mark = 1000.0 * row + 100 * episode + min(t, length)  # an ended row stays where it is
                alive = t < length
                reward, costs = (rng.normal(), rng.normal(size=2)) if alive else (0.0, np.zeros(2))
                line.append((mark, reward, costs, alive and terminates and t == length - 1, alive))
                if alive:
                    steps.append((mark, reward, costs))
            line.append((1000.0 * row + 100 * episode + length, 0.0, np.zeros(2), False, False))  # the closing entry
            told.append((steps, terminates, line[-1][0]))
        entries.append(line)
    return entries, told


def as_entries(line):
    mark, reward, costs, terminated, valid = (np.array(part) for part in zip(*line, strict=True))
    count = len(mark)
    seen = jnp.asarray(mark)[:, None]
    return Entry(
        seen,
        jnp.zeros((count, 1)),
        jnp.asarray(reward),
        jnp.asarray(costs),
        jnp.asarray(terminated),
        jnp.asarray(valid),
        {"place": seen},
    )


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sums_of_several_steps_are_those_of_a_plain_loop(x64, steps):
    gamma = 0.9
    entries, told = made_up_rows()
    expected = {}
    for episode, terminates, end in told:
        for t in range(len(episode)):
            part = episode[t : t + steps]
            reward = sum(gamma**k * r for k, (_, r, _) in enumerate(part))
            costs = sum(gamma**k * c for k, (_, _, c) in enumerate(part))
            following = episode[t + steps][0] if t + steps < len(episode) else end
            over = terminates and t + steps >= len(episode)
            expected[episode[t][0]] = (reward, costs, following, over, 0.0 if over else gamma ** len(part))
    met = set()
    for line in entries:
        whole = as_entries(line)
        starts = np.arange(len(line) - steps)
        places = starts[:, None] + np.arange(steps + 1)
        found = multi_step(jax.tree.map(lambda leaf, at=places: leaf[at], whole), gamma)
        for index, start in enumerate(starts):
            if not line[start][4]:
                assert float(found.valid[index]) == 0
                continue
            reward, costs, following, over, discount = expected[line[start][0]]
            met.add(line[start][0])
            assert float(found.valid[index]) == 1
            assert float(found.reward[index]) == pytest.approx(reward, abs=1e-12)
            np.testing.assert_allclose(found.costs[index], costs, atol=1e-12)
            assert float(found.next_observation[index, 0]) == following
            assert float(found.next_signals["place"][index, 0]) == following
            assert bool(found.terminated[index]) is over
            assert float(found.discount[index]) == pytest.approx(discount, abs=1e-12)
    assert len(met) >= len(expected) - 4 * steps  # all but what no whole sequence follows
    assert any(over for *_, over, _ in expected.values())


def test_rewards_and_costs_of_three_steps(x64):
    """r = 1, 1/2, 1/4 and c = 0, 1, 1 at discount 0.99."""
    line = [
        (float(t), r, np.array([float(c)]), False, True)
        for t, (r, c) in enumerate([(1, 0), (0.5, 1), (0.25, 1), (9, 9)])
    ]
    found = multi_step(jax.tree.map(lambda leaf: leaf[None], as_entries(line)), 0.99)
    assert float(found.reward[0]) == pytest.approx(1.740025, abs=1e-12)
    assert float(found.costs[0, 0]) == pytest.approx(1.9701, abs=1e-12)
    assert float(found.reward[0] - 0.5 * found.costs[0, 0]) == pytest.approx(0.754975, abs=1e-12)
    assert float(found.discount[0]) == pytest.approx(0.970299, abs=1e-12)


def test_replayed_sequences_do_not_leak_through_the_buffers_end():
    """Small capacity, many episodes of four steps: the successor is three further on, or where the episode ended."""
    replay = SequenceReplay(3, 60, 512, 3, 0.5)
    world = CMDP(1, 1, 4, ("cost",), (1.0,))
    state = replay.init(world)
    for episode in range(7):
        start = 100.0 * jnp.arange(3) + 1000 * episode
        for t in range(4):
            at = (start + t)[:, None]
            no, yes = jnp.zeros(3, bool), jnp.ones(3, bool)
            last = Transition(at, at, jnp.ones(3), jnp.ones((3, 1)), at + 1, no, yes, {}, {})
            state = replay.add(state, last)
        state = replay.close(state, last)
    batch = replay.sample(state, jax.random.key(0))
    counts = np.asarray(batch.valid) > 0
    place = np.asarray(batch.observation)[counts, 0] % 100
    made = np.minimum(3, 4 - place)
    np.testing.assert_array_equal(
        np.asarray(batch.next_observation)[counts, 0], np.asarray(batch.observation)[counts, 0] + made
    )
    np.testing.assert_allclose(batch.reward[counts], 2 * (1 - 0.5**made))
    np.testing.assert_allclose(batch.discount[counts], 0.5**made)
    assert set(place) == {0, 1, 2, 3}


def test_what_the_critic_is_trained_on_by_hand(x64):
    config = d4pg.D4pgConfig(hidden=(5,), critic_hidden=(6,), atoms=7, support=(-2.0, 2.0))
    learner = d4pg.D4pgLearner(config, CMDP_OF_TWO)
    state, batch = random_state(learner.init(jax.random.key(0))), some_steps(6)
    multiplier = jnp.asarray([0.3, 0.05])

    @eqx.filter_jit
    def loss(state):
        return d4pg.critic_loss(state.critic, multiplier, d4pg.evidence(config, state, batch), config.categories)[0]

    @eqx.filter_jit
    def expected(state, observation):
        return jax.nn.softmax(state.target_critic(observation, state.target_policy(observation)))

    found, critic, total = loss(state), eqx.filter_jit(state.critic), 0.0
    for i in range(6):
        probabilities = np.asarray(expected(state, batch.next_observation[i]))
        shaped = float(batch.reward[i]) - 0.3 * float(batch.costs[i, 0]) - 0.05 * float(batch.costs[i, 1])
        values = shaped + float(batch.discount[i]) * np.linspace(-2, 2, 7)
        target = projected_by_hand(config.categories, values, probabilities)
        logits = np.asarray(critic(batch.observation[i], batch.action[i]))
        total -= float(batch.valid[i] * batch.weight[i]) * target @ (logits - np.log(np.exp(logits).sum()))
    assert float(found) == pytest.approx(total / 5, abs=1e-10)


def test_the_policy_ascends_the_critics_mean(x64):
    config = d4pg.D4pgConfig(hidden=(5,), critic_hidden=(6,), atoms=7, support=(-2.0, 2.0), action_gradient_clip=None)
    state, batch = random_state(d4pg.D4pgLearner(config, CMDP_OF_TWO).init(jax.random.key(0))), some_steps(6)
    policy, optimizer, _ = eqx.filter_jit(d4pg.policy_step)(config, state, batch)

    @eqx.filter_jit
    def value(policy):
        return batch.mean(config.categories.mean(state.critic(batch.observation, policy(batch.observation))))

    # after one step of Adam its first moment is a tenth of the gradient: of -2 E[Q]
    wanted = eqx.filter_grad(value)(state.policy)
    seen = next(
        part.mu for part in jax.tree.leaves(optimizer, is_leaf=lambda p: hasattr(p, "mu")) if hasattr(part, "mu")
    )
    for gradient, moment in zip(jax.tree.leaves(wanted), jax.tree.leaves(seen), strict=True):
        np.testing.assert_allclose(moment, -0.2 * gradient, rtol=1e-6, atol=1e-12)
    assert float(value(policy)) > float(value(state.policy))


def test_the_penalty_buffer_keeps_the_last_episodes():
    penalties = Penalties.create(5, 1)
    np.testing.assert_array_equal(penalties.draw(jax.random.key(0)), 0)
    for start in (0.0, 3.0, 6.0):
        penalties = penalties.add(start + jnp.arange(1.0, 4.0)[:, None])
    assert sorted(np.asarray(penalties.excess[:, 0])) == [5, 6, 7, 8, 9]
    drawn = {float(penalties.draw(jax.random.key(seed))[0]) for seed in range(60)}
    assert drawn == {5, 6, 7, 8, 9}
    few = Penalties.create(5, 1).add(jnp.asarray([[0.5], [0.25]]))
    assert {float(few.draw(jax.random.key(seed))[0]) for seed in range(30)} == {0.5, 0.25}
    many = Penalties.create(2, 1).add(jnp.arange(5.0)[:, None])
    assert sorted(np.asarray(many.excess[:, 0])) == [3, 4]


@pytest.mark.parametrize(
    ("name", "replay"), [pytest.param("rs-d4pg", "uniform", marks=pytest.mark.slow), ("metal", "prioritised")]
)
def test_iterations_are_repeatable_and_keep_their_structure(name, replay):
    world = tasks.make("realworld-cartpole", horizon=12)
    module = registry.load(name)
    algorithm = module.algorithm(module.config(**TINY, replay=replay))
    state = algorithm.init(jax.random.key(0), world.cmdp)
    (once, metrics), (again, _) = (algorithm.iterate(state, world, jax.random.key(1)) for _ in range(2))
    assert jax.tree.structure(state) == jax.tree.structure(once)
    for before, one, other in zip(*(jax.tree.leaves(s) for s in (state, once, again)), strict=True):
        np.testing.assert_array_equal(one, other)
        assert (before.shape, before.dtype) == (one.shape, one.dtype)
    assert int(metrics["updates"]) == 12 - 7  # one per control step of two rows, after 16 steps
    assert int(once.learner.count) == 5
    assert float(metrics["multiplier"]) == pytest.approx(0.1 if name == "rs-d4pg" else 0.0)
    assert all(np.isfinite(float(value)) for value in metrics.values())
    expected = float(metrics["return"]) - 1000 * float(metrics["overshoot"])
    assert float(metrics["penalised_return"]) == pytest.approx(expected)


def test_target_networks_are_renewed_when_due():
    config = d4pg.D4pgConfig(**{**TINY, "target_period": 3})
    learner = d4pg.D4pgLearner(config, CMDP_OF_TWO)
    state, batch = learner.init(jax.random.key(0)), some_steps(16)
    batch = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf, batch)
    update, shown = eqx.filter_jit(learner.update), [state.critic.head.weight]
    for count in range(1, 5):
        state, _ = update(state, batch, jax.random.key(count))
        shown.append(state.critic.head.weight)
        np.testing.assert_array_equal(state.target_critic.head.weight, shown[count // 3 * 3])
    assert not np.array_equal(shown[0], shown[3])


@pytest.mark.parametrize(
    ("name", "limit", "changes", "expected"),
    [
        # the middle of the goals, which are not seen
        pytest.param("d4pg", 1e3, {}, 0.65, marks=pytest.mark.slow),
        # ten efforts of 0.13, of which noise makes 0.04
        ("rc-d4pg", 1.3, {"multiplier_rate": 1e-3, "penalty_episodes": 8}, 0.3),
        pytest.param(
            "rc-d4pg",
            1.3,
            {"multiplier_rate": 1e-3, "penalty_episodes": 8, "replay": "prioritised"},
            0.3,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_it_finds_the_best_action_and_with_a_limit_the_best_that_is_allowed(name, limit, changes, expected):
    quick = {
        "tasks": 4, "episodes": 2, "hidden": (32, 32), "critic_hidden": (32, 32), "batch": 64, "warm_up": 64,
        "steps_per_update": 8, "capacity": 4000, "policy_rate": 1e-3, "critic_rate": 3e-3, "target_period": 10,
        "support": (-10.0, 10.0), "noise": 0.2,
    }  # fmt: skip
    world = FunctionalWorld(reach(limit).cmdp, Reach(), Goals(limit, low=0.6, high=0.7))
    module = registry.load(name)
    algorithm = module.algorithm(module.config(**quick, **changes))
    state = algorithm.init(jax.random.key(0), world.cmdp)
    for index in range(150):
        state, metrics = algorithm.iterate(state, world, jax.random.key(index))
    rows = world.collect(algorithm.policy(state), world.sample(jax.random.key(99), 4), jax.random.key(98), 1)
    assert float(rows.action.mean()) == pytest.approx(expected, abs=0.1)
    if name == "rc-d4pg":
        assert float(metrics["multiplier"]) > 0.3  # 2 (0.65 - a) = 2 lambda a at the optimum: lambda about 1.2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"support": (1.0, -1.0)}, "support"),
        ({"atoms": 1}, "atoms"),
        ({"n_step": 0}, "n_step"),
        ({"critic_hidden": ()}, "critic_hidden"),
        ({"capacity": 8}, "capacity"),
        ({"action_gradient_clip": 0.0}, "action_gradient_clip"),
        ({"priority_exponent": 1.5}, "priority_exponent"),
        ({"importance_exponent": -0.1}, "importance_exponent"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        d4pg.Algorithm(d4pg.D4pgConfig(**{**TINY, **change}))


def test_fixed_multipliers_must_fit_the_task():
    with pytest.raises(ValueError, match="zero or more"):
        d4pg.Fixed(d4pg.FixedConfig(**TINY, multiplier=(-1.0,)))
    algorithm = d4pg.Fixed(d4pg.FixedConfig(**TINY, multiplier=(1.0, 2.0)))
    with pytest.raises(ValueError, match="has 2 numbers; this task has 1"):
        algorithm.init(jax.random.key(0), tasks.make("realworld-cartpole").cmdp)


def test_a_support_that_cannot_hold_the_shaped_returns_is_named():
    world = tasks.make("realworld-cartpole")
    with pytest.warns(UserWarning, match=r"-150 to 150.* from -999.957 to 99.9957"):
        d4pg.Fixed(d4pg.FixedConfig(**TINY, multiplier=(10.0,))).init(jax.random.key(0), world.cmdp)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d4pg.Fixed(d4pg.FixedConfig(**TINY, multiplier=(1.0,))).init(jax.random.key(0), world.cmdp)
