"""Which package may import which, read from the sources."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("osteojax", "data_prep", "launch", "configs")
LIBRARIES = sorted(path.parent.name for path in ROOT.glob("launch/*/__init__.py"))
"""Packages under launch/, for verbs and notebooks alike."""

KINDS = sorted(path.parent.name for path in ROOT.glob("data_prep/*/recipe.py"))

DATA_PREP_MAY = ("ops", "types", "files", "disk", "errors", "data", "choices", "__version__")
"""What data_prep may import of osteojax."""


@functools.cache
def sources() -> dict[str, ast.Module]:
    """Dotted name of every module -> its syntax tree."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(nodes: Iterator[ast.AST] | list[ast.AST]) -> Iterator[str]:
    """Dotted names of what some nodes import: `from a import b` gives a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def everywhere(module: str) -> set[str]:
    """Everything that a module imports, inside functions too."""
    return set(imports(ast.walk(sources()[module])))


def at_module_level(module: str) -> set[str]:
    """Modules of ours that a module needs to be imported or to be type checked."""

    def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for child in ast.iter_child_nodes(node):
                yield from outside_functions(child)

    found = set()
    for name in imports(outside_functions(sources()[module])):
        own = name if name in sources() else name.rpartition(".")[0]
        if own in sources():
            found.add(own)
    return found - {module}


def is_within(name: str, *packages: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def test_osteojax_stands_alone():
    """Its __init__.py may name the others, as strings that are imported on first use."""
    upward = {
        (module, name)
        for module in sources()
        if is_within(module, "osteojax")
        for name in everywhere(module)
        if is_within(name, "data_prep", "launch", "configs")
    }
    assert not upward


def test_data_prep_imports_little_of_osteojax():
    allowed = tuple(f"osteojax.{name}" for name in DATA_PREP_MAY)
    upward = {
        (module, name)
        for module in sources()
        if is_within(module, "data_prep")
        for name in everywhere(module)
        if is_within(name, "launch", "configs")
        or (is_within(name, "osteojax") and not is_within(name, *allowed))
    }
    assert not upward


def test_the_machinery_of_prepare_imports_no_kind():
    kinds = tuple(f"data_prep.{kind}" for kind in KINDS)
    machinery = [
        module
        for module in sources()
        if is_within(module, "data_prep") and not is_within(module, *kinds, "data_prep.simulate")
    ]
    assert len(machinery) > 10
    own_data = tuple(f"osteojax.data.{kind}" for kind in KINDS)
    known = {(m, n) for m in machinery for n in everywhere(m) if is_within(n, *kinds, *own_data)}
    assert not known


def test_no_module_needs_itself():
    """Circles of imports at module level, under TYPE_CHECKING too."""
    needs = {module: at_module_level(module) for module in sources()}
    assert not list(circles(needs))


def circles(needs: dict[str, set[str]]) -> list[set[str]]:
    """Sets of more than one module that all need each other, directly or not."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in needs[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    reach = {module: reached(module) for module in needs}
    found: list[set[str]] = []
    for module in needs:
        circle = {other for other in reach[module] if module in reach[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def test_circles_are_seen():
    needs = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"d"}}
    assert circles(needs) == [{"a", "b", "c"}]


def is_verb(tree: ast.Module) -> bool:
    """A file of `osteojax <verb>`, or of a verb's verb as `osteojax benchmark train`."""
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return {"add_arguments", "run"} <= functions


def prints(tree: ast.Module) -> bool:
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(isinstance(func, ast.Name) and func.id == "print" for func in calls)


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_of_launch_print_nothing_and_know_no_command_line(library):
    package = f"launch.{library}"
    own = {m: tree for m, tree in sources().items() if is_within(m, package) and not is_verb(tree)}
    assert own
    loud = {
        module
        for module, tree in own.items()
        if prints(tree)
        or {"argparse", "argparse.ArgumentParser", "rich.console.Console"} & everywhere(module)
    }
    assert not loud


def test_no_file_is_longer_than_350_lines():
    lengths = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert {str(path): n for path, n in lengths.items() if n > 350} == {}
