"""What a set says of its inputs, its tokenizer and its cache is what was read: a swap or damage is refused or repaired."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import GENERAL, TOKENIZER, Lines, alpaca, fingerprint, recipe

from datamix import Recipe
from datamix.core.errors import DataError, RecipeError
from datamix.jobs.build import build
from datamix.pipeline import prepare_sources
from datamix.pipeline.progress import Screen
from datamix.pipeline.steps import Options
from datamix.pipeline.store import Store
from datamix.tokenize import copy_tokenizer, find_tokenizer

ROWS = alpaca(GENERAL, 40)
OTHER = [{**row, "output": row["output"][::-1]} for row in ROWS]  # the same sizes


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="none")
    return bytes(sink.getvalue())


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.jsonl": jsonl,
    "a.jsonl.gz": lambda rows: gzip.compress(jsonl(rows), mtime=0),
    "a.parquet": parquet,
    "a.json": lambda rows: json.dumps(rows, ensure_ascii=False).encode(),
    "a.csv": lambda rows: "".join(
        f"{r['instruction']},{r['output']}\n"
        for r in [{"instruction": "instruction", "output": "output"}, *rows]
    ).encode(),
}


def project(folder: Path, name: str) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / name).write_bytes(WRITERS[name](ROWS))
    return recipe(
        folder,
        sources={"all": {"path": f"data/{name}"}},
        validation=None,
        dedupe=None,
        max_reject_share=1.0,
        write=["parquet"],
    )


def around_reading(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[], None], after: Callable[[], None]
) -> None:
    """Run something just before the files are read, after they were scanned, and something just behind it."""
    original = prepare_sources._grouped

    def grouped(context: Any, title: str, groups: Any) -> Any:
        if title != "prepare":
            return original(context, title, groups)
        before()
        try:
            return original(context, title, groups)
        finally:
            after()

    monkeypatch.setattr(prepare_sources, "_grouped", grouped)


def run(path: Path, out: str = "set", screen: Screen | None = None) -> dict[str, Any]:
    return build(Recipe.read(path), Options(path.parent / out, path.parent / ".datamix", 1), screen)


@pytest.mark.parametrize("name", sorted(WRITERS))
@pytest.mark.parametrize("how", ["folder", "rename", "rewrite"])
def test_an_input_swapped_while_it_is_read_and_put_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    path = project(tmp_path, name)
    data, file = tmp_path / "data", tmp_path / "data" / name
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_bytes(WRITERS[name](OTHER))
    stat = file.stat()

    def exchange() -> None:
        if how == "folder":
            data.rename(tmp_path / "aside")
            (tmp_path / "other").rename(data)
            (tmp_path / "aside").rename(tmp_path / "other")
        elif how == "rename":
            file.rename(tmp_path / "aside")
            (tmp_path / "other" / name).rename(file)
            (tmp_path / "aside").rename(tmp_path / "other" / name)
        else:
            mine, theirs = file.read_bytes(), (tmp_path / "other" / name).read_bytes()
            file.write_bytes(theirs)
            (tmp_path / "other" / name).write_bytes(mine)
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    with monkeypatch.context() as patch:
        around_reading(patch, exchange, exchange)
        with pytest.raises(DataError, match="changed while it was being read"):
            run(path)
    assert not (tmp_path / "set" / "manifest.json").exists()
    again = run(path)
    shutil.rmtree(tmp_path / ".datamix")
    assert run(path, "fresh")["content_sha256"] == again["content_sha256"]


def test_a_file_written_within_the_tick_of_its_scan_is_still_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project(tmp_path, "a.jsonl")
    file = tmp_path / "data" / "a.jsonl"
    file.write_bytes(jsonl(ROWS))  # just now

    def rewrite() -> None:
        stat = file.stat()
        file.write_bytes(jsonl(OTHER))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    around_reading(monkeypatch, rewrite, lambda: None)
    with pytest.raises(DataError, match="changed while"):
        run(path)


def test_a_tokenizer_that_changes_after_it_was_found_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(TOKENIZER, folder)
    files = find_tokenizer(str(folder), str(tmp_path))
    (tmp_path / "copy").mkdir()
    copy_tokenizer(files, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy").keys() <= fingerprint(folder).keys()
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="changed while it was used"):
        copy_tokenizer(files, tmp_path / "copy")


def test_a_tokenizer_swapped_before_workers_load_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project(tmp_path, "a.jsonl")
    tokenizer = tmp_path / "tokenizer" / "tokenizer.json"
    raw = tokenizer.read_bytes()
    around_reading(monkeypatch, lambda: None, lambda: tokenizer.write_bytes(raw + b"\n") and None)
    with pytest.raises(RecipeError, match="changed while it was used"):
        run(path)


def damage(path: Path, kind: str) -> None:
    raw = path.read_bytes()
    if kind == "flip":
        stat = path.stat()
        path.write_bytes(
            raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :] if raw else b"x"
        )
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif kind == "cut":
        path.write_bytes(raw[:-1])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize("kind", ["flip", "cut", "empty", "gone"])
def test_every_damaged_result_in_the_cache_is_made_again(tmp_path: Path, kind: str) -> None:
    path = recipe(tmp_path, write=["parquet"])
    run(path)
    whole = fingerprint(tmp_path / "set")
    store = tmp_path / ".datamix" / "store"
    files = sorted(p.relative_to(store) for p in store.rglob("*") if p.is_file())
    assert len(files) > 15
    for number, name in enumerate(files):
        if not (store / name).read_bytes() and kind in ("cut", "empty"):
            continue
        damage(store / name, kind)
        screen = Lines()
        run(path, f"set-{number}", screen)
        assert fingerprint(tmp_path / f"set-{number}") == whole, name
        if name.name != "receipt.json":
            assert [line for line in screen.lines if "damaged results" in line], name
        shutil.rmtree(tmp_path / f"set-{number}")


def test_a_receipt_whose_counts_were_changed_is_no_receipt(tmp_path: Path) -> None:
    path = recipe(tmp_path, write=["parquet"])
    run(path)
    store = Store(tmp_path / ".datamix" / "store")
    for key in store.finished():
        receipt = store.folder(key) / "receipt.json"
        said = json.loads(receipt.read_bytes())
        said["counts"]["one"] = "more"
        receipt.write_text(json.dumps(said), encoding="utf-8")
        assert store.find(key) is None
        assert store.is_damaged(key)
