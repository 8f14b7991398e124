"""Finished sets made by hand: small OUT folders that hold what section 4 of the contract says, without a build.

They are an independent reading of the contract: nothing of ``datamix`` but its row schema and hash functions is used.
Two sources, Chinese and English, with every fate in the ledger. ``mend`` repairs the checksums after a test changed a
file, so that only a recount can catch what was done.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from datamix import Recipe
from datamix.core.content import ContentDigest, files_digest
from datamix.core.hashing import digest, mix64, salt
from datamix.core.records import row_schema

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ASKED = {"general": 0.7, "medical": 0.3}
MAX_LENGTH = 96
_MENDED = ("rows", "bytes", "sha256")
_REMOVED = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.int32()),
        ("record", pa.int64()),
        ("fate", pa.string()),
        ("reason", pa.string()),
        ("kept_source", pa.string()),
        ("kept_file", pa.int32()),
        ("kept_record", pa.int64()),
        ("similarity", pa.float32()),
        ("detail", pa.string()),
    ]
)
_QUESTIONS = {
    "general": [
        "How do plants eat <light>?",
        "请用一句话介绍长城。",
        "Name three rivers & their seas.",
        "写一首关于秋天的短诗。",
    ],
    "medical": ["感冒发烧应该怎么办?", "What lowers blood pressure?", "高血压患者能喝咖啡吗?"],
}
_ANSWERS = {
    "general": [
        "They turn light into sugar.",
        "长城是古代的防御工程。",
        "The Nile, the Rhine and the Po.",
        "秋风起, 叶落满庭。",
    ],
    "medical": [
        "多喝水, 多休息, 必要时就医。",
        "Exercise, less salt, and sleep.",
        "可以少量饮用, 注意监测血压。",
    ],
}


@dataclass
class Piece:
    """A record's encoding: its id, its tokens and which of them are trained; pairs have more parts."""

    source: str
    file: int
    record: int
    ids: list[int]
    trained: list[bool]
    prompt: str = ""
    chosen: str = ""
    rejected: str = ""
    parts: dict[str, list[int]] = field(default_factory=dict)
    start: int = 0


def build(out: Path, kind: str, pack: str = "none") -> Path:
    """A whole set of ``kind`` below ``out``, and its inputs beside it; returns ``out``."""
    tokenizer = _tokenizer()
    inputs, fates = _inputs(out.parent, kind)
    pieces = list(_encoded(tokenizer, inputs, kind))
    used = [p for p in pieces if fates[p.file, p.record] == "used"]
    held_out = [p for p in pieces if fates[p.file, p.record] == "validation"]
    rows = {s: _packed([p for p in used if p.source == s], pack) for s in ASKED}
    if pack == "none" and kind != "pretrain":
        rows = {s: _ordered(r, s) for s, r in rows.items()}
    unit = "records" if kind in ("preference", "prompt") else "loss_tokens" if kind == "sft" else "tokens"
    order, unused, bound, worst = _mixed(rows, unit)
    emitted = {(p.file, p.record) for row in order for p in row}
    for row in unused:
        fates.update({(p.file, p.record): "unused" for p in row if (p.file, p.record) not in emitted})
    schema = row_schema(kind, pack == "best_fit")  # type: ignore[arg-type]
    half = len(order) // 2
    _write_rows(out / "train/part-00000.parquet", order[:half], kind, pack, schema)
    _write_rows(out / "train/part-00001.parquet", order[half:], kind, pack, schema)
    for source in ASKED:
        single = _packed([p for p in held_out if p.source == source], pack)
        _write_rows(out / f"validation/{source}.parquet", single, kind, pack, schema)
    _write_audit(out, inputs, fates)
    (out / "tokenizer").mkdir()
    tokenizer.save(str(out / "tokenizer/tokenizer.json"))
    manifest = _manifest(out, kind, pack, inputs, fates, (rows, order, unit, bound, worst))
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    return out


def change(out: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the manifest in place."""
    path = out / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    edit(manifest)
    path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


def mend(out: Path) -> None:
    """Make every checksum, size and row number of the manifest true again; its counts stay as they were."""

    def edit(manifest: dict[str, Any]) -> None:
        kept = [e for e in manifest["outputs"] if (out / e["path"]).exists()]
        manifest["outputs"] = [
            e | {k: v for k, v in _output(out, out / e["path"]).items() if k in _MENDED} for e in kept
        ]
        manifest["content_sha256"] = _content(out)

    change(out, edit)


def rewrite_rows(path: Path, edit: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Change the rows of a Parquet file as Python values."""
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(edit(table.to_pylist()), table.schema), path)


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = [t for group in (*_QUESTIONS.values(), *_ANSWERS.values()) for t in group]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END, START, STOP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


def _inputs(folder: Path, kind: str) -> tuple[list[dict[str, Any]], dict[tuple[int, int], str]]:
    """Three input files of JSON Lines, and the fate of each of their records."""
    files = [
        ("general", "data/general_0.jsonl", 40),
        ("general", "data/general_1.jsonl", 30),
        ("medical", "data/medical.jsonl", 60),
    ]
    inputs: list[dict[str, Any]] = []
    fates: dict[tuple[int, int], str] = {}
    special = {
        0: "rejected",
        1: "cleaned",
        2: "exact",
        3: "near",
        4: "dropped",
        7: "validation",
        8: "max_records",
    }
    for index, (source, name, count) in enumerate(files):
        lines = []
        for record in range(count):
            fates[index, record] = special.get(record, "used")
            question, answer = _words(source, record)
            value = (
                {"text": question + answer}
                if kind == "pretrain"
                else {"instruction": question, "output": answer}
            )
            lines.append("{broken" if record == 0 else json.dumps(value, ensure_ascii=False))
        if source == "medical":
            fates[index, 9] = "leaked"
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        body = path.read_bytes()
        inputs.append({"source": source, "path": name, "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest(),
                       "records": count, "encoding": "utf-8"})  # fmt: skip
    return inputs, fates


def _words(source: str, record: int) -> tuple[str, str]:
    questions, answers = _QUESTIONS[source], _ANSWERS[source]
    return questions[record % len(questions)], " ".join([answers[record % len(answers)]] * (1 + record % 3))


def _encoded(tokenizer: Tokenizer, inputs: list[dict[str, Any]], kind: str) -> Iterator[Piece]:
    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    for index, entry in enumerate(inputs):
        for record in range(entry["records"]):
            question, answer = _words(entry["source"], record)
            prompt = ids(f"{START}user\n{question}{STOP}\n{START}assistant\n")
            if kind == "pretrain":
                tokens = ids(question + answer + END)
                yield Piece(entry["source"], index, record, tokens, [True] * len(tokens))
            elif kind == "sft":
                said, after = ids(answer + STOP), ids("\n")
                mask = [False] * len(prompt) + [True] * len(said) + [False] * len(after)
                yield Piece(entry["source"], index, record, prompt + said + after, mask)
            elif kind == "preference":
                parts = {
                    "prompt_ids": prompt,
                    "chosen_completion_ids": ids(answer + STOP),
                    "rejected_completion_ids": ids("?" + STOP),
                }
                tokens = [i for part in parts.values() for i in part]
                yield Piece(entry["source"], index, record, tokens, [], question, answer, "?", parts)
            else:
                yield Piece(
                    entry["source"], index, record, prompt, [], question, parts={"prompt_ids": prompt}
                )


def _packed(pieces: list[Piece], pack: str) -> list[list[Piece]]:
    """Rows of pieces: one record a row, first fit, or a stream cut every MAX_LENGTH tokens."""
    if pack == "none":
        return [[p] for p in pieces]
    rows: list[list[Piece]] = []
    if pack == "best_fit":
        for piece in pieces:
            fits = [r for r in rows if sum(len(p.ids) for p in r) + len(piece.ids) <= MAX_LENGTH]
            if fits:
                fits[0].append(piece)
            else:
                rows.append([piece])
        return rows
    row: list[Piece] = []
    for piece in pieces:
        start = 0
        while start < len(piece.ids):
            take = min(len(piece.ids) - start, MAX_LENGTH - sum(len(p.ids) for p in row))
            end = start + take
            row.append(
                Piece(
                    piece.source,
                    piece.file,
                    piece.record,
                    piece.ids[start:end],
                    piece.trained[start:end],
                    start=start,
                )
            )
            start = end
            if sum(len(p.ids) for p in row) == MAX_LENGTH:
                rows.append(row)
                row = []
    return [*rows, row] if row else rows


def _cost(row: list[Piece], unit: str) -> int:
    if unit == "records":
        return len(row)
    if unit == "tokens":
        return sum(len(p.ids) for p in row)
    return sum(sum(p.trained) for p in row)


def _ordered(rows: list[list[Piece]], source: str) -> list[list[Piece]]:
    """Rows of whole records in the order that the seed gives."""
    keys = mix64(np.arange(len(rows), dtype=np.uint64) ^ salt(42, "order", source, 0))
    return [rows[n] for n in np.argsort(keys)]


def _mixed(
    rows: dict[str, list[list[Piece]]], unit: str
) -> tuple[list[list[Piece]], list[list[Piece]], float, float]:
    """Rows in training order (always the source that is furthest behind), those left over, bound, worst deviation."""
    queues = {s: list(r) for s, r in rows.items()}
    largest = {s: max(_cost(row, unit) for row in r) for s, r in rows.items()}
    emitted = dict.fromkeys(rows, 0)
    order: list[list[Piece]] = []
    worst = 0.0
    top = max(largest.values())
    while True:
        total = sum(emitted.values())
        ready = [s for s in ASKED if emitted[s] / ASKED[s] <= total + top / 2]
        if any(not queues[s] for s in ready):
            break
        chosen = min(ready, key=lambda s: (emitted[s] + _cost(queues[s][0], unit)) / ASKED[s])
        row = queues[chosen].pop(0)
        order.append(row)
        emitted[chosen] += _cost(row, unit)
        worst = max(worst, *(abs(emitted[s] - ASKED[s] * sum(emitted.values())) for s in ASKED))
    left = [row for s in ASKED for row in queues[s]]
    return order, left, max((1 - ASKED[s]) * largest[s] + ASKED[s] * top / 2 for s in ASKED), worst


def _write_rows(path: Path, rows: list[list[Piece]], kind: str, pack: str, schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [_row(row, kind, pack) for row in rows]
    pq.write_table(pa.Table.from_pylist(values, schema), path, row_group_size=7)


def _row(row: list[Piece], kind: str, pack: str) -> dict[str, Any]:
    first = row[0]
    value: dict[str, Any] = {
        "source": first.source,
        "stage": "main",
        "records": [
            {"file": p.file, "record": p.record, "start": p.start, "length": len(p.ids)} for p in row
        ],
    }
    if kind in ("pretrain", "sft"):
        ids = [i for p in row for i in p.ids]
        trained = [t and not (pack == "best_fit" and n == 0) for p in row for n, t in enumerate(p.trained)]
        value |= {"input_ids": ids, "labels": [i if t else -100 for i, t in zip(ids, trained, strict=True)]}
        if pack == "best_fit":
            value |= {
                "position_ids": [n for p in row for n in range(len(p.ids))],
                "seq_lengths": [len(p.ids) for p in row],
            }
        else:
            value |= {"attention_mask": [1] * len(ids)}
        return value
    user = [{"role": "user", "content": first.prompt}]
    value |= {**first.parts, "prompt": user}
    if kind == "preference":
        answers = {n: [{"role": "assistant", "content": getattr(first, n)}] for n in ("chosen", "rejected")}
        return value | answers | {"margin": None}
    return value | {"reference": "42", "meta": None}


def _write_audit(out: Path, inputs: list[dict[str, Any]], fates: dict[tuple[int, int], str]) -> None:
    (out / "removed").mkdir()
    (out / "rejects").mkdir()
    for source in ASKED:
        lines, rejects = [], []
        for (file, record), fate in sorted(fates.items()):
            if inputs[file]["source"] != source or fate in ("used", "validation"):
                continue
            if fate == "rejected":
                rejects.append({"source": source, "file": inputs[file]["path"], "record": record, "line": record + 1,
                                "reason": "json_syntax", "detail": "not JSON", "raw": "{broken"})  # fmt: skip
                continue
            lines.append({"source": source, "file": file, "record": record, **_removal(fate)})
        if source == "medical":
            raw = base64.b64encode(b"\xff").decode()
            rejects[0] |= {"raw": raw, "raw_encoding": "base64"}
        pq.write_table(pa.Table.from_pylist(lines, _REMOVED), out / f"removed/{source}.parquet")
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rejects)
        (out / f"rejects/{source}.jsonl").write_text(text, encoding="utf-8")


def _removal(fate: str) -> dict[str, Any]:
    keeper = {"kept_source": "general", "kept_file": 0, "kept_record": 12}
    if fate == "cleaned":
        return {"fate": "cleaned", "reason": "length"}
    if fate == "dropped":
        return {"fate": "dropped", "reason": "overlong"}
    if fate in ("unused", "max_records"):
        return {"fate": "unused", "reason": "not_needed" if fate == "unused" else fate}
    return {"fate": "removed", "reason": fate, **keeper, "similarity": 1.0 if fate == "exact" else 0.875}


def _manifest(
    out: Path,
    kind: str,
    pack: str,
    inputs: list[dict[str, Any]],
    fates: dict[tuple[int, int], str],
    mixed: Any,
) -> dict[str, Any]:
    rows, order, unit, bound, worst = mixed
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.parent.name != "tokenizer")
    amounts = {s: _amounts([r for r in order if r[0].source == s], kind, pack) for s in ASKED}
    total = {u: sum(a[u] for a in amounts.values()) for u in ("rows", "records", "tokens", "loss_tokens")}
    available = {s: _amounts(rows[s], kind, pack) for s in ASKED}
    body = (out / "tokenizer/tokenizer.json").read_bytes()
    recipe = Recipe.model_validate({
        "name": "handmade", "kind": kind, "seed": 42, "tokenizer": "tokenizer",
        "sources": {s: {"path": [i["path"] for i in inputs if i["source"] == s], "weight": ASKED[s]} for s in ASKED},
        "clean": [{"length": {"min_chars": 2}}], "dedupe": {"near": {"threshold": 0.8}}, "validation": {"share": 0.03},
        "encode": {"max_length": None if kind == "prompt" else MAX_LENGTH, "pack": pack, "loss_on": "assistant"},
        "mix": {"unit": unit, "size": max(1, total[unit] if unit != "rows" else 1), "on_short": "shrink"},
    }).published()  # fmt: skip
    sources = {}
    for source in ASKED:
        mine = [f for (file, _), f in fates.items() if inputs[file]["source"] == source]
        sources[source] = {
            **_ledger(mine),
            "truncated": 0,
            "available": available[source],
            "emitted": amounts[source],
            "epochs": amounts[source][unit] / available[source][unit],
            "share": {"asked": ASKED[source], **{u: amounts[source][u] / total[u] if total[u] else 0.0
                                                 for u in ("records", "tokens", "loss_tokens")}},
        }  # fmt: skip
    cut = {(p.file, p.record) for s in ASKED for r in rows[s] for p in r if p.start > 0}
    stage = {
        "name": "main",
        "share": 1.0,
        "size": total[unit],
        "weights": ASKED,
        **{u: total[u] for u in ("rows", "tokens", "loss_tokens")},
    }
    return {
        "datamix_version": "0", "name": "handmade", "kind": kind, "seed": 42, "recipe": recipe, "sample": None,
        "recipe_sha256": digest(recipe), "packages": {"pyarrow": pa.__version__},
        "tokenizer": {"name": "tokenizer", "sha256": hashlib.sha256(body).hexdigest(),
                      "vocab_size": Tokenizer.from_str(body.decode()).get_vocab_size(),
                      "eos_token_id": None, "pad_token_id": None, "chat_template_sha256": None},
        "inputs": inputs, "sources": sources,
        "mixture": {"unit": unit, "bound": bound, "max_prefix_deviation": worst, "binding": None, "stages": [stage]},
        "packing": {"strategy": pack, "max_length": recipe["encode"]["max_length"], "rows": total["rows"],
                    "fill": None if kind == "prompt" else total["tokens"] / (total["rows"] * MAX_LENGTH),
                    "cut_records": len(cut)},
        "outputs": [_output(out, p) for p in files],
        "content_sha256": _content(out),
    }  # fmt: skip


def _ledger(fates: list[str]) -> dict[str, Any]:
    count = fates.count
    removed = {r: count(r) for r in ("exact", "near", "contaminated", "leaked")}
    records = {
        "read": len(fates), "rejected": count("rejected"), "cleaned": count("cleaned"), "removed": sum(removed.values()),
        "dropped": count("dropped"), "validation": count("validation"), "used": count("used"),
        "unused": count("unused") + count("max_records"),
    }  # fmt: skip
    return {
        "records": records,
        "rejected_by": {"json_syntax": records["rejected"]},
        "cleaned_by": {"length": records["cleaned"]},
        "removed_by": removed,
        "dropped_by": {"overlong": records["dropped"]},
        "unused_by": {"not_needed": count("unused"), "max_records": count("max_records")},
    }


def _amounts(rows: list[list[Piece]], kind: str, pack: str) -> dict[str, int]:
    loss = 0
    for row in rows:
        if kind == "preference":
            loss += sum(len(p.ids) - len(p.parts["prompt_ids"]) for p in row)
        elif kind == "prompt":
            loss += sum(len(p.ids) for p in row)
        else:
            loss += sum(sum(p.trained) - (pack == "best_fit" and p.trained[0]) for p in row if p.trained)
    pieces = [p for row in rows for p in row]
    return {
        "rows": len(rows),
        "records": len(pieces),
        "tokens": sum(len(p.ids) for p in pieces),
        "loss_tokens": loss,
    }


def _output(out: Path, path: Path) -> dict[str, Any]:
    body, name = path.read_bytes(), path.relative_to(out).as_posix()
    rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else body.count(b"\n")
    split = name.split("/")[0]
    return {"path": name, "format": path.suffix[1:], "split": split, "rows": rows, "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "keeps": ["ratio", "order", "isolation"] if split == "train" else []}  # fmt: skip


def content_digest(batches: Iterable[pa.RecordBatch]) -> str:
    content = ContentDigest()
    for batch in batches:
        content.update(batch)
    return content.hexdigest()


def _content(out: Path) -> str:
    paths = sorted((out / "train").glob("*.parquet"))
    return files_digest(content_digest(pq.ParquetFile(p).iter_batches(batch_size=5)) for p in paths)
