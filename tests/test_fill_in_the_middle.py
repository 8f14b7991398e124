"""``encode.fim`` from recipe to rows."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from encode_tokenizers import byte_level, save
from small import write_jsonl
from tokenizers import Tokenizer

from datamix.audit import verify
from datamix.core.errors import RecipeError
from datamix.jobs.build import build
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe

NAMES = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


def recipe(folder: Path, **changes: object) -> Recipe:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|endoftext|>", *NAMES])
    save(tokenizer, folder / "tokenizer", None, {"eos_token": "<|endoftext|>"})
    write_jsonl(folder / "code.jsonl", [{"text": f"def f_{i}(x):\n    return x + {i}\n"} for i in range(200)])
    value = {
        "name": "code",
        "kind": "pretrain",
        "tokenizer": "tokenizer",
        "sources": {"code": {"path": "code.jsonl"}},
        "encode": {"max_length": 64, "pack": "none", "fim": {"rate": 0.5}},
        **changes,
    }
    return Recipe.of(value, folder)


def test_half_of_the_documents_are_cut_and_every_one_can_be_put_together_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(recipe(tmp_path), Options(out, tmp_path / "cache", workers=1))
    assert [check.name for check in verify(out) if not check.ok] == []
    decoder = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    found, num_cut = set(), 0
    for ids in pq.read_table(out / "train")["input_ids"].to_pylist():
        text = decoder.decode(ids, skip_special_tokens=False).removesuffix("<|endoftext|>")
        if text.startswith(NAMES[0]):
            prefix, rest = text.removeprefix(NAMES[0]).split(NAMES[1])
            suffix, middle = rest.split(NAMES[2])
            text = prefix + middle + suffix
            num_cut += 1
        found.add(text)
    assert found == {f"def f_{i}(x):\n    return x + {i}\n" for i in range(200)}
    assert 80 < num_cut < 120


def test_conversations_are_not_cut(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"encode\.fim.*leave it out"):
        recipe(tmp_path, kind="sft")
