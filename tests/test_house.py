"""The import rules of the house, held by its own source."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "datamix"
FOUNDATION = {"errors", "contracts", "records", "identity", "content", "compiled", "jit"}
ROOMS = {"read", "shape", "clean", "duplicates", "encode", "mix", "write", "load", "run"}
HEAVY = {"transformers", "datasets", "torch", "ray", "matplotlib", "fastokens"}
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py", "base.py", "misc.py"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names that a module imports; those of the package without ``datamix.``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    package = path.relative_to(PACKAGE).parent.parts
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("datamix.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*up, *([node.module] if node.module else [])]).removeprefix("datamix.")
            found |= {module} if node.module else {".".join([*up, alias.name]) for alias in node.names}
    return found


def room_of(path: Path) -> str | None:
    first = path.relative_to(PACKAGE).parts[0]
    return first if first in ROOMS else None


@pytest.mark.parametrize(
    "path", [p for p in MODULES if room_of(p)], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_a_room_imports_the_foundation_and_itself(path: Path) -> None:
    ours = {name.split(".")[0] for name in imports(path)}
    inside = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if p.is_dir()}
    assert (ours & inside) - FOUNDATION - {room_of(path)} - {"__init__", "schemas"} == set()


@pytest.mark.parametrize("name", sorted(FOUNDATION))
def test_the_foundation_imports_nothing_above_it(name: str) -> None:
    inside = {p.stem for p in PACKAGE.glob("*.py")} | ROOMS
    assert (imports(PACKAGE / f"{name}.py") & inside) <= FOUNDATION


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    torch_files = ("loader.py", "torchtune_rows.py")  # imported where torch is asked for, and by nobody else
    allowed = {"torch"} if path.name in torch_files else set()
    assert {n.split(".")[0] for n in imports(path, top_level_only=True)} & HEAVY <= allowed


def test_the_command_line_imports_nothing_before_a_command_runs() -> None:
    ours = set(imports(PACKAGE / "cli.py", top_level_only=True))
    assert ours <= {"__future__", "sys", "pathlib", "typing", "click", "errors", "", "__version__"} | {
        "datamix"
    }


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert not [p for p in MODULES if p.name in FORBIDDEN_NAMES]


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    assert not [(p.name, n) for p in MODULES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400]


def test_no_function_takes_whatever_it_is_given() -> None:
    loose = [
        f"{path.name}:{node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.kwarg
    ]
    assert not loose
