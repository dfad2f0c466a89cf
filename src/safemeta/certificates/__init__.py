"""Certificates: functions of the state whose value a safe policy must keep low, and checks of what they promise.

`safemeta.certificates.reachability` is imported on its own: its solver is loaded only where sets are compared.
"""

from safemeta.certificates.feasibility import (
    Candidates,
    Choice,
    Feasibility,
    action_grid,
    feasible_states,
    filter_action,
    judge,
    nearest_safe,
)
from safemeta.certificates.safety_index import (
    DEFAULT_BOX,
    INDICES,
    RELEASED_BOX,
    IndexParameters,
    ParameterBox,
    SafetyIndex,
    SigmaForm,
)

__all__ = [
    "DEFAULT_BOX",
    "INDICES",
    "RELEASED_BOX",
    "Candidates",
    "Choice",
    "Feasibility",
    "IndexParameters",
    "ParameterBox",
    "SafetyIndex",
    "SigmaForm",
    "action_grid",
    "feasible_states",
    "filter_action",
    "judge",
    "nearest_safe",
]
