"""Text that a build exports is the text of its rows: pieces of cut documents, messages that fit, calls and tools."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from small import TOKENIZER, datamix, write_jsonl
from transformers import PreTrainedTokenizerFast

datasets.disable_progress_bars()
Row = dict[str, Any]


def build(folder: Path, rows: dict[str, list[Row]], **recipe: Any) -> Path:
    """A set of ``rows`` by source."""
    for name, values in rows.items():
        write_jsonl(folder / f"{name}.jsonl", values)
    sources = {name: {"path": f"{name}.jsonl"} | recipe.pop(name, {}) for name in rows}
    value = {"name": "set", "tokenizer": str(TOKENIZER), "sources": sources, **recipe}
    (folder / "recipe.yaml").write_text(json.dumps(value, ensure_ascii=False))
    run = datamix("build", folder / "recipe.yaml", "-o", folder / "out", "--cache", folder / ".cache")
    assert run.returncode == 0, run.stderr
    checked = datamix("verify", folder / "out")
    assert checked.returncode == 0, checked.stdout
    return folder / "out"


def rows_of(out: Path) -> list[Row]:
    return [row for path in sorted(out.glob("train/*.parquet")) for row in pq.read_table(path).to_pylist()]


def lines(out: Path, pattern: str) -> list[Row]:
    return [json.loads(line) for path in sorted(out.glob(pattern)) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(TOKENIZER)


def rendered(
    tokenizer: PreTrainedTokenizerFast, messages: list[Row], tools: Any = None, prompt: bool = False
) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def document(number: int, words: int) -> str:
    return " ".join(f"第{number}章 word{number * 7 + i} 😀" for i in range(words)) + "。"


@pytest.fixture(scope="module")
def cut_documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long documents used in part beside short ones, half and half by tokens."""
    folder = tmp_path_factory.mktemp("cut")
    rows = {
        "long": [{"text": document(i, 300)} for i in range(6)],
        "short": [{"text": document(100 + i, 3 + i % 5)} for i in range(200)],
    }
    return build(
        folder,
        rows,
        kind="pretrain",
        long={"weight": 0.5},
        short={"weight": 0.5},
        encode={"max_length": 256, "pack": "best_fit"},
        mix={"unit": "tokens", "size": 6000},
        validation={"records": 1},
        write=["parquet", "medicalgpt", "nanochat", "ms-swift", "llamafactory", "megatron"],
    )


def texts(out: Path, name: str) -> list[str]:
    if name == "nanochat":
        return [
            text
            for path in sorted(out.glob("nanochat/shard_0*.parquet"))
            for text in pq.read_table(path)["text"].to_pylist()
        ]
    below = "llamafactory/text" if name == "llamafactory" else name
    found = lines(out, f"{below}/train/*.jsonl")
    return [line.get("text") or line["messages"][0]["content"] for line in found]


@pytest.mark.parametrize("name", ["medicalgpt", "nanochat", "ms-swift", "llamafactory"])
def test_a_text_folder_holds_the_text_of_exactly_the_pieces(
    cut_documents: Path, tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    written = texts(cut_documents, name)
    pieces = []
    for row in rows_of(cut_documents):
        ends = np.cumsum([0, *row["seq_lengths"]]).tolist()
        pieces += [
            (row["source"], piece, row["input_ids"][a:b])
            for piece, (a, b) in zip(row["records"], pairwise(ends), strict=True)
        ]
    assert any(piece["start"] for _, piece, _ in pieces)
    assert len(written) == len(pieces)
    counts: Counter[str] = Counter()
    for text, (source, _, ids) in zip(written, pieces, strict=True):
        counts[source] += len(tokenizer(text, add_special_tokens=False)["input_ids"])
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        assert text.strip("�") in decoded or decoded.strip("�") in text  # a character may lie across a border
    assert abs(counts["long"] / counts.total() - 0.5) < 0.02
    whole: dict[tuple[int, int], dict[int, str]] = {}
    for text, (_, piece, _) in zip(written, pieces, strict=True):
        whole.setdefault((piece["file"], piece["record"]), {})[piece["start"]] = text
    originals = {
        json.loads(line)["text"]
        for p in cut_documents.parent.glob("*.jsonl")
        for line in p.read_text().splitlines()
    }
    for parts in whole.values():
        joined = "".join(parts[start] for start in sorted(parts))
        assert any(joined in original or joined == original for original in originals) or len(parts) > 1


def test_an_export_from_the_cache_has_the_bytes_of_the_build(cut_documents: Path) -> None:
    before = texts(cut_documents, "medicalgpt")
    run = datamix("export", cut_documents, "--to", "medicalgpt", "--cache", cut_documents.parent / ".cache")
    assert run.returncode == 0, run.stderr
    assert texts(cut_documents, "medicalgpt") == before


def talk(number: int, turns: int) -> list[Row]:
    talk: list[Row] = [{"role": "system", "content": "Be kind."}]
    for i in range(turns):
        talk += [
            {"role": "user", "content": f"question {number} {i} " * (4 + i)},
            {"role": "assistant", "content": f"answer {number} {i}."},
        ]
    return talk


@pytest.mark.parametrize("labelled", [False, True])
def test_messages_of_pairs_that_were_cut_render_to_the_ids_of_their_rows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, labelled: bool
) -> None:
    rows: list[Row] = []
    for i in range(12):
        prompt = talk(i, 1 + i % 6)[:-1]
        chosen, rejected = ([{"role": "assistant", "content": f"{word} {i}."}] for word in ("yes", "no"))
        row = (
            {"completion": chosen, "label": bool(i % 2)}
            if labelled
            else {"chosen": chosen, "rejected": rejected}
        )
        rows.append({"prompt": prompt, **row})
    out = build(tmp_path, {"a": rows}, kind="preference", encode={"max_length": 90}, write=["parquet", "trl"])
    loaded = datasets.load_dataset(
        "parquet", data_files=str(out / "trl/train/*.parquet"), split="train", cache_dir=str(tmp_path)
    )
    answers = ("completion",) if labelled else ("chosen", "rejected")
    num_cut = 0
    for row, example in zip(rows_of(out), loaded, strict=True):
        assert rendered(tokenizer, example["prompt"], prompt=True) == row["prompt_ids"]
        for name in answers:
            ids = row["prompt_ids"] + row["completion_ids" if labelled else f"{name}_completion_ids"]
            assert len(ids) <= 90
            assert rendered(tokenizer, example["prompt"] + example[name])[: len(ids)] == ids
        num_cut += len(example["prompt"]) < len(rows[row["records"][0]["record"]]["prompt"])
    assert num_cut


def test_conversations_that_were_cut_are_exported_as_they_are_trained(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"messages": talk(i, 1 + i % 6)} for i in range(12)]
    out = build(
        tmp_path,
        {"a": rows},
        kind="sft",
        encode={"max_length": 90, "overlong": "drop_turns"},
        write=["parquet", "openai", "llamafactory", "medicalgpt", "ms-swift"],
    )
    rows_written = rows_of(out)
    for row, example in zip(rows_written, lines(out, "openai/train/*.jsonl"), strict=True):
        assert rendered(tokenizer, example["messages"])[: len(row["input_ids"])] == row["input_ids"]
    num_turns = [len(example["messages"]) for example in lines(out, "openai/train/*.jsonl")]
    assert max(num_turns) < 13
    for pattern in ("llamafactory/text/train/*.jsonl", "medicalgpt/train/*.jsonl"):
        assert [len(line["conversations"]) for line in lines(out, pattern)] == num_turns
    assert [len(line["messages"]) for line in lines(out, "ms-swift/train/*.jsonl")] == num_turns


CALL = [{"id": "c1", "type": "function", "function": {"name": "price", "arguments": {"of": "ABC"}}}]
TOOLS = [
    {"type": "function", "function": {"name": "price", "parameters": {"type": "object", "properties": {}}}}
]


def test_rows_of_pairs_hold_calls_and_tools_where_a_set_has_them(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "price of ABC?"}]
    rows = [
        {
            "prompt": asked,
            "tools": TOOLS,
            "chosen": [{"role": "assistant", "tool_calls": CALL}],
            "rejected": "I do not know.",
        },
        {"prompt": "hello", "chosen": "hi", "rejected": "no"},
    ]
    out = build(
        tmp_path, {"a": rows}, kind="preference", encode={"max_length": 999}, write=["parquet", "jsonl"]
    )
    first, second = sorted(rows_of(out), key=lambda row: row["records"][0]["record"])
    assert json.loads(first["chosen"][0]["tool_calls"]) == CALL
    assert json.loads(first["tools"]) == TOOLS
    assert second["chosen"][0]["content"] == "hi"
    assert second["tools"] is second["chosen"][0]["tool_calls"] is None
    assert {row["chosen"][0]["tool_calls"] for row in lines(out, "jsonl/train/*.jsonl")} == {
        None,
        first["chosen"][0]["tool_calls"],
    }


def test_rows_of_plain_pairs_keep_their_two_fields(tmp_path: Path) -> None:
    out = build(
        tmp_path,
        {"a": [{"prompt": "hello", "chosen": "hi", "rejected": "no"}]},
        kind="preference",
        encode={"max_length": 99},
    )
    (row,) = rows_of(out)
    assert "tools" not in row
    assert row["prompt"] == [{"role": "user", "content": "hello"}]


def test_prompts_of_conversations_end_before_their_last_answer(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    out = build(
        tmp_path,
        {"a": [{"messages": talk(i, 2)} for i in range(4)]},
        kind="prompt",
        write=["parquet", "openrlhf"],
    )
    for row, line in zip(rows_of(out), lines(out, "openrlhf/train/*.jsonl"), strict=True):
        assert rendered(tokenizer, line["prompt"], prompt=True) == row["prompt_ids"]
        assert [turn["role"] for turn in row["prompt"]] == ["system", "user", "assistant", "user"]


def test_fields_for_verifiers_reach_the_folders_without_being_named(tmp_path: Path) -> None:
    row = {
        "prompt": "2 + 2?",
        "answer": "4",
        "data_source": "sums",
        "verifier": "math",
        "env": {"env_name": "none"},
    }
    steps = {"prompt": "3?", "completions": ["one", "two"], "labels": [True, False]}
    context = {"prompt": "4?", "privileged_context": "it is even"}
    out = build(
        tmp_path,
        {"a": [row, steps, context]},
        kind="prompt",
        write=["parquet", "trl", "verl", "openrlhf", "open-instruct"],
    )
    examples = {line["prompt"][0]["content"]: line for line in lines(out, "openrlhf/train/*.jsonl")}
    assert examples["2 + 2?"]["datasource"] == "sums"
    assert examples["2 + 2?"]["verifier"] == "math"
    assert examples["3?"]["datasource"] == "a"
    table = pq.read_table(out / "trl/steps/train/00000.parquet").to_pylist()
    assert table == [{"prompt": "3?", "completions": ["one", "two"], "labels": [True, False]}]
    contexts = pq.read_table(out / "trl/train/00000.parquet")["privileged_context"].to_pylist()
    assert sorted(filter(None, contexts)) == ["it is even"]


@pytest.mark.parametrize("pack", ["none", "concat"])
def test_pieces_of_every_packing_are_stretches_of_their_documents(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, pack: str
) -> None:
    documents = [{"text": document(i, 5 + 31 * (i % 4))} for i in range(12)]
    out = build(
        tmp_path,
        {"a": documents},
        kind="pretrain",
        encode={"max_length": 64, "pack": pack},
        mix={"unit": "tokens", "size": 4000},
        write=["parquet", "medicalgpt"],
    )
    written = iter(texts(out, "medicalgpt"))
    stretches: dict[int, dict[int, str]] = {}
    for row in rows_of(out):
        ends = np.cumsum([0, *(piece["length"] for piece in row["records"])]).tolist()
        for piece, (a, b) in zip(row["records"], pairwise(ends), strict=True):
            if tokenizer.decode(row["input_ids"][a:b], skip_special_tokens=True):  # not an end token alone
                stretches.setdefault(piece["record"], {})[piece["start"]] = next(written)
    assert next(written, None) is None
    assert any(min(parts) for parts in stretches.values()) or any(
        len(parts) > 1 for parts in stretches.values()
    )
    for record, parts in stretches.items():
        at = 0
        for start in sorted(parts):
            at = documents[record]["text"].index(parts[start], at) + len(parts[start])


def test_a_folder_that_leaves_records_out_claims_no_ratio_in_the_manifest(tmp_path: Path) -> None:
    flagged = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "WRONG", "weight": 0}]
    rows = [
        {"messages": [*flagged, *talk(i, 1)[1:]]} if i % 3 == 0 else {"messages": talk(i, 1)}
        for i in range(9)
    ]
    out = build(
        tmp_path,
        {"a": rows},
        kind="sft",
        encode={"max_length": 200},
        write=["parquet", "llamafactory", "medicalgpt", "openai"],
    )
    manifest = json.loads((out / "manifest.json").read_text())
    claims = {entry["path"]: entry["keeps"] for entry in manifest["outputs"]}
    assert "ratio" not in claims["medicalgpt/train/00000.jsonl"]
    assert "ratio" not in claims["llamafactory/text/train/00000.jsonl"]
    assert "ratio" in claims["llamafactory/tokenized/train/data-00000.arrow"]
    assert "ratio" in claims["openai/train/00000.jsonl"]
    left = lines(out, "medicalgpt/left_out/train-00000.jsonl")
    assert sorted(line["record"] for line in left) == [0, 3, 6]
    assert not any("WRONG" in path.read_text() for path in out.glob("medicalgpt/train/*"))


@pytest.mark.parametrize("place", ["recipe", "record"])
def test_template_arguments_reach_the_trainer_that_takes_them_and_are_named_to_others(
    tmp_path: Path, place: str
) -> None:
    template = "{% if shout %}LOUD {% endif %}" + (TOKENIZER / "chat_template.jinja").read_text()
    (tmp_path / "loud.jinja").write_text(template)
    row: Row = {"prompt": "hello", "chosen": "hi", "rejected": "no"}
    quiet = row | {"prompt": "bye"}
    given: Row = {"chat_template_kwargs": {"shout": True}} if place == "recipe" else {}
    if place == "record":
        row |= {"chat_template_kwargs": {"shout": True}}
    out = build(
        tmp_path,
        {"a": [row, quiet]},
        kind="preference",
        chat_template=str(tmp_path / "loud.jinja"),
        encode={"max_length": 99},
        write=["parquet", "trl", "axolotl", "ms-swift"],
        **given,
    )
    loaded = datasets.load_dataset(
        "parquet", data_files=str(out / "trl/train/*.parquet"), split="train", cache_dir=str(tmp_path)
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER, chat_template=template)
    for example, ids in zip(loaded, rows_of(out), strict=True):
        text = tokenizer.apply_chat_template(
            example["prompt"], add_generation_prompt=True, tokenize=False, **example["chat_template_kwargs"]
        )
        assert text.startswith("LOUD") is (place == "recipe" or "hello" in text)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids["prompt_ids"]
    for name in ("axolotl", "ms-swift"):
        assert "chat_template_kwargs" in (out / name / "README.md").read_text()


@pytest.mark.parametrize("pack", ["none", "best_fit"])
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_weights_of_turns_are_kept_by_token_and_told_where_a_folder_cannot_hold_them(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, pack: str, loss_on: str
) -> None:
    rows: list[Row] = [
        {
            "messages": [
                {"role": "user", "content": f"q {i}"},
                {"role": "assistant", "content": f"half {i}", "weight": 0.5},
                {"role": "user", "content": "and"},
                {
                    "role": "assistant",
                    "content": f"none {i}",
                    "weight": 0 if loss_on == "assistant" else None,
                },
                {"role": "user", "content": "and"},
                {"role": "assistant", "content": f"twice {i}", "weight": 2},
                {"role": "user", "content": "and"},
                {"role": "assistant", "content": f"whole {i}"},
            ]
        }
        for i in range(4)
    ]
    rows.append({"messages": talk(9, 1)})
    out = build(
        tmp_path,
        {"a": rows},
        kind="sft",
        encode={"max_length": 400, "pack": pack, "loss_on": loss_on},
        write=["parquet", "jsonl", "trl", "openai"],
    )
    seen: Counter[float] = Counter()
    for row in rows_of(out):
        assert len(row["loss_weights"]) == len(row["input_ids"])
        assert all(
            (label == -100) == (weight == 0)
            for label, weight in zip(row["labels"], row["loss_weights"], strict=True)
        )
        for weight, word in ((0.5, "half"), (2.0, "twice"), (1.0, "whole")):
            trained = [i for i, w in zip(row["input_ids"], row["loss_weights"], strict=True) if w == weight]
            text = tokenizer.decode(trained)
            seen[weight] += text.count(word)
            others = {"half", "twice", "whole", "none"} - {
                word,
                "none" if loss_on == "all" and weight == 1 else word,
            }
            assert not any(other in text for other in others)
            if weight != 1 and trained:
                assert text.count("<|im_end|>") == text.count(word)
    assert seen == {0.5: 4, 2.0: 4, 1.0: 4}
    assert {row["loss_weights"] is None for row in lines(out, "jsonl/train/*.jsonl")} == {False}
    assert "cannot hold" in (out / "trl/README.md").read_text()


def test_rows_without_weights_of_turns_have_no_column_for_them(tmp_path: Path) -> None:
    flagged = [
        *talk(1, 1),
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c", "weight": 0},
    ]
    out = build(tmp_path, {"a": [{"messages": flagged}]}, kind="sft", encode={"max_length": 99})
    assert "loss_weights" not in rows_of(out)[0]
