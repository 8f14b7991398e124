"""The files of a set against what the manifest lists: nothing missing, nothing more, not a byte changed."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from datamix.audit.findings import Check, Findings, first_line
from datamix.core.hashing import file_sha256
from datamix.recipe.schemas import schema_text

_LISTED = ("train", "validation", "rejects", "removed")  # folders that hold listed files only
# A changed file that a build put beside the new one: no reader takes it.
_SET_ASIDE = re.compile(r"\.yours(\.\d+)?$")


def check_manifest(manifest: Any) -> Check:
    """The manifest follows its published schema."""
    import jsonschema_rs

    findings = Findings("manifest")
    for error in jsonschema_rs.validator_for(json.loads(schema_text("manifest"))).iter_errors(manifest):
        where = ".".join(str(p) for p in error.instance_path) or "the whole"
        findings.add(f"{where}: {error.message}")
    return findings.check("manifest.json follows its schema")


def check_files(out: Path, manifest: dict[str, Any]) -> Check:
    """Every listed file has the listed bytes, hash, rows, format and split; no other file is beside them."""
    findings, num_bytes = Findings("files"), 0
    for entry in manifest["outputs"]:
        name, folder = entry["path"], entry["path"].split("/")[0]
        form, split = _format_and_split(entry, manifest)
        findings.expect(f"the format of {name}", entry["format"], form)
        if split is not None and entry["split"] != folder:
            findings.expect(f"the split of {name}", entry["split"], split)
        path = out / name
        if not path.is_file():
            findings.add(f"{name} is missing")
            continue
        size = path.stat().st_size
        num_bytes += size
        if size != entry["bytes"]:
            findings.add(f"{name} has {size:,} bytes, the manifest says {entry['bytes']:,}")
        elif file_sha256(path) != entry["sha256"]:
            findings.add(f"{name} has other content than its sha256 in the manifest")
        elif folder in _LISTED and (num_rows := _num_rows(path)) is not None:
            findings.expect(f"the number of rows in {name}", entry["rows"], num_rows)
    listed = Counter(entry["path"] for entry in manifest["outputs"])
    for name in sorted(name for name, count in listed.items() if count > 1):
        findings.add(f"{name} is listed more than once")
    for folder in sorted({*_LISTED, *(p.split("/")[0] for p in listed if "/" in p)}):
        for path in sorted((out / folder).rglob("*")):
            name = path.relative_to(out).as_posix()
            if path.is_file() and name not in listed and not _SET_ASIDE.search(name):
                findings.add(f"{name} is not listed in the manifest")
    return findings.check(
        f"{listed.total():,} files, {num_bytes:,} bytes: sizes and sha256 as listed, none missing, none more"
    )


def check_tokenizer(out: Path, manifest: dict[str, Any]) -> Check:
    """The tokenizer beside the rows is the one that the manifest names."""
    findings, claims = Findings("tokenizer"), manifest["tokenizer"]
    path, template = out / "tokenizer" / "tokenizer.json", out / "tokenizer" / "chat_template.jinja"
    if not path.is_file():
        findings.add("tokenizer/tokenizer.json is missing")
        return findings.check()
    findings.expect("the sha256 of tokenizer/tokenizer.json", claims["sha256"], file_sha256(path))
    try:
        spec = orjson.loads(path.read_bytes())
        vocab = spec["model"].get("vocab") or {}
        ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        largest = max([*ids, *(t["id"] for t in spec.get("added_tokens") or [])], default=-1)
        findings.expect("the size of the vocabulary", claims["vocab_size"], int(largest) + 1)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        findings.add(f"tokenizer/tokenizer.json cannot be read: {first_line(error)}")
    if claims["chat_template_sha256"] is not None:
        sha256 = file_sha256(template) if template.is_file() else "missing"
        findings.expect("the sha256 of tokenizer/chat_template.jinja", claims["chat_template_sha256"], sha256)
    return findings.check(f"{claims['name']}, {claims['vocab_size']:,} ids, is beside the rows")


def _format_and_split(entry: dict[str, Any], manifest: dict[str, Any]) -> tuple[str, str | None]:
    """What the place of a file says of its format and split; of exports the split is None, unknown."""
    folder, _, name = entry["path"].partition("/")
    if folder == "validation":
        sources = [s for s in manifest["sources"] if re.fullmatch(re.escape(s) + r"(-\d+)?\.parquet", name)]
        return "parquet", f"validation/{max(sources, key=len)}" if sources else None
    fixed = {"train": "parquet", "removed": "parquet", "rejects": "jsonl", "tokenizer": "tokenizer"}
    if folder in fixed:
        return fixed[folder], "" if folder == "tokenizer" else folder
    pages = {"report.html": ("report", "report"), "README.md": ("card", "card")}
    return pages.get(entry["path"], (folder, None))


def _num_rows(path: Path) -> int | None:
    """Rows of a file whose format says what a row is; None for others, and for Parquet that cannot be read."""
    if path.suffix == ".parquet":
        try:
            return int(pq.read_metadata(path).num_rows)
        except (OSError, ValueError):
            return None
    if path.suffix == ".jsonl":
        with path.open("rb") as stream:
            return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
    return None
