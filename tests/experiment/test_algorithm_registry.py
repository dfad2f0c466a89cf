"""Every registered algorithm keeps what the registry and the command line promise."""

import dataclasses
import json

import pytest

from safemeta.algorithms import registry
from safemeta.algorithms.base import Algorithm, MetaAlgorithm
from safemeta.cli import TrainOptions
from safemeta.experiment.arguments import flags
from safemeta.experiment.config import RunConfig, TaskConfig

NAMES = registry.names()


@pytest.mark.parametrize("name", NAMES)
def test_modules(name):
    entry, module = registry.get(name), registry.load(name)
    algorithm = module.algorithm(module.config())
    assert isinstance(algorithm, Algorithm)
    assert isinstance(algorithm, MetaAlgorithm) == entry.meta
    assert module.iterations.keys() >= {"smoke", "default", "paper"}
    assert set(map(type, module.presets.values())) <= {module.config}
    assert dataclasses.is_dataclass(module.config)


@pytest.mark.parametrize("name", NAMES)
def test_configurations_survive_their_file(name):
    module = registry.load(name)
    for options in (module.config(), *module.presets.values()):
        config = RunConfig(name, options, TaskConfig("point-circle"), seed=0, iterations=1)
        config.validate()
        assert RunConfig.from_json(json.loads(json.dumps(config.to_json())), module.config, "file") == config


@pytest.mark.parametrize("name", NAMES)
def test_options_do_not_clash_with_the_command_line(name):
    assert not flags(registry.load(name).config).keys() & flags(TrainOptions).keys()


def test_unknown_names():
    with pytest.raises(ValueError, match="Did you mean 'dual'"):
        registry.get("duall")
    with pytest.raises(ValueError, match="Algorithms: "):
        registry.get("zzz")
    assert registry.describe().keys() >= set(NAMES)
