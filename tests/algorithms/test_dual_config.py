"""Settings of the dual method: what is refused, and how it is said."""

from dataclasses import fields, replace

import pytest

from safemeta.algorithms.dual import ITERATIONS, PRESETS, Algorithm, Config

NAN, INFINITE = float("nan"), float("inf")
BAD = {
    "tasks": (0, -1),
    "episodes": (0, -1),
    "corner_tasks": (-1, 11),
    "hidden": ((), (0,), (8, -1)),
    "initial_log_std": (NAN, INFINITE),
    "kl_weight": (0.0, -1.0, NAN, INFINITE),
    "cost_kl_weight": (-1.0, NAN, INFINITE),
    "slack": (-1.0, NAN, INFINITE),
    "margin": (-0.1, 1.0, NAN),
    "kl_limit": (0.0, -0.01, NAN, INFINITE),
    "lowering": (-1.0, NAN, INFINITE),
    "fit_steps": (0,),
    "fit_learning_rate": (0.0, -1e-3, NAN),
    "meta_kl": (0.0, -0.01, NAN, INFINITE),
    "meta_margin": (-0.1, 1.0, NAN),
    "cost_episodes": (-1,),
    "integral_gain": (-0.1, NAN, INFINITE),
    "worst_temperature": (0.0, -1.0, NAN),
    "validation_margin": (-0.1, 1.0, NAN),
    "validation_every": (0,),
    "validation_tasks": (0,),
    "validation_episodes": (0,),
    "corner_episodes": (1,),
    "critic_learning_rate": (0.0, -1e-3, NAN),
    "critic_steps": (0,),
    "adapt_critic_steps": (0,),
    "minibatch": (0,),
    "gae_smoothing": (-0.1, 1.1, NAN),
    "cg_iterations": (0,),
    "damping": (-1e-3, NAN, INFINITE),
    "fisher_states": (0, -5),
    "form": ("Natural", ""),
    "adapt": ("first",),
    "deviation": ("fixed",),
    "meta_update": ("up",),
    "meta_gradient": ("second",),
    "critic": ("none",),
}


def unchecked(name, value) -> Config:
    """As a user would make it: in the tests, types are checked before values are."""
    config = Config()
    object.__setattr__(config, name, value)
    return config


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_settings_that_make_no_sense_are_refused_in_one_sentence_that_names_them(name, value):
    with pytest.raises(ValueError, match=name) as caught:
        Algorithm(unchecked(name, value))
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_every_setting_that_is_not_a_switch_has_values_that_are_refused():
    """A setting that is added without a check is noticed here."""
    assert {field.name for field in fields(Config) if not isinstance(field.default, bool)} == set(BAD)


def test_cross_fitting_needs_two_episodes():
    for name in ("cross_fit", "meta_cross_fit"):
        with pytest.raises(ValueError, match="cross_fit needs at least 2 episodes"):
            Algorithm(replace(Config(), episodes=1, **{name: True}))
    Algorithm(Config(episodes=1))


def test_the_edge_of_what_makes_sense_is_accepted():
    for edge in ({"tasks": 1, "corner_tasks": 1}, {"cost_episodes": 0}, {"slack": 2.5}, {"margin": 0.0}):
        Algorithm(replace(Config(), **edge))


def test_named_settings_are_valid_and_the_default_is_the_safe_one():
    for preset in PRESETS.values():
        preset.validate()
    assert PRESETS["safe"] == Config()
    paper = PRESETS["paper"]
    # What the paper states (D.2 and Algorithms 2 to 4).
    assert (paper.form, paper.adapt, paper.deviation) == ("fit", "all", "state")
    assert (paper.meta_update, paper.meta_gradient, paper.meta_kl) == ("switch", "first", 1e-3)
    assert (paper.kl_weight, paper.cost_kl_weight, paper.slack) == (0.5, 0.5, 0.0)
    assert (paper.margin, paper.meta_margin, paper.validation_margin, paper.cost_episodes) == (0, 0, 0, 0)
    assert (paper.tasks, paper.episodes, paper.corner_tasks) == (10, 10, 0)
    assert (paper.own_return, paper.cross_fit, paper.meta_cross_fit) == (False, False, False)
    assert paper.lowering == 1.0
    assert ITERATIONS["paper"] == 300
