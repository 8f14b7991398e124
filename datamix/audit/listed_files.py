"""The files of a set against what the manifest lists: nothing missing, nothing more, not a byte changed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from datamix.audit.findings import Check, Findings, first_line
from datamix.core.hashing import file_sha256
from datamix.recipe.schemas import schema_text

_KEPT = ("train", "validation", "rejects", "removed")  # folders that hold listed files only
# A changed file that a build put beside the new one: no reader takes it.
_SET_ASIDE = re.compile(r"\.yours(\.\d+)?$")


def check_manifest(manifest: Any) -> Check:
    """The manifest follows its published schema."""
    import jsonschema_rs

    found = Findings("manifest")
    for error in jsonschema_rs.validator_for(json.loads(schema_text("manifest"))).iter_errors(manifest):
        where = ".".join(str(p) for p in error.instance_path) or "the whole"
        found.add(f"{where}: {error.message}")
    return found.check("manifest.json follows its schema")


def check_files(out: Path, manifest: dict[str, Any]) -> Check:
    """Every listed file stands with the listed bytes, hash and rows; no other file lies beside them."""
    found = Findings("files")
    num_bytes = 0
    for entry in manifest["outputs"]:
        path = out / entry["path"]
        if not path.is_file():
            found.add(f"{entry['path']} is missing")
            continue
        num_bytes += path.stat().st_size
        if path.stat().st_size != entry["bytes"]:
            found.add(
                f"{entry['path']} has {path.stat().st_size:,} bytes, the manifest says {entry['bytes']:,}"
            )
        elif file_sha256(path) != entry["sha256"]:
            found.add(f"{entry['path']} has other content than its sha256 in the manifest")
        elif entry["path"].split("/")[0] in _KEPT and (rows := _num_rows(path)) is not None:
            found.expect(f"the number of rows in {entry['path']}", entry["rows"], rows)
    for entry in manifest["outputs"]:
        expected = _format_and_split(entry, manifest)
        found.expect(f"the format of {entry['path']}", entry["format"], expected[0])
        if expected[1] is not None and entry["split"] != entry["path"].split("/")[0]:
            found.expect(f"the split of {entry['path']}", entry["split"], expected[1])
    listed = [entry["path"] for entry in manifest["outputs"]]
    for path in (p for p in sorted(set(listed)) if listed.count(p) > 1):
        found.add(f"{path} is listed more than once")
    for path in _strangers(out, set(listed)):
        found.add(f"{path} is not listed in the manifest")
    return found.check(
        f"{len(listed):,} files, {num_bytes:,} bytes: sizes and sha256 as listed, none missing, none more"
    )


def check_tokenizer(out: Path, manifest: dict[str, Any]) -> Check:
    """The tokenizer beside the rows is the one that the manifest names."""
    found = Findings("tokenizer")
    claims = manifest["tokenizer"]
    path, template = out / "tokenizer" / "tokenizer.json", out / "tokenizer" / "chat_template.jinja"
    if not path.is_file():
        found.add("tokenizer/tokenizer.json is missing")
        return found.check("")
    found.expect("the sha256 of tokenizer/tokenizer.json", claims["sha256"], file_sha256(path))
    try:
        found.expect("the size of the vocabulary", claims["vocab_size"], _vocab_size(path))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found.add(f"tokenizer/tokenizer.json cannot be read: {first_line(error)}")
    if claims["chat_template_sha256"] is not None:
        held = file_sha256(template) if template.is_file() else "missing"
        found.expect("the sha256 of tokenizer/chat_template.jinja", claims["chat_template_sha256"], held)
    return found.check(f"{claims['name']}, {claims['vocab_size']:,} ids, stands beside the rows")


def _format_and_split(entry: dict[str, Any], manifest: dict[str, Any]) -> tuple[str, str | None]:
    """What the place of a file says of its format and split; of exports the split is None, unknown."""
    folder, _, name = entry["path"].partition("/")
    if folder == "validation":
        sources = [s for s in manifest["sources"] if re.fullmatch(re.escape(s) + r"(-\d+)?\.parquet", name)]
        return "parquet", f"validation/{max(sources, key=len)}" if sources else None
    fixed = {"train": "parquet", "removed": "parquet", "rejects": "jsonl", "tokenizer": "tokenizer"}
    if folder in fixed:
        return fixed[folder], "" if folder == "tokenizer" else folder
    return ("report", "report") if entry["path"] == "report.html" else (folder, None)


def _vocab_size(path: Path) -> int:
    """The largest id and one, added tokens included."""
    spec = orjson.loads(path.read_bytes())
    vocab = spec["model"].get("vocab") or {}
    largest = max(vocab.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
    return int(max([largest, *(t["id"] for t in spec.get("added_tokens") or [])])) + 1


def _strangers(out: Path, listed: set[str]) -> Iterator[str]:
    folders = {*_KEPT, *(p.split("/")[0] for p in listed if "/" in p)}
    for folder in sorted(folders):
        for path in sorted((out / folder).rglob("*")):
            name = path.relative_to(out).as_posix()
            if path.is_file() and name not in listed and not _SET_ASIDE.search(name):
                yield name


def _num_rows(path: Path) -> int | None:
    """Rows of a file whose format says what a row is; None for others."""
    if path.suffix == ".parquet":
        try:
            return int(pq.read_metadata(path).num_rows)
        except (OSError, ValueError):
            return None
    if path.suffix == ".jsonl":
        with path.open("rb") as stream:
            return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
    return None
