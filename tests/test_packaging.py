"""What a user installs: names, versions, the content of the wheel, and the compiler that the kernels are pinned to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars
import pyarrow.parquet as pq
import pytest
from small import datamix as command
from small import fingerprint, recipe
from tokenizers import Tokenizer, models, pre_tokenizers

import datamix
from datamix.core.kernels import Kernel
from datamix.tokenize.tokenizer import slow_engine_notice

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = sorted(ROOT.glob("requirements*.lock"))
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "datamix").rglob("*.py")]
RAISE_THE_CEILING = """
numba {numba} and llvmlite {llvmlite} no longer compile or load a kernel the way datamix/core/kernels.py expects. It uses private names of
numba: `library.serialize_using_object_code()` (the object file is the second of its two parts), `fndesc.llvm_func_name` (the symbol), and
the calling convention (a pointer to the result, a pointer to the error, then each argument in parts, an array as seven words and more).
What to do: keep `numba<NEXT` and `llvmlite<NEXT` in pyproject.toml at the last minor versions that pass this test, compare those names
with the new numba (numba/core/codegen.py, numba/core/callconv.py, numba/core/datamodel/models.py), change `_compile`, `flat` and
`_load` in datamix/core/kernels.py, and only then raise both ceilings and both pins in the locks.
"""
LOADS = """
import numpy as np
from datamix.core.kernels import Kernel
keys, slots = np.array([1, 2], np.uint64), np.full(4, -1, np.int32)
Kernel("dedup", "grams", "place")(keys, slots)
assert slots.tolist() == [-1, 0, 1, -1], slots
"""


def requirement(name: str) -> str:
    return next(text for text in PROJECT["dependencies"] if re.match(rf"{name}\b", text))


def test_the_distribution_is_datamix_toolkit_and_its_version_the_package_s() -> None:
    assert PROJECT["name"] == "datamix-toolkit"  # the package index has another project called datamix
    assert PROJECT["version"] == datamix.__version__
    assert PROJECT["scripts"] == {"datamix": "datamix.commands.cli:main"}


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_text_tells_to_install_the_other_project_called_datamix(path: Path) -> None:
    assert not re.search(r"pip3? install [^`\n]*\bdatamix(?!-toolkit)\b", path.read_text(encoding="utf-8"))


def test_kernels_compile_and_load_with_the_installed_numba(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for _ in ("compiled", "loaded from its file"):
        ran = subprocess.run(
            [sys.executable, "-c", LOADS], env=environment, capture_output=True, text=True, check=False
        )
        advice = RAISE_THE_CEILING.format(numba=version("numba"), llvmlite=version("llvmlite"))
        assert ran.returncode == 0, f"{ran.stderr}\n{advice}"
    assert [path.name.split("-")[0] for path in tmp_path.glob("*.kernel")] == ["grams.place"]


@pytest.mark.parametrize("name", ["numba", "llvmlite"])
def test_the_ceiling_is_the_minor_version_after_the_locked_one(name: str) -> None:
    (locked,) = re.findall(
        rf"^{name}==0\.(\d+)\.", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M
    )
    assert f"<0.{int(locked) + 1}" in requirement(name), RAISE_THE_CEILING.format(numba="", llvmlite="")


@pytest.mark.parametrize("path", LOCKS, ids=lambda p: p.name)
def test_a_lock_pins_exact_versions_and_names_no_address(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"[a-z0-9.-]+==[^\s;]+( ; .+)?", line), line
        assert "://" not in line


def test_every_dependency_is_locked_and_imported() -> None:
    locked = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    modules = {
        "charset-normalizer": "charset_normalizer",
        "huggingface-hub": "huggingface_hub",
        "pyyaml": "yaml",
    }
    modules |= {"jsonschema-rs": "jsonschema_rs"}
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "datamix").rglob("*.py"))
    for text in PROJECT["dependencies"]:
        name = re.match(r"[a-z0-9-]+", text)[0]  # type: ignore[index]
        assert name in locked
        module = modules.get(name, name)
        assert re.search(rf"^\s*(import|from) {module}\b|[\"']{module}[\"'./:]", sources, re.M), name


def test_a_wheel_holds_the_types_the_schemas_and_the_report_s_files(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed; requirements-dev.lock has it")
    script = f"from hatchling.build import build_wheel; build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"datamix_toolkit-{datamix.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "datamix/py.typed",
        "datamix/schemas/recipe.schema.json",
        "datamix/schemas/manifest.schema.json",
    }
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "datamix").rglob("*.py")}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "datamix").rglob("*.html")}
    assert wanted <= names
    assert not [name for name in names if name.endswith((".kernel", ".pyc")) or name.startswith("tests")]


def test_the_error_of_a_numba_that_is_too_new_names_the_ceilings_of_the_project() -> None:
    source = (ROOT / "datamix" / "core" / "kernels.py").read_text(encoding="utf-8")
    for name in ("numba", "llvmlite"):
        (ceiling,) = re.findall(r"<[0-9.]+", requirement(name))
        assert f"'{name}{ceiling}'" in source


def test_a_numba_without_the_private_names_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/dev/null/nowhere")  # compile, load nothing stored
    monkeypatch.delattr("numba.core.codegen.CPUCodeLibrary.serialize_using_object_code")
    keys, slots = np.array([1, 2], np.uint64), np.full(4, -1, np.int32)
    with pytest.raises(RuntimeError, match=r"cannot use kernels compiled by numba .*pip install 'numba<"):
        Kernel("dedup", "grams", "place")(keys, slots)


def test_a_build_without_fastokens_says_so_in_one_line_and_builds_the_same(tmp_path: Path) -> None:
    program = (
        "import sys, importlib.util as u; found = u.find_spec; sys.modules['fastokens'] = None; "
        "u.find_spec = lambda name, *rest: None if name == 'fastokens' else found(name, *rest); "
        "from datamix.commands.cli import main; main()"
    )
    path = recipe(tmp_path)
    fast = command("build", path, "-o", tmp_path / "fast", "--workers", "1")
    assert fast.returncode == 0, fast.stderr
    assert "fastokens" not in fast.stderr
    arguments = [
        "build",
        str(path),
        "-o",
        str(tmp_path / "slow"),
        "--cache",
        str(tmp_path / "c"),
        "--workers",
        "1",
    ]
    slow = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert slow.returncode == 0, slow.stderr
    assert slow.stderr.count("fastokens is not installed") == 1
    assert fingerprint(tmp_path / "slow") == fingerprint(tmp_path / "fast")


def test_a_tokenizer_that_fastokens_cannot_run_is_said_in_one_line() -> None:
    assert slow_engine_notice({"fastokens"}) is None
    assert "cannot stand in for this tokenizer" in (slow_engine_notice({"fastokens", "tokenizers"}) or "")


def test_polars_reads_every_column_of_the_rows(tmp_path: Path) -> None:
    datamix.build(recipe(tmp_path), tmp_path / "set", workers=1)
    ours = pq.read_table(tmp_path / "set" / "train")
    theirs = polars.read_parquet(tmp_path / "set" / "train" / "*.parquet")
    assert theirs.columns == ours.column_names
    assert theirs.to_dicts() == ours.to_pylist()


def test_a_build_whose_tokenizer_fastokens_cannot_run_says_so_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("fastokens", reason="fastokens is not installed")
    path = recipe(tmp_path)
    words = {
        word: number
        for number, word in enumerate(["[UNK]", "<|im_end|>", "<|im_start|>", *map(chr, range(33, 127))])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    small = command("build", path, "-o", tmp_path / "small", "--workers", "1")
    assert small.returncode == 0, small.stderr
    assert "fastokens" not in small.stderr  # nothing was slower for it
    program = (
        "from datamix.tokenize import tokenizer; tokenizer._SMALL_CHARS = 100; "
        "from datamix.commands.cli import main; main()"
    )
    arguments = ["build", path, "-o", tmp_path / "set", "--cache", tmp_path / "c", "--workers", "1"]
    built = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    assert built.stderr.count("fastokens cannot stand in for this tokenizer") == 1
