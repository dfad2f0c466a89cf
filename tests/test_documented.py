"""Every public name says what it is: docstrings, shapes of arrays, a word about every setting. Read off the source."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

WITH_SHAPE = re.compile(r"(?:\w+\.)?(?:Float|Int|UInt|Bool|Key|Shaped|Num|Inexact|PyTree)\d*")  # of jaxtyping
SHAPED = re.compile(r"`[^`]*\[[\w ,.*+\-/]*\][^`]*`")  # in a docstring: `[tasks, episodes]`, `x[n]`


@dataclass(frozen=True)
class Public:
    """A public name: its module and name, what it is, and the source that it stands in."""

    name: str
    node: ast.FunctionDef | ast.ClassDef
    owner: ast.ClassDef | None
    lines: tuple[str, ...]


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if not any(part.startswith("_") and part != "__main__" for part in name.split(".")):
            yield name, path


def publics(root: Path) -> list[Public]:
    """Public functions and classes at module level, and public methods of public classes."""
    found = []
    for module, path in modules(root):
        source = path.read_text()
        lines = tuple(source.splitlines())
        for node in ast.parse(source).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            found.append(Public(f"{module}.{node.name}", node, None, lines))
            inners = methods(node).values() if isinstance(node, ast.ClassDef) else ()
            public = [inner for inner in inners if not inner.name.startswith("_")]
            found += [Public(f"{module}.{node.name}.{inner.name}", inner, node, lines) for inner in public]
    return found


def classes(root: Path) -> dict[str, list[ast.ClassDef]]:
    """All classes by their bare name."""
    found: dict[str, list[ast.ClassDef]] = {}
    for _, path in modules(root):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {inner.name: inner for inner in node.body if isinstance(inner, ast.FunctionDef)}


def bases(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).split("[")[0].rpartition(".")[2] for base in node.bases]


def ancestry(node: ast.ClassDef, known: dict[str, list[ast.ClassDef]]) -> list[ast.ClassDef]:
    """The class and all that it inherits from in safemeta."""
    found, waiting = [], [node]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.append(each)
            waiting += [parent for base in bases(each) for parent in known.get(base, [])]
    return found


def says(node: ast.ClassDef, method: str) -> bool:
    """Whether the class says what the method is: in its docstring, or where it is defined."""
    inner = methods(node).get(method)
    mentioned = re.search(rf"`(?:\w+\.)?{method}\b", ast.get_docstring(node) or "")
    return bool(mentioned or (inner and ast.get_docstring(inner)))


def described(public: Public, known: dict[str, list[ast.ClassDef]]) -> bool:
    """Whether it has a docstring; a method may have that of what it overrides, or of a protocol it keeps."""
    if public.owner is None or ast.get_docstring(public.node):
        return ast.get_docstring(public.node) is not None
    lineage = ancestry(public.owner, known)
    members = {name for each in lineage for name in (*methods(each), *fields(each))}
    protocols = [each for every in known.values() for each in every if "Protocol" in bases(each)]
    kept = [each for each in protocols if {name for part in ancestry(each, known) for name in methods(part)} <= members]
    return any(says(each, public.node.name) for each in lineage + kept)


def fields(node: ast.ClassDef) -> dict[str, ast.AnnAssign]:
    return {
        inner.target.id: inner
        for inner in node.body
        if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name)
    }


def shapeless(annotation: ast.expr | None) -> bool:
    """Whether an annotation names an array without its shape. `float | Array` is a number, a `Callable` no array."""
    if annotation is None:
        return False
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    text = ast.unparse(annotation)
    if re.fullmatch(r"(Array \| float|float \| Array)( \| None)?", text):
        return False
    if isinstance(annotation, ast.Subscript) and (
        WITH_SHAPE.fullmatch(ast.unparse(annotation.value)) or "Callable" in ast.unparse(annotation.value)
    ):
        return False
    if isinstance(annotation, ast.Name | ast.Attribute):
        return text.rpartition(".")[2] in ("Array", "NDArray", "ndarray", "ArrayLike")
    return any(shapeless(part) for part in ast.iter_child_nodes(annotation) if isinstance(part, ast.expr))


def arrays_without_shape(public: Public) -> bool:
    """Whether a function takes or returns an array whose shape neither its annotation nor a docstring shows."""
    if not isinstance(public.node, ast.FunctionDef):
        return False
    arguments = public.node.args
    annotations = [each.annotation for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    words = [ast.get_docstring(node) or "" for node in (public.node, public.owner) if node is not None]
    return any(map(shapeless, [*annotations, public.node.returns])) and not any(SHAPED.search(each) for each in words)


def undocumented_settings(public: Public, known: dict[str, list[ast.ClassDef]]) -> list[str]:
    """Fields of a dataclass of settings without comment, docstring or mention, there or in a class that it extends."""
    node = public.node
    if not isinstance(node, ast.ClassDef) or not re.search(r"(Config|Options)$", node.name):
        return []
    missing = []
    for name, field in fields(node).items():
        commented = any("#" in line for line in public.lines[field.lineno - 1 : field.end_lineno])
        following = node.body[node.body.index(field) + 1 :][:1]
        explained = bool(following) and isinstance(following[0], ast.Expr)
        mentioned = f"`{name}`" in (ast.get_docstring(node) or "")
        inherited = any(name in fields(parent) for parent in ancestry(node, known)[1:])
        if not (commented or explained or mentioned or inherited):
            missing.append(f"{public.name}.{name}")
    return missing


# What only `safemeta reproduce` and `safemeta sweep` call: not for use from elsewhere.
INTERNAL = ("safemeta.papers.", "safemeta.experiment.job", "safemeta.experiment.sweep_")


@pytest.fixture(scope="module")
def names(repository) -> list[Public]:
    found = publics(repository / "src" / "safemeta")
    assert len(found) > 1000
    return found


@pytest.fixture(scope="module")
def known(repository) -> dict[str, list[ast.ClassDef]]:
    return classes(repository / "src" / "safemeta")


def test_every_public_name_says_what_it_is(names, known):
    library = [each for each in names if not (each.owner and each.name.startswith(INTERNAL))]
    assert [each.name for each in library if not described(each, known)] == []


def test_arrays_have_shapes(names):
    library = [each for each in names if not each.name.startswith(INTERNAL)]
    assert [each.name for each in library if arrays_without_shape(each)] == []


def test_every_setting_is_explained(names, known):
    assert [missing for each in names for missing in undocumented_settings(each, known)] == []


def test_what_packages_export_is_checked_or_a_value(repository, names):
    checked = {each.name.rpartition(".")[2] for each in names}
    trees = {path: ast.parse(path.read_text()) for path in (repository / "src" / "safemeta").rglob("*.py")}
    assigned = {
        ast.unparse(target)
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    for path, tree in trees.items():
        if path.name == "__init__.py":
            assert ast.get_docstring(tree), path
            every = [node.value for node in tree.body if isinstance(node, ast.Assign) and is_all(node)]
            assert {name for node in every for name in ast.literal_eval(node)} <= checked | assigned, path


def is_all(node: ast.Assign) -> bool:
    return ast.unparse(node.targets[0]) == "__all__"


SPOILT = '''
"""A module that says too little."""

class Documented(Protocol):
    """Two methods."""

    def told(self):
        """This one is described here."""

    def untold(self): ...

class Keeper:
    """It has `named`."""

    def told(self): ...
    def untold(self): ...
    def named(self): ...
    def _private(self): ...

class RunConfig(Keeper):
    """Settings; `mentioned` is one."""

    mentioned: int = 1
    commented: int = 2  # [P]
    explained: int = 3
    """At length."""
    silent: int = 4

class OwnConfig(RunConfig):
    """Another default."""

    silent: int = 5

def bare(x: Array): ...
def good(x: Float[Array, "time"], f: Callable[[Array], Array], scale: float | Array) -> "Bool[Array, \'\']": ...
def told(x: tuple[NDArray, int]):
    """`x` is `[time, 2]`."""
def untold(x: tuple[NDArray, int]):
    """`x` is a list [not a shape] of numbers."""
'''


def test_the_checks_find_what_is_missing(tmp_path):
    (tmp_path / "spoilt.py").write_text(SPOILT)
    (tmp_path / "_hidden.py").write_text("def f(): ...")
    names, known = publics(tmp_path), classes(tmp_path)

    def short(full: str) -> str:
        return full.split(".spoilt.")[1]

    missing = {short(each.name) for each in names if not described(each, known)}
    assert missing == {"Documented.untold", "Keeper.untold", "bare", "good"}
    assert {short(each.name) for each in names if arrays_without_shape(each)} == {"bare", "untold"}
    assert [short(name) for each in names for name in undocumented_settings(each, known)] == ["RunConfig.silent"]
