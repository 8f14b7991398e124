"""verify finds what was forged: any number of the manifest against recipe and files, and masks against the template."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encode_tokenizers import save_all
from small import MEDICAL, datamix, recipe, write_jsonl

from datamix import Recipe, verify
from datamix.audit.findings import Unchecked
from datamix.audit.promises import checks_and_claims
from datamix.core.errors import DatamixError
from datamix.core.hashing import digest
from datamix.jobs.build import build
from datamix.pipeline.steps import Options

IGNORE = -100


def run(path: Path, name: str = "set") -> Path:
    build(Recipe.read(path), Options(path.parent / name, path.parent / ".datamix", 1))
    return path.parent / name


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forgery")
    stages = [
        {"name": "broad", "share": 0.75},
        {"name": "sharp", "share": 0.25, "weights": {"general": 0.5, "medical": 0.5}, "ramp": "linear"},
    ]
    path = recipe(
        folder, mix={"stages": stages}, encode={"max_length": 256, "pack": "none"}, write=["parquet", "jsonl"]
    )
    with (folder / "general.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("not json\n")
    return run(path)


def failed(out: Path) -> dict[str, str]:
    try:
        return {c.name: c.detail for c in verify(out) if not c.ok}
    except DatamixError as error:
        return {"error": str(error)}


def forged(out: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a set whose manifest was changed; the recipe's fingerprint follows."""
    target = folder / "forged"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(out, target, copy_function=shutil.copy)
    manifest = json.loads((target / "manifest.json").read_bytes())
    change(manifest)
    (target / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
    return target


def test_other_weights_than_the_recipe_asks_are_found(built: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        for stage in manifest["mixture"]["stages"]:
            stage["weights"] = {"general": 0.5, "medical": 0.5}
            stage.pop("ramp", None)
            stage.pop("ramp_from", None)
        for name in ("general", "medical"):
            manifest["sources"][name]["share"]["asked"] = 0.5

    assert "mixture" in failed(forged(built, tmp_path, change))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["sources"]["general"].update(weight=0.5),
        lambda r: r["sources"]["general"].update(max_epochs=5.0),
        lambda r: r["mix"].update(unit="records"),
        lambda r: r["mix"]["stages"][1].update(weights={"general": 0.4, "medical": 0.6}),
        lambda r: r["mix"]["stages"][0].update(share=0.5),
        lambda r: r["mix"]["stages"][1].update(ramp=None),
        lambda r: r["encode"].update(max_length=128),
        lambda r: r["encode"].update(pack="best_fit"),
        lambda r: r["encode"].update(loss_on="all"),
        lambda r: r.update(seed=7),
        lambda r: r.update(name="other"),
        lambda r: r.update(write=["parquet", "megatron"]),
    ],
    ids=lambda c: "",
)
def test_a_recipe_that_did_not_build_the_set_is_found(
    built: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    def both(manifest: dict[str, Any]) -> None:
        change(manifest["recipe"])
        manifest["recipe_sha256"] = digest(manifest["recipe"])

    assert failed(forged(built, tmp_path, both))


def test_another_seed_than_the_one_that_ordered_the_rows_is_found(built: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["seed"] = manifest["recipe"]["seed"] = 7
        manifest["recipe_sha256"] = digest(manifest["recipe"])

    assert set(failed(forged(built, tmp_path, change))) == {"order"}


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path, value


def other(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return "x"
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.9 + 0.01
    if isinstance(value, str):
        return ("0" if value[:1] != "0" else "1") + value[1:] if value else "x"
    return ["x"] if isinstance(value, list) else {"x": 1}


def test_every_leaf_of_the_manifest_is_checked_or_named(built: Path, tmp_path: Path) -> None:
    """Each number and word is changed alone; verify of the changed set fails, or names that place as not checked."""
    manifest = json.loads((built / "manifest.json").read_bytes())
    target = tmp_path / "one"
    shutil.copytree(built, target)
    missed, num_found = [], 0
    for path, value in leaves({k: v for k, v in manifest.items() if k != "recipe"}):
        edited = copy.deepcopy(manifest)
        place: Any = edited
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = other(value)
        (target / "manifest.json").write_text(json.dumps(edited, ensure_ascii=False), encoding="utf-8")
        if failed(target):
            num_found += 1
            continue
        dotted, claims = ".".join(map(str, path)), checks_and_claims(target, edited)[1]
        printed = next(c.detail for c in verify(target) if c.name == "not checked")
        if not any(covers(claim, dotted) and claim.text in printed for claim in claims):
            missed.append(dotted)
    assert missed == []
    assert num_found > 120


def covers(claim: Unchecked, path: str) -> bool:
    """Whether a dotted path into the manifest lies in a claim."""
    return any(fnmatchcase(path, p) or fnmatchcase(path, f"{p}.*") for p in claim.places)


def without_dedupe(manifest: dict[str, Any]) -> None:
    manifest["recipe"]["dedupe"] = None
    source = manifest["sources"]["medical"]
    source["removed_by"], source["records"]["removed"] = {"exact": 1}, 1


def other_seed_and_available(manifest: dict[str, Any]) -> None:
    manifest["seed"] = manifest["recipe"]["seed"] = 7
    for source in manifest["sources"].values():
        source["available"]["rows"] += 1


def more_available(manifest: dict[str, Any]) -> None:
    available = manifest["sources"]["general"]["available"]
    available["tokens"] *= 3
    available["records"] += 9


def other_split(manifest: dict[str, Any]) -> None:
    entry = next(e for e in manifest["outputs"] if e["path"].startswith("validation/"))
    entry["split"] = "train"


def half_held_out(manifest: dict[str, Any]) -> None:
    manifest["recipe"]["validation"]["share"] = 0.5


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (without_dedupe, "recipe"),
        (half_held_out, "recipe"),
        (other_seed_and_available, "counts"),
        (more_available, "counts"),
        (other_split, "files"),
    ],
)
def test_claims_that_agree_with_each_other_are_held_against_the_files(
    built: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], check: str
) -> None:
    def both(manifest: dict[str, Any]) -> None:
        change(manifest)
        manifest["recipe_sha256"] = digest(manifest["recipe"])

    assert check in failed(forged(built, tmp_path, both))


def test_a_written_set_is_not_taken_for_a_virtual_one(built: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["virtual"] = True

    assert "recipe" in failed(forged(built, built.parent, change))  # beside its cache, which holds the rows


def test_what_a_sample_of_rows_leaves_open_is_named(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built.parent)
    named = {
        share: next(c.detail for c in verify(built, share) if c.name == "not checked")
        for share in (None, 0.1, 1.0)
    }
    assert "masks that begin" in named[None]
    assert "outside of the sample" in named[0.1]
    assert "needs --inputs" not in named[1.0]


Mask = Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], np.ndarray[Any, Any]]  # ids, labels -> labels


def whole_prompt(ids: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return ids.copy()


def first_half_masked(ids: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    trained = np.flatnonzero(labels != IGNORE)
    changed = labels.copy()
    changed[trained[: len(trained) // 2]] = IGNORE
    return changed


def question_trained(ids: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The question and its end token, behind the header of the user's turn."""
    changed = labels.copy()
    first = int(np.flatnonzero(labels != IGNORE)[0])
    changed[4 : first - 4] = ids[4 : first - 4]
    return changed


@pytest.mark.parametrize(
    ("mask", "share"),  # where every span begins within its answer, only the raw files can tell
    [
        (whole_prompt, 1.0),
        (question_trained, 1.0),
        (whole_prompt, 0.05),
        (question_trained, 0.05),
        (first_half_masked, 0.05),
    ],
)
def test_wrong_masks_are_found(built: Path, tmp_path: Path, mask: Mask, share: float) -> None:
    target = forged(built, tmp_path, lambda manifest: None)
    for shard in (target / "train").glob("*.parquet"):
        table = pq.read_table(shard)
        rows = table.to_pylist()
        for number, row in enumerate(rows):
            if number < max(1, share * len(rows)):
                ids, labels = np.array(row["input_ids"]), np.array(row["labels"])
                row["labels"] = mask(ids, labels).tolist()
        pq.write_table(pa.Table.from_pylist(rows, table.schema), shard)
    assert "masks" in failed(target)


def forge_labels(out: Path, folder: Path, mask: Mask) -> Path:
    target = forged(out, folder, lambda manifest: None)
    for shard in (target / "train").glob("*.parquet"):
        table = pq.read_table(shard)
        rows = table.to_pylist()
        for row in rows:
            row["labels"] = mask(np.array(row["input_ids"]), np.array(row["labels"])).tolist()
        pq.write_table(pa.Table.from_pylist(rows, table.schema), shard)
    return target


def with_inputs(out: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, tuple[bool, str]]:
    monkeypatch.chdir(folder)
    return {c.name: (c.ok, c.detail) for c in verify(out, inputs=1.0)}


def test_rows_are_made_again_from_the_raw_files(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = with_inputs(built, monkeypatch, built.parent)
    rows = json.loads((built / "manifest.json").read_bytes())["packing"]["rows"]
    assert checks["inputs"][0]
    assert checks["derived"] == (
        True,
        f"{rows:,} rows encoded again from the raw files: every id and label equal",
    )


@pytest.mark.parametrize("mask", [whole_prompt, first_half_masked, question_trained])
def test_masks_that_all_are_wrong_are_found_from_the_raw_files(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: Mask
) -> None:
    target = forge_labels(built, tmp_path, mask)
    assert not with_inputs(target, monkeypatch, built.parent)["derived"][0]


@pytest.mark.parametrize(
    "field", ["sha256", "bytes", "records", "encoding", "container", "compression", "format"]
)
def test_claims_about_inputs_are_held_against_the_files(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["inputs"][0][field] = other(manifest["inputs"][0][field])

    assert not with_inputs(forged(built, tmp_path, change), monkeypatch, built.parent)["inputs"][0]


def test_raw_files_that_are_nowhere_are_said_to_be(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = forged(built, tmp_path, lambda manifest: None)
    ok, detail = with_inputs(target, monkeypatch, tmp_path)["inputs"]
    assert not ok
    assert "run verify in the folder of the recipe file" in detail


def test_the_command_takes_a_share(built: Path) -> None:
    for words in (["--inputs"], ["--inputs", "1"], ["--inputs", "0.5"]):
        done = datamix("verify", built, *words)
        assert done.returncode == 0, done.stdout
        assert "rows encoded again" in done.stdout
    assert datamix("verify", built, "--inputs", "2").returncode == 2


TURNS = [
    [{"role": "user", "content": q}, {"role": "assistant", "content": f"回答 {n}: yes, {q}"}]
    for n, q in enumerate(MEDICAL)
]


def test_right_masks_of_every_template_are_not_doubted(tmp_path: Path) -> None:
    sys.path.append(str(Path(__file__).parent.parent / "tokenize"))
    doubted = {}
    for name, folder in save_all(tmp_path / "tokenizers").items():
        home = tmp_path / name
        path = recipe(home, tokenizer=str(folder), sources={"all": {"path": "talk.jsonl"}}, validation=None, dedupe=None,
                      clean=None, encode={"max_length": 512, "pack": "none"}, write=["parquet"], max_reject_share=1.0)  # fmt: skip
        talks = [[*a, *b] for a in TURNS for b in TURNS] + TURNS
        write_jsonl(home / "talk.jsonl", [{"messages": talk} for talk in talks])
        out = run(path)
        if problems := failed(out):
            doubted[name] = problems
    assert doubted == {}
