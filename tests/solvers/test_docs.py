"""The examples of docs/constrained-updates.md run as printed, and print what the page says."""

import contextlib
import io
import re
import runpy

import jax
import pytest


@pytest.mark.parametrize("number", [0, 1, 2])
def test_example_prints_what_the_page_says(number, repository, tmp_path):
    page = (repository / "docs" / "constrained-updates.md").read_text()
    examples = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == page.count("```python") == 3
    program, expected = examples[number]
    script = tmp_path / "example.py"
    script.write_text(program)
    printed = io.StringIO()
    with jax.enable_x64(False), contextlib.redirect_stdout(printed):
        runpy.run_path(str(script))
    assert printed.getvalue() == expected
