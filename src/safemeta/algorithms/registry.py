"""The algorithms by name; importable without JAX, so that help and listings answer at once."""

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT = "dual"
FALLBACK_ITERATIONS: Mapping[str, int] = {"smoke": 2, "default": 100, "paper": 300}


@dataclass(frozen=True)
class AlgorithmModule:
    """What a loaded algorithm's module offers: its `Config`, its `Algorithm(config)`, presets and budgets."""

    name: str
    meta: bool
    config: type
    algorithm: type
    presets: Mapping[str, Any] = field(default_factory=dict)  # name -> Config
    iterations: Mapping[str, int] = field(default_factory=lambda: dict(FALLBACK_ITERATIONS))


@dataclass(frozen=True)
class Entry:
    """One line about an algorithm, and its code: in a `module`, or `loaded` where a user has handed it over."""

    name: str
    description: str
    module: str
    meta: bool = False  # it can adapt to unseen tasks
    config: str = "Config"
    algorithm: str = "Algorithm"
    presets: str = "PRESETS"
    loaded: AlgorithmModule | None = None

    def load(self) -> AlgorithmModule:
        """Import the module (and JAX with it)."""
        if self.loaded is not None:
            return self.loaded
        module = importlib.import_module(self.module)
        return AlgorithmModule(
            name=self.name,
            meta=self.meta,
            config=getattr(module, self.config),
            algorithm=getattr(module, self.algorithm),
            presets=dict(getattr(module, self.presets, {})),
            iterations={**FALLBACK_ITERATIONS, **getattr(module, "ITERATIONS", {})},
        )


ALGORITHMS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "dual",
            "safe meta-RL by the dual method: a meta-policy that adapts to new tasks and keeps the limits meanwhile",
            "safemeta.algorithms.dual",
            meta=True,
        ),
        Entry(
            "meta-cpo",
            "Meta-CPO: CPO within CPO, the meta-gradient exact through all inner steps",
            "safemeta.algorithms.meta_cpo",
            meta=True,
        ),
        Entry(
            "meta-trpo",
            "TRPO within TRPO, costs ignored (Meta-CPO's unsafe reference)",
            "safemeta.algorithms.meta_trpo",
            meta=True,
        ),
        Entry(
            "maml",
            "MAML: a gradient step on the return less a penalty for violated costs, TRPO outside",
            "safemeta.algorithms.maml",
            meta=True,
        ),
        Entry(
            "meta-crpo",
            "Meta-CRPO: CRPO on each task, and the meta-policy nearest to where they end",
            "safemeta.algorithms.meta_crpo",
            meta=True,
        ),
        Entry(
            "bilevel",
            "any combination: --inner cpo|trpo|crpo|gradient|dual, --outer cpo|trpo|switch|nearest, --meta-gradient"
            " exact|first",
            "safemeta.algorithms.bilevel",
            meta=True,
            config="BilevelConfig",
        ),
        Entry(
            "cpo",
            "constrained policy optimisation: one policy for the family, each step within a trust region and the limit",
            "safemeta.algorithms.cpo",
        ),
        Entry(
            "ppo-lagrangian",
            "PPO on the reward less the costs at the prices of their Lagrange multipliers",
            "safemeta.algorithms.ppo_lagrangian",
        ),
        Entry(
            "trpo-lagrangian",
            "TRPO on the reward less the costs at the prices of their Lagrange multipliers",
            "safemeta.algorithms.trpo_lagrangian",
        ),
        Entry(
            "crpo",
            "a TRPO step up the reward while all costs are within limits, else down the one that is violated most",
            "safemeta.algorithms.crpo",
        ),
        Entry(
            "fisar",
            "FISAR: policies moved by a learned optimizer, every update projected to keep the limits",
            "safemeta.algorithms.fisar",
            meta=True,
        ),
        Entry(
            "fac-sis",
            "FAC-SIS: a safety certificate and a policy that keeps to it in every state, learned together",
            "safemeta.algorithms.fac_sis",
        ),
        Entry(
            "fac",
            "FAC: soft actor-critic that keeps to a fixed safety index in every state",
            "safemeta.algorithms.fac_sis",
            algorithm="Fac",
        ),
        Entry(
            "sac-lagrangian",
            "soft actor-critic on the reward less the costs at the prices of their Lagrange multipliers",
            "safemeta.algorithms.sac_lagrangian",
        ),
        Entry(
            "metal",
            "MetaL: RC-D4PG whose multiplier's learning rate follows a meta-gradient",
            "safemeta.algorithms.metal",
            algorithm="MetaL",
        ),
        Entry(
            "mesh-like",
            "a stand-in for MeSh, MetaL's own baseline: RC-D4PG with a meta-learned scale and offset of shaped rewards",
            "safemeta.algorithms.mesh_like",
            algorithm="MeshLike",
        ),
        Entry(
            "rc-d4pg",
            "D4PG on the reward less the costs at the prices of their Lagrange multipliers, which follow past episodes",
            "safemeta.algorithms.d4pg",
            config="ConstrainedConfig",
            algorithm="Constrained",
            presets="CONSTRAINED_PRESETS",
        ),
        Entry(
            "rs-d4pg",
            "D4PG on the reward less the costs at fixed prices",
            "safemeta.algorithms.d4pg",
            config="FixedConfig",
            algorithm="Fixed",
            presets="FIXED_PRESETS",
        ),
        Entry(
            "d4pg",
            "D4PG: an off-policy actor-critic with a distribution of returns, costs ignored",
            "safemeta.algorithms.d4pg",
            config="D4pgConfig",
        ),
        Entry(
            "projected-gradient",
            "FISAR's projection of a plain gradient step: one policy for the family",
            "safemeta.algorithms.first_order",
            config="ProjectedConfig",
            algorithm="ProjectedGradient",
        ),
        Entry(
            "primal-dual",
            "gradient descent on the Lagrangian, ascent on its multipliers: one policy for the family",
            "safemeta.algorithms.first_order",
            config="PrimalDualConfig",
            algorithm="PrimalDual",
        ),
        Entry(
            "trpo",
            "trust-region policy optimisation: one policy for the family, costs ignored (the unsafe reference)",
            "safemeta.algorithms.trpo",
        ),
    )
}


def names() -> list[str]:
    """The algorithms' names."""
    return list(ALGORITHMS)


def describe() -> dict[str, str]:
    """Name -> one line."""
    return {name: entry.description for name, entry in ALGORITHMS.items()}


def get(name: str) -> Entry:
    """The entry called `name`; `ValueError` with one sentence if there is none."""
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    match = difflib.get_close_matches(name.lower(), ALGORITHMS, n=1, cutoff=0.5)
    hint = f" Did you mean '{match[0]}'?" if match else ""
    raise ValueError(f"Unknown algorithm '{name}'.{hint} Algorithms: {', '.join(ALGORITHMS)}.")


def load(name: str) -> AlgorithmModule:
    """The module of the algorithm called `name`."""
    return get(name).load()
