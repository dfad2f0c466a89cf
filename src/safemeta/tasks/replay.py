"""`python -m safemeta.tasks.replay TRACE.npz`: hold safemeta's physics against a trace of the original environment.

The replay is re-synchronised at every step: the state of row t is set, the action of row t applied, the result compared
with row t + 1. Whole episodes cannot be compared: the Point robot's yaw servo chatters, so that two exact
implementations that differ in the last bit separate within a few control steps.

A trace is an `.npz` without pickled objects: `meta` (a JSON string with the names, sizes and places of everything in
the model) and arrays over time, row 0 being the state after reset. All comparisons are in float64. Errors are the
largest absolute differences; `cost_agreement` is the share of steps whose cost is equal. Exit code 2, and one sentence
on standard error, for a file that cannot be replayed.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from safemeta.tasks.trace import MaxError, Replay, Trace, TraceError, load

__all__ = ["MaxError", "Replay", "Trace", "TraceError", "load", "main", "replay"]

REPLAYABLE = (
    "Safety-Gymnasium's Circle, Button, Goal and Push with Point or Car, Meta-CPO's variants; cartpole, walker, "
    "quadruped and humanoid of the Real-World RL suite"
)


def replay(file: str | Path) -> Replay:
    """Replay a trace with the world that it was recorded from. Raises `TraceError`."""
    trace = load(file)
    recorded = trace.meta.get("env_id") or "/".join(str(trace.meta.get(key, "?")) for key in ("domain", "task"))
    name = str(recorded).lower()
    walls = trace.meta.get("object/sigwalls")
    plain = "object/hazards" not in trace.meta and not (isinstance(walls, dict) and walls.get("num") == 4)
    if name.startswith(("safetypointcircle", "safetypointstcircle")) and plain:
        from safemeta.tasks.replay_circle import replay_point_circle

        return replay_point_circle(trace)
    if name.startswith(("safetypoint", "safetycar")):
        from safemeta.tasks.replay_navigation import replay_navigation

        return replay_navigation(trace)
    if "cartpole" in name:
        from safemeta.tasks.cartpole_replay import replay_cartpole

        return replay_cartpole(trace)
    if "realworld_walk" in name:
        from safemeta.tasks.replay_realworld import replay_realworld

        return replay_realworld(trace)
    raise TraceError(f"{trace.file} was recorded from {recorded}, which cannot be replayed; can be: {REPLAYABLE}")


def _table(outcome: Replay) -> str:
    lines = [f"{outcome.file}: {outcome.steps} steps, re-synchronised at each"]
    lines += [f"  largest error in {name:<12} {error:.2e}" for name, error in asdict(outcome.max_error).items()]
    lines.append(f"  steps with equal cost         {outcome.cost_agreement:.2%}")
    lines += [f"  skipped: {reason}" for reason in outcome.skipped]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m safemeta.tasks.replay", description="Hold safemeta's physics against a recorded trace."
    )
    parser.add_argument("trace", help="an .npz trace; can be replayed: " + REPLAYABLE)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    try:
        outcome = replay(options.trace)
    except TraceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(outcome)) if options.json else _table(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main())
