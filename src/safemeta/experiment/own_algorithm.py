"""Algorithms of a user's own under a name: `train` takes them, and their runs are saved and resumed like all others."""

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

from safemeta.algorithms import registry
from safemeta.algorithms.base import Algorithm, MetaAlgorithm
from safemeta.experiment.arguments import flags
from safemeta.experiment.config import BUDGETS, check_count, decode
from safemeta.experiment.errors import UserError
from safemeta.experiment.options import TrainOptions
from safemeta.experiment.train import train


def register_algorithm(
    name: str,
    algorithm: type,
    config: type,
    *,
    description: str = "",
    presets: Mapping[str, Any] | None = None,
    iterations: Mapping[str, int] | None = None,
) -> None:
    """Make `algorithm` known as `name` in this process: to `train`, `load`, `adapt`, and `safemeta.cli.main`.

    `algorithm(config())` must be a `safemeta.algorithms.base.Algorithm`; it is a meta-learner if it has `adapt`.
    `config` is a frozen dataclass whose fields are the settings, each with a default that JSON can hold (numbers,
    texts, truth values, tuples of them); its `validate()`, if it has one, raises `ValueError`. `presets` are further
    settings by name, `iterations` those of the budgets "smoke", "default" and "paper".

    A name that was registered before is replaced, but not one of safemeta's own. To resume or load a run in another
    process, register its algorithm there first. Raises `ValueError`, in one sentence, on what `train` could not use.
    """
    if not re.fullmatch(r"[a-z0-9]+([-._][a-z0-9]+)*", name):
        raise ValueError(f"the name must be small letters and digits, in words joined by '-', not {name!r}")
    if name in registry.ALGORITHMS and registry.ALGORITHMS[name].loaded is None:
        raise ValueError(f"{name!r} is an algorithm of safemeta; choose another name")
    presets, budgets = dict(presets or {}), dict(iterations or {})
    _check_settings(config, presets)
    for budget, count in budgets.items():
        if budget not in BUDGETS:
            raise ValueError(f"unknown budget {budget!r}; there are {', '.join(BUDGETS)}")
        try:
            check_count("iterations", count)
        except UserError as problem:
            raise ValueError(str(problem)) from problem
    made = algorithm(config())
    missing = [
        part for part in ("config", "init", "iterate", "policy", "steps_per_iteration") if not hasattr(made, part)
    ]
    if missing or not isinstance(made, Algorithm):
        raise ValueError(f"{algorithm.__name__} lacks {', '.join(missing)}; see safemeta.algorithms.base.Algorithm")
    meta = isinstance(made, MetaAlgorithm)
    budgets = {**registry.FALLBACK_ITERATIONS, **budgets}
    module = registry.AlgorithmModule(name, meta, config, algorithm, presets, budgets)
    summary = (
        description or (inspect.getdoc(algorithm) or "").partition("\n")[0].rstrip(".") or "an algorithm of your own"
    )
    registry.ALGORITHMS[name] = registry.Entry(name, summary, algorithm.__module__, meta=meta, loaded=module)


def _check_settings(config: type, presets: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless all of these settings survive `config.json` and do not clash with `train`'s own."""
    if not dataclasses.is_dataclass(config) or not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ValueError(f"the settings must be a frozen dataclass, which {config.__name__} is not")
    taken = {*inspect.signature(train).parameters, *(name.replace("-", "_") for name in flags(TrainOptions))}
    clash = [field.name for field in dataclasses.fields(config) if field.name in taken]
    if clash:
        raise ValueError(f"the setting {clash[0]!r} has a name that train uses itself; choose another one")
    try:
        settings = {"the defaults": config(), **presets}
    except TypeError as problem:
        raise ValueError(f"every field of {config.__name__} needs a default") from problem
    for which, options in settings.items():
        if type(options) is not config:
            raise ValueError(f"the preset {which!r} must be a {config.__name__}, not a {type(options).__name__}")
        try:
            hash(options)
            kept = decode(config, json.loads(json.dumps(dataclasses.asdict(options))), which)
        except (TypeError, ValueError, UserError) as problem:
            raise ValueError(f"the settings must be what JSON can hold, and hashable, but: {problem}") from problem
        if kept != options:
            raise ValueError(f"the settings do not come back from JSON as they were: {kept}, not {options}")
