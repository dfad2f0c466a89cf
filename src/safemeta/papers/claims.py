"""Claims of a paper with a verdict for each, and `claims.json`."""

import dataclasses
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from safemeta.experiment.evaluate import Interval
from safemeta.experiment.files import write_json

FILE = "claims.json"
Verdict = Literal["reproduced", "not reproduced", "contradicted"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
REPRODUCED, NOT_REPRODUCED, CONTRADICTED = VERDICTS
ABOUT = 0.9  # this share of a number that a paper gives as "about" counts as that number
TOO_SHORT = "The smoke budget only shows that everything runs; it can neither confirm nor refute."


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim: what the paper says and found (`paper`), what was found here (`ours`), and the verdict.

    `not reproduced` means that our numbers do not show the claim; `contradicted` that they show its opposite, beyond
    their 95 % interval.
    """

    claim: str
    verdict: Verdict
    ours: str | float
    paper: str | float
    note: str = ""


def document(paper: str, budget: str, seeds: int, command: str, claims: Sequence[Claim]) -> dict[str, Any]:
    """The content of `claims.json`, the shape that tools rely on."""
    judged = [dataclasses.asdict(claim) for claim in claims]
    if budget == "smoke":
        judged = [{**each, "verdict": NOT_REPRODUCED, "note": f"{TOO_SHORT} {each['note']}".strip()} for each in judged]
    return {
        "paper": paper,
        "budget": budget,
        "seeds": seeds,
        "command": command,
        "commit": commit(),
        "claims": judged,
    }


def write(folder: Path, content: dict[str, Any]) -> Path:
    """Save `document`'s result as `claims.json` in `folder`."""
    path = folder / FILE
    write_json(path, content)
    return path


def commit() -> str:
    """The git commit of the code that runs, with `-modified` if the tree differs from it; else the version."""
    import safemeta

    git = ("git", "-C", str(Path(__file__).parent))
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=20)
        state = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return f"safemeta {safemeta.__version__}"
    if head.returncode != 0:
        return f"safemeta {safemeta.__version__}"
    return head.stdout.strip() + ("-modified" if state.stdout.strip() else "")


def at_least(found: Interval, claimed: float = 0.0) -> Verdict:
    """Verdict on a difference that the paper says is positive, and about `claimed`.

    Reproduced: the whole interval is positive and reaches nine tenths of `claimed`. Contradicted: the whole interval is
    negative. A number without an interval (one seed) is taken as it is, and is too little to contradict.
    """
    low = found.mean if found.low is None else found.low
    high = found.mean if found.high is None else found.high
    if low > 0 and high >= ABOUT * claimed:
        return REPRODUCED
    if found.high is not None and high < 0:
        return CONTRADICTED
    return NOT_REPRODUCED


def within(found: Interval, limit: float) -> Verdict:
    """Verdict on a mean that the paper says is at most `limit`.

    Reproduced: the mean is. Contradicted: the whole interval is above.
    """
    if found.mean <= limit:
        return REPRODUCED
    return CONTRADICTED if found.low is not None and found.low > limit else NOT_REPRODUCED


def none_above(policies: int, above: int, significantly: int) -> Verdict:
    """Verdict on "no policy is above the limit", of so many policies.

    Reproduced: no mean is. Contradicted: the whole interval of at least one policy is above.
    """
    if not 0 <= significantly <= policies or not 0 <= above <= policies:
        raise ValueError(f"Of {policies} policies {above} and {significantly} cannot be above the limit.")
    if above == 0:
        return REPRODUCED
    return CONTRADICTED if significantly > 0 else NOT_REPRODUCED


def shown(value: Interval, unit: str = "") -> str:
    """`12.3 [11.8, 12.9]`, the brackets holding the 95 % interval."""
    ends = "" if value.low is None or value.high is None else f" [{value.low:.4g}, {value.high:.4g}]"
    return f"{value.mean:.4g}{ends}{' ' + unit if unit else ''}"
