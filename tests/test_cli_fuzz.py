"""Made-up command lines and damaged files: one sentence that names the option or the file, and nothing else written.

`python benchmarks/robustness.py --only commands` tries a thousand of the same kind.
"""

from pathlib import Path

import pytest
from _fuzzed_commands import fuzz
from _fuzzed_sandbox import SLOT, Answer, Damage, Example, faults

COMMANDS = 150


def test_made_up_commands_end_in_a_sentence_or_in_work(tmp_path):
    counts, found = fuzz(COMMANDS, 7, tmp_path)
    assert not [(example.arguments, example.damage, wrong, said) for example, wrong, said in found]
    assert sum(counts.values()) == COMMANDS
    for kind in ("command line: work began", "command line: refused", "damaged file: failed", "damaged file: done"):
        assert counts[kind] > 0, counts


SEED = Example(("train", "dual", "--seed", "-1"), words=("seed",))
CONFIG = Example(("plot", SLOT), Damage("run", "config.json", b""), (SLOT,))


@pytest.mark.parametrize(
    ("example", "answer", "fault"),
    [
        (SEED, Answer(2, "", "safemeta: The seed must be at least 0, not -1.\n"), None),
        (SEED, Answer(2, "", "safemeta: A number must be at least 0.\n"), "names neither"),
        (SEED, Answer(2, "", "safemeta: The seed is bad.\nsafemeta: And more.\n"), "not one message"),
        (SEED, Answer(2, "x", "safemeta: The seed is bad.\n"), "standard output"),
        (SEED, Answer(2, "", "safemeta: The seed is"), "not a sentence"),
        (SEED, Answer(0, "", "safemeta: The seed is bad.\n"), "exit code 0"),
        (SEED, Answer(3, "", ""), "exit code 3"),
        (SEED, Answer(1, "", "Traceback (most recent call last):\nsafemeta: The seed.\n"), "unforeseen"),
        (SEED, Answer(1, "", "safemeta: Unexpected KeyError: 'seed'.\n"), "unforeseen"),
        (SEED, Answer(None, "", "", {"/folder/runs/x", "/folder/elsewhere"}), "wrote /folder/elsewhere"),
        (SEED, Answer(None, "", "", {"/folder/runs/x"}), None),
        (SEED, Answer(None, "", "", set(), 99.0), "took 99 s"),
        (CONFIG, Answer(1, "", "safemeta: 'slot/config.json' is damaged: it is not JSON.\n"), None),
        (CONFIG, Answer(1, "", "safemeta: It is not JSON, says plot.\n"), "names neither"),
    ],
)  # fmt: skip
def test_what_is_asked_of_an_answer(example, answer, fault):
    found = faults(example, answer, Path("/folder"))
    assert found == [] if fault is None else fault in found[0]
