"""What became of a constrained update: a number that travels through `jit`, and the advice that goes with it."""

from enum import IntEnum


class Outcome(IntEnum):
    """How a solver ended. Solvers return these as int32 arrays, never as exceptions."""

    SOLVED = 0
    RECOVERED = 1
    INFEASIBLE = 2
    NO_COST_GRADIENT = 3
    NOT_CONVERGED = 4

    @property
    def advice(self) -> str:
        """What the outcome means, and what a caller may do about it."""
        return _ADVICE[self]


_ADVICE = {
    Outcome.SOLVED: "The update is optimal and keeps every constraint.",
    Outcome.RECOVERED: (
        "No update within the trust region keeps every constraint; this one lowers the violation as far as the radius "
        "allows and ignores the objective. Repeat it, or widen the radius."
    ),
    Outcome.INFEASIBLE: (
        "The constraints contradict each other: no update lowers one violation without raising another. The update is "
        "the best compromise. Loosen a limit, or drop one of the constraints."
    ),
    Outcome.NO_COST_GRADIENT: (
        "A violated constraint has no usable gradient, so no update can lower it; the others were served. Collect more "
        "data on that cost, or start from a policy that meets its limit."
    ),
    Outcome.NOT_CONVERGED: (
        "The solver stopped before it met its tolerance, or met a number that is not finite (the update is then zero). "
        "Allow more iterations, raise the damping, or scale the inputs."
    ),
}

OUTCOME_NAMES = tuple(outcome.name.lower().replace("_", " ") for outcome in Outcome)


def describe(outcome: int) -> str:
    """The outcome's name and advice as one line: `describe(int(step.outcome))`."""
    return f"{OUTCOME_NAMES[outcome]}: {Outcome(outcome).advice}"
