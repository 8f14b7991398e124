"""The Python functions: small typed results that print as the commands do and show as tables in a notebook."""

from __future__ import annotations

import inspect as inspection
import json
import subprocess
import sys
from pathlib import Path

import pytest
from small import alpaca, recipe, write_jsonl

import datamix
from datamix.audit import Check
from datamix.core.errors import DataError, RecipeError
from datamix.reporting.results import Checks


def test_results_print_as_the_commands_do_and_show_as_tables(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    steps: list[tuple[str, int, int]] = []
    planned = datamix.plan(path, tmp_path / "out")
    assert planned["unit"] == "loss_tokens"
    assert "the mixture takes" in repr(planned)
    built = datamix.build(path, tmp_path / "out", progress=lambda *step: steps.append(step))
    assert built == json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert (built.out, built.cache) == (tmp_path / "out", tmp_path / ".datamix")
    assert len(built.open()) == built["packing"]["rows"]
    assert "check it: datamix verify" in repr(built)
    assert {"scan", "prepare", "encode"} <= {phase for phase, _, _ in steps}
    assert all(0 <= done <= total for _, done, total in steps)
    checks = datamix.verify(tmp_path / "out")
    assert checks.ok
    assert [check for check in checks if not check.ok] == []
    assert repr(checks).startswith("ok ")
    ladder = datamix.sweep(path, "general=0.2,0.5", tmp_path / "rung")
    assert [out.name for out in ladder] == ["rung-general-0.2", "rung-general-0.5"]
    exported = datamix.export(tmp_path / "out", "arrow")
    assert repr(exported).startswith("arrow ")
    shown = datamix.inspect(tmp_path / "out", stats=True)
    for result in (planned, built, checks, ladder, exported, shown):
        html = result._repr_html_()
        assert "general" in html or "ratio" in html or "arrow" in html
        assert html.count("<table>") == html.count("</table>")


def test_init_is_a_function_and_says_what_is_not_used(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "chat.jsonl", alpaca(["问"], 3))
    write_jsonl(tmp_path / "d" / "odd.jsonl", [{"foo": 1, "bar": 2}])
    [written] = datamix.init(tmp_path / "d", tmp_path / "r.yaml", tokenizer="a/b")
    assert (written.path, written.kind) == (tmp_path / "r.yaml", "sft")
    assert datamix.Recipe.read(written.path).tokenizer == "a/b"
    assert "odd.jsonl: no known format" in repr(written)
    assert "<pre>" in written._repr_html_()
    with pytest.raises(RecipeError, match="--overwrite"):
        datamix.init([tmp_path / "d"], tmp_path / "r.yaml")


def test_names_in_results_are_text_not_markup() -> None:
    checks = Checks([Check("<i>", False, "<b>")])
    assert "<i>" not in checks._repr_html_()
    assert not checks.ok


def test_errors_are_those_of_the_commands(tmp_path: Path) -> None:
    for call in (
        lambda: datamix.build(tmp_path / "none.yaml"),
        lambda: datamix.plan(tmp_path / "none.yaml"),
        lambda: datamix.sweep(recipe(tmp_path), "nobody=1"),
        lambda: datamix.export(tmp_path, "trl"),
        lambda: datamix.inspect(tmp_path / "none"),
        lambda: datamix.init(tmp_path / "none"),
    ):
        with pytest.raises((RecipeError, DataError)):
            call()


def test_completion_and_types_know_every_public_name() -> None:
    assert set(dir(datamix)) == set(datamix.__all__)
    for name in set(datamix.__all__) - {"__version__", "Recipe"}:
        assert "Any" not in inspection.get_annotations(getattr(datamix, name)).values(), name
        assert inspection.getdoc(getattr(datamix, name))


def test_a_type_checker_sees_the_results(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(
        "import datamix\nreveal_type(datamix.build('r'))\nreveal_type(datamix.verify('o').ok)\nreveal_type(datamix.Recipe.read('r'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "use.py")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert "results.BuiltSet" in done.stdout
    assert 'type is "bool"' in done.stdout or "builtins.bool" in done.stdout
    assert "model.Recipe" in done.stdout


def test_a_notebook_shows_the_results_as_tables(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")
    recipe(tmp_path)
    cells = [
        "import datamix",
        "datamix.plan('recipe.yaml')",
        "datamix.build('recipe.yaml', 'out')",
        "datamix.verify('out')",
        "datamix.inspect('out', row=0)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell in notebook.cells[1:]:
        shown = [output["data"] for output in cell.outputs if output.output_type == "execute_result"]
        assert "text/html" in shown[0]
        assert "text/plain" in shown[0]


def test_torch_names_its_extra_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = datamix.build(recipe(tmp_path), tmp_path / "out")
    monkeypatch.delitem(sys.modules, "datamix.load.loader", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RecipeError, match=r"pip install 'datamix-toolkit\[torch\]'"):
        built.open().torch(2)
