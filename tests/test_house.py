"""The rules of the house, checked on its own source: floors, import circles, names and sizes."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections import Counter
from pathlib import Path

import pytest

import datamix

PACKAGE = Path(__file__).parent.parent / "datamix"
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {
    "read", "formats", "clean", "dedup", "tokenize", "mix", "exporters", "load", "synthesis", "scoring", "fitting",
}  # fmt: skip
FLOORS = [{"core"}, ROOMS, {"recipe"}, {"pipeline"}, {"audit"}, {"reporting"}, {"jobs"}, {"commands"}]
FLOOR = {package: number for number, packages in enumerate(FLOORS) for package in packages}
HEAVY = {"transformers", "datasets", "torch", "ray", "fastokens", "openai", "sklearn", "scipy", "fasttext"}
EMPTY_NAMES = {"utils.py", "helpers.py", "common.py", "base.py", "misc.py"}


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


BY_NAME = {name_of(path): path for path in MODULES}


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names that a module imports: modules of the package by their full name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it from `datamix`"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in BY_NAME else str(node.module) for name in whole}
    return found


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_its_own_package_and_lower_floors(path: Path) -> None:
    here = package_of(name_of(path))
    if not here or here == "__main__":
        return
    ours = {package_of(n) for n in imported(path) if n in BY_NAME} - {here, ""}
    assert {package for package in ours if FLOOR[package] >= FLOOR[here]} == set()


def test_no_import_circle() -> None:
    arrows = {name: {n for n in imported(path) if n in BY_NAME} - {name} for name, path in BY_NAME.items()}
    for name in (
        arrows
    ):  # a package's __init__ gathers its modules: what imports the package does not count inside it
        arrows[name] = {n for n in arrows[name] if not name.startswith(f"{n}.")}
    while True:  # what imports nothing that is left, and what nothing left imports, is in no circle
        pointed = set().union(*arrows.values())
        free = [n for n, targets in arrows.items() if not targets & arrows.keys() or n not in pointed]
        if not free:
            break
        for name in free:
            del arrows[name]
    assert sorted(arrows) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    torch_files = ("loader.py", "torchtune_rows.py")  # imported where torch is asked for, and by nobody else
    allowed = {"torch"} if path.name in torch_files else set()
    allowed |= (
        {"transformers"} if path.name == "loss_callback.py" else set()
    )  # a callback is one of its classes
    assert {n.split(".")[0] for n in imported(path, top_level_only=True)} & HEAVY <= allowed


def test_the_command_line_imports_nothing_heavy_before_a_command_runs() -> None:
    light = {
        "__future__",
        "contextlib",
        "signal",
        "sys",
        "traceback",
        "pathlib",
        "typing",
        "collections",
        "collections.abc",
        "click",
        "gc",
        "json",
        "datamix",
        "datamix.core.errors",
    }
    for path in (PACKAGE / "commands").glob("*.py"):
        if path.name not in ("api.py",):
            ours = {n for n in imported(path, top_level_only=True) if not n.startswith("datamix.commands")}
            assert ours <= light, path.name


def test_no_package_is_named_like_a_public_function() -> None:
    top = {p.stem for p in PACKAGE.iterdir() if p.is_dir() or p.suffix == ".py"} - {"__init__", "__main__"}
    assert top & set(datamix.__all__) == set()


def test_public_functions_stay_functions_after_every_module_was_imported() -> None:
    for module in pkgutil.walk_packages(datamix.__path__, "datamix."):
        if not module.name.endswith(("torchtune_rows", "load.loader", "__main__")):  # these need torch
            importlib.import_module(module.name)
    for name in set(datamix.__all__) - {"__version__"}:
        assert callable(getattr(datamix, name)), name
        assert callable(getattr(datamix, name)), name


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert not [p for p in MODULES if p.name in EMPTY_NAMES]


def test_file_names_are_unique() -> None:
    outside = [p for p in MODULES if not {"commands", "kernels"} & set(p.parts) and p.name != "__init__.py"]
    assert [name for name, count in Counter(p.name for p in outside).items() if count > 1] == []


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    assert not [(p.name, n) for p in MODULES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400]


def functions() -> list[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [
        (path, node)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_no_function_is_longer_than_sixty_lines() -> None:
    kernels = {p for p in MODULES if p.parent.name == "kernels"}
    long = [
        (p.name, f.name) for p, f in functions() if p not in kernels and (f.end_lineno or 0) - f.lineno >= 60
    ]
    assert long == []


def test_no_function_takes_whatever_it_is_given() -> None:
    takes = [(path.name, node.name) for path, node in functions() if node.args.kwarg]
    events = {
        ("loss_callback.py", "on_train_begin"),
        ("loss_callback.py", "on_step_end"),
    }  # a trainer's, which names more in each version
    operations = {("template_limits.py", name) for name in ("run", "call", "checked")}  # of Jinja, passed on
    assert set(takes) <= events | operations
