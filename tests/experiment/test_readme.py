"""The Python in the README runs as it is printed, with an algorithm that takes no time."""

import re

import safemeta
from safemeta.algorithms import registry


def test_the_example_runs_as_printed(repository, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.S)
    train, adapt, asked = safemeta.train, safemeta.adapt, []

    def quick(algorithm, task, seed):
        asked.append((algorithm, task))
        return train("dummy", "dummy-task", iterations=1, seed=seed)

    monkeypatch.setattr(safemeta, "train", quick)
    monkeypatch.setattr(safemeta, "adapt", lambda run, tasks, steps: adapt(run, tasks=3, steps=2, episodes=2))
    names: dict = {}
    exec(code, names)  # noqa: S102
    printed = capsys.readouterr().out.splitlines()
    report = names["report"]
    worst = report.largest_cost[0]
    assert printed == [
        f"return {report.before.mean} -> {report.after.mean}",
        f"{worst.name} {worst.cost.mean} limit {worst.limit}",
        f"every policy safe: {report.safe}",
    ]
    assert names["world"].cmdp.horizon == 500
    assert all(algorithm in registry.ALGORITHMS and safemeta.make(task) for algorithm, task in asked)
