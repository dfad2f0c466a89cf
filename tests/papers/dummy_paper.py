"""A paper of dummy runs, and jobs that only count, for tests of reproductions."""

import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "experiment"))  # for dummy_algorithm

from safemeta.experiment.errors import UserError
from safemeta.experiment.files import write_json
from safemeta.papers import registry
from safemeta.papers.claims import Claim, at_least, shown
from safemeta.papers.groups import gather, over_seeds_and_tasks
from safemeta.papers.plan import Plan, Request, Summary
from safemeta.papers.tables import Table
from safemeta.papers.trials import Judgement, Trial
from safemeta.sim.threads import available_cores

PAUSE = 0.0
METHODS = ("first", "second")


def plan(request: Request) -> Plan:
    methods = METHODS if "a" in request.figures else METHODS[:1]
    found = tuple(
        Trial(
            name=f"{method}-s{seed}",
            method=method,
            algorithm="dummy",
            task="dummy-task",
            seed=seed,
            iterations=8 if request.budget == "laptop" else 4,
            judgements=(Judgement("test", 3, 2, 4),),
            options={"rate": 0.1 if method == "first" else 0.2, "pause": PAUSE},
            seconds=2.0,
        )
        for method in methods
        for seed in request.seed_numbers
    )
    return Plan(found, partial(summarise, trials=found))


def summarise(out: Path, *, trials: tuple[Trial, ...]) -> Summary:
    groups = gather(out, trials)
    means = {method: over_seeds_and_tasks(group.returns[-1]) for (method, _), group in groups.items()}
    rows = tuple((method, mean, len(groups[method, "dummy-task"].seeds)) for method, mean in means.items())
    claims = tuple(Claim(f"{name} is good", at_least(mean), shown(mean), "good") for name, mean in means.items())
    return Summary((Table("returns", "Returns", ("method", "return", "seeds"), rows),), (), claims)


@dataclass(frozen=True)
class Count:
    """A job that writes a line whenever it is worked on; `breaks` is an exception that the first time raises."""

    name: str
    breaks: str = ""
    seconds: float = 1.0
    program: str = "count"

    def done(self, folder: Path) -> bool:
        return (folder / "result.json").is_file()

    def work(self, folder: Path, progress: Any) -> None:
        folder.mkdir(exist_ok=True)
        reporter = progress.part(1.0)
        reporter.begin("Counting", 2)
        with open(folder / "worked", "a") as file:
            file.write("x")
        reporter.advance(1, {})
        if self.breaks and (folder / "worked").read_text() == "x":
            if self.breaks == "wait":
                time.sleep(100)
            raise {"keyboard": KeyboardInterrupt(), "user": UserError("It broke.", exit_code=1), "bug": KeyError("k")}[
                self.breaks
            ]
        write_json(folder / "result.json", {"cores": available_cores()})


def counted(runs: Path) -> dict[str, int]:
    """Name -> how often it was worked on."""
    return {path.parent.name: len(path.read_text()) for path in runs.glob("*/worked")}


def register() -> None:
    """Add the paper `dummy`, and the algorithm and task that it needs."""
    import dummy_algorithm

    dummy_algorithm.register()
    registry.PAPERS["dummy"] = registry.Paper(
        "dummy", "For tests", "dummy_paper", {"a": "both methods", "b": "one"}, {"smoke": 1, "laptop": 2, "paper": 3}
    )


if __name__ == "__main__":
    # The command line with the paper registered; each iteration takes a moment, so that it can be stopped.
    import dummy_paper

    from safemeta.cli import main

    dummy_paper.PAUSE = json.loads(sys.argv.pop(1))
    dummy_paper.register()
    sys.exit(main())
