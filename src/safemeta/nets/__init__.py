"""Policies, critics and learned optimizers (Equinox modules)."""

from safemeta.nets.action_value import ActionValue, MultiplierNetwork
from safemeta.nets.critic import Critic
from safemeta.nets.distribution import DiagonalGaussian
from safemeta.nets.layer_norm_mlp import CategoricalValue, DeterministicPolicy, LayerNormMLP
from safemeta.nets.learned_optimizer import LearnedOptimizer, Memory
from safemeta.nets.linear_critic import LinearCritic
from safemeta.nets.mlp import MLP
from safemeta.nets.policy import GaussianPolicy, PolicyNetwork, parameters, with_parameters
from safemeta.nets.squashed_policy import ModePolicy, SquashedPolicy

__all__ = [
    "MLP",
    "ActionValue",
    "CategoricalValue",
    "Critic",
    "DeterministicPolicy",
    "DiagonalGaussian",
    "GaussianPolicy",
    "LayerNormMLP",
    "LearnedOptimizer",
    "LinearCritic",
    "Memory",
    "ModePolicy",
    "MultiplierNetwork",
    "PolicyNetwork",
    "SquashedPolicy",
    "parameters",
    "with_parameters",
]
