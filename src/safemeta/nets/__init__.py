"""Policies, critics and learned optimizers (Equinox modules)."""

from safemeta.nets.critic import Critic
from safemeta.nets.distribution import DiagonalGaussian
from safemeta.nets.learned_optimizer import LearnedOptimizer, Memory
from safemeta.nets.linear_critic import LinearCritic
from safemeta.nets.mlp import MLP
from safemeta.nets.policy import GaussianPolicy, PolicyNetwork, parameters, with_parameters

__all__ = [
    "MLP",
    "Critic",
    "DiagonalGaussian",
    "GaussianPolicy",
    "LearnedOptimizer",
    "LinearCritic",
    "Memory",
    "PolicyNetwork",
    "parameters",
    "with_parameters",
]
