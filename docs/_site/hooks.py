"""What MkDocs needs beyond its settings: mathematics as MathML, and the results and examples that pages link to."""

import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
SHOWN = {"results": (".md", ".png", ".json", ".csv"), "examples": (".py",)}
# Code first, so that a dollar sign in it is none; then display, then inline mathematics.
TOKENS = re.compile(
    r"(```.*?```|~~~.*?~~~|`[^`\n]+`)|\$\$(.+?)\$\$|(?<![\\$])\$(?=\S)([^$\n]+?(?:\n[^$\n]+?)*?)(?<=\S)\$(?!\d)", re.S
)


def on_files(files, config):
    """Results and examples become part of the site."""
    for folder, endings in SHOWN.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in endings:
                files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links out of docs/ lead to the copies; formulas become MathML, which browsers show without a script."""
    source = page.file.src_uri
    if source.startswith("results/"):
        markdown = markdown.replace("](../../docs/", "](../../").replace("](../docs/", "](../")
    else:
        markdown = re.sub(r"\]\(\.\./((?:\.\./)*)(results|examples)/", r"](\1\2/", markdown)
    return TOKENS.sub(_formula, markdown)


def _formula(match):
    code, display, inline = match.groups()
    if code is not None:
        return code
    kind = "inline" if display is None else "block"
    return convert(" ".join((inline if display is None else display).split()), display=kind)
