"""Scores of models that run here, against losses of records given to the model one by one (`make test-torch`)."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from small import TOKENIZER, recipe, write_jsonl

import datamix
from datamix.core.errors import RecipeError
from datamix.jobs.score import score
from datamix.pipeline.steps import Options

torch = pytest.importorskip(
    "torch", reason="torch is not installed (extra `torch`; `make test-torch` has it)"
)
transformers = pytest.importorskip("transformers", reason="transformers is not installed here")

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def saved(model: Any, folder: Path) -> Path:
    shutil.copytree(TOKENIZER, folder)
    model.save_pretrained(folder)
    return folder


def causal(folder: Path, vocab_size: int) -> tuple[Any, Path]:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(vocab_size=vocab_size, num_key_value_heads=1, **SIZES)
    model = transformers.Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for weights in model.parameters():  # away from the uniform answer of a new model
            weights.mul_(8)
    return model, saved(model, folder)


def alone(model: Any, ids: list[int], trained: list[bool]) -> float:
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    losses = [-float(logs[at - 1, ids[at]]) for at in range(1, len(ids)) if trained[at]]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("by", ["nll", "ifd"])
def test_scores_are_those_of_records_given_to_the_model_one_by_one(tmp_path: Path, by: str) -> None:
    path = recipe(
        tmp_path, clean=None, dedupe=None, validation=None, encode={"max_length": 4096, "pack": "none"}
    )
    datamix.build(path, tmp_path / "out", workers=1)
    rows = datamix.open(tmp_path / "out")
    model, folder = causal(tmp_path / "model", rows.manifest["tokenizer"]["vocab_size"])
    options = Options(tmp_path / "s.parquet", tmp_path / ".datamix", 1)
    score(str(path), f"{by}:{folder}", tmp_path / "s.parquet", options)
    lines = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert len(lines) == 500
    scores = {(line["source"], line["record"]): line["score"] for line in lines}
    for row in list(rows)[:60]:
        ids, trained = row["input_ids"].tolist(), (row["labels"] != -100).tolist()
        expected = alone(model, ids, trained)
        if by == "ifd":
            answer = [token for token, is_trained in zip(ids, trained, strict=True) if is_trained]
            expected /= alone(model, answer, [True] * len(answer))
        assert math.isclose(scores[row["source"], row["records"][0]["record"]], expected, rel_tol=1e-4)
    other = tmp_path / "again.parquet"
    score(str(path), f"{by}:{folder}", other, options)  # every part is in the cache
    assert other.read_bytes() == (tmp_path / "s.parquet").read_bytes()


def test_plain_texts_count_every_token_but_the_first(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = write_jsonl(
        tmp_path / "pages.jsonl", [{"text": f"感冒了要吃药吗 page {i} fever"} for i in range(70)]
    )
    vocab_size = len(AutoTokenizer.from_pretrained(TOKENIZER))
    model, folder = causal(tmp_path / "model", vocab_size)
    options = Options(tmp_path / "s.parquet", tmp_path / ".datamix", 1)
    score(str(path), f"nll:{folder}", tmp_path / "s.parquet", options)
    lines = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert [line["record"] for line in lines] == list(range(70))
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    ids = [
        *tokenizer("感冒了要吃药吗 page 3 fever", add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert math.isclose(lines[3]["score"], alone(model, ids, [True] * len(ids)), rel_tol=1e-4)


def test_a_classifier_scores_by_its_label_or_its_single_output(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    texts = [f"感冒了要吃药吗 page {i} fever" for i in range(40)]
    path = write_jsonl(tmp_path / "pages.jsonl", [{"text": text} for text in texts])
    options = Options(tmp_path / "s.parquet", tmp_path / ".datamix", 1)
    for count, label in ((1, None), (3, "LABEL_2"), (3, None)):
        torch.manual_seed(count)
        config = transformers.Qwen2Config(
            vocab_size=len(tokenizer), num_key_value_heads=1, num_labels=count,
            pad_token_id=tokenizer.pad_token_id, **SIZES,
        )  # fmt: skip
        model = transformers.Qwen2ForSequenceClassification(config).eval()
        folder = saved(model, tmp_path / f"model-{count}-{label}")
        score(
            str(path),
            f"classifier:{folder}" + (f"#{label}" if label else ""),
            tmp_path / "s.parquet",
            options,
        )
        lines = pq.read_table(tmp_path / "s.parquet").to_pylist()
        with torch.no_grad():
            given = tokenizer([texts[7]], return_tensors="pt")
            logits = model(input_ids=given["input_ids"]).logits[0].double()
        weights = {None: np.array([0, 1, 2]), "LABEL_2": np.array([0, 0, 1])}[label]
        expected = float(logits[0]) if count == 1 else float(logits.softmax(-1).numpy() @ weights)
        assert math.isclose(lines[7]["score"], expected, rel_tol=1e-4, abs_tol=1e-6)
    with pytest.raises(RecipeError, match="no label 'hq'"):
        score(str(path), f"classifier:{folder}#hq", tmp_path / "s.parquet", options)
    shutil.copytree(TOKENIZER, tmp_path / "empty")
    with pytest.raises(RecipeError, match="the model cannot be loaded"):
        score(str(path), f"nll:{tmp_path / 'empty'}", tmp_path / "s.parquet", options)
