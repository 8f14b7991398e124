"""Losses by source while a tiny model trains by transformers' ``Trainer``: against losses worked out row by row, resumed, proposed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small import recipe

import datamix
from datamix.core.errors import DataError, RecipeError
from datamix.core.losses import Loss, loss_line, read_losses

torch = pytest.importorskip(
    "torch", reason="torch is not installed (extra `torch`; `make test-torch` has it)"
)
transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
pytest.importorskip("accelerate", reason="accelerate is not installed here (`make test-torch` has it)")
datasets = pytest.importorskip("datasets", reason="datasets is not installed here")

pytestmark = pytest.mark.filterwarnings("ignore")


def built(tmp_path: Path, pack: str = "none", **changes: Any) -> Path:
    path = recipe(
        tmp_path,
        encode={"max_length": 128, "pack": pack},
        mix={"unit": "records", "size": 120} if pack == "none" else None,
        write=["parquet"],
        **changes,
    )
    datamix.build(path, tmp_path / "set", cache=tmp_path / "cache", workers=1)
    return tmp_path / "set"


def model(vocab_size: int) -> Any:
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, attention_dropout=0.5,
        )
    )  # fmt: skip


def train(out: Path, trained: Any, callback: Any, max_steps: int, **arguments: Any) -> Any:
    rows = datasets.load_dataset("parquet", data_files=str(out / "train/*.parquet"), split="train")
    given = {"per_device_train_batch_size": 1 if "position_ids" in rows.column_names else 4, **arguments}
    trainer = transformers.Trainer(
        model=trained,
        args=transformers.TrainingArguments(
            output_dir=str(out.parent / "run"), max_steps=max_steps, use_cpu=True, report_to="none", save_steps=4,
            disable_tqdm=True, train_sampling_strategy="sequential", learning_rate=1e-2, **given,
        ),
        train_dataset=rows,
        data_collator=transformers.DataCollatorForSeq2Seq(transformers.AutoTokenizer.from_pretrained(out / "tokenizer")),
        callbacks=[callback],
    )  # fmt: skip
    return trainer


def alone(trained: Any, rows: Any, places: Sequence[int]) -> float:
    """Mean loss over the trained tokens of some rows, each row given to the model alone, documents of packed rows too."""
    total, count = 0.0, 0
    trained.eval()
    for place in places:
        row = rows[place]
        lengths = row["seq_lengths"].tolist() if "seq_lengths" in row else [len(row["input_ids"])]
        start = 0
        for length in lengths:
            ids = torch.tensor(row["input_ids"][start : start + length])[None].long()
            labels = torch.tensor(row["labels"][start : start + length]).long()
            with torch.no_grad():
                logs = trained(input_ids=ids).logits[0].double().log_softmax(-1)
            for at in range(1, length):
                if labels[at] != -100:
                    total, count = total - float(logs[at - 1, labels[at]]), count + 1
            start += length
    return total / count


@pytest.mark.parametrize("pack", ["none", "best_fit"])
def test_losses_are_those_of_rows_given_to_the_model_one_by_one(tmp_path: Path, pack: str) -> None:
    out = built(tmp_path, pack)
    manifest = json.loads((out / "manifest.json").read_text())
    trained = model(manifest["tokenizer"]["vocab_size"])
    held_out = {s: datamix.open(out, f"validation/{s}") for s in ("general", "medical")}
    rows = datamix.open(out)
    start = {source: alone(trained, held, range(len(held))) for source, held in held_out.items()}
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    train(out, trained, datamix.LossCallback(out, every=3), 5).train()
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "losses.jsonl"} == before
    curves = read_losses(out / "losses.jsonl")
    assert {key: [loss.step for loss in losses] for key, losses in curves.items()} == {
        (source, split): [0, 3, 5]
        for source in ("general", "medical", None)
        for split in ("validation", "train")
    }
    for source in ("general", "medical"):
        first, last = curves[source, "validation"][0], curves[source, "validation"][-1]
        assert math.isclose(first.loss, start[source], rel_tol=1e-5)
        assert math.isclose(
            last.loss, alone(trained, held_out[source], range(len(held_out[source]))), rel_tol=1e-5
        )
        first_rows = [p for p in range(len(rows)) if rows.source_of(p) == source][: len(held_out[source])]
        assert math.isclose(curves[source, "train"][-1].loss, alone(trained, rows, first_rows), rel_tol=1e-5)
    counts = {s: sum(int((row["labels"][1:] != -100).sum()) for row in h) for s, h in held_out.items()}
    ends = {source: curves[source, "validation"][-1].loss for source in counts}
    whole = sum(ends[s] * counts[s] for s in counts) / sum(counts.values())
    assert math.isclose(curves[None, "validation"][-1].loss, whole, rel_tol=1e-6)
    per_step = 1 if pack == "best_fit" else 4
    seen = [sum(len(rows[place]["input_ids"]) for place in range(steps * per_step)) for steps in (0, 3, 5)]
    assert [loss.tokens for loss in curves[None, "train"]] == seen


def test_a_run_that_resumes_measures_no_start_and_goes_on_in_its_file(tmp_path: Path) -> None:
    out = built(tmp_path)
    manifest = json.loads((out / "manifest.json").read_text())
    trained = model(manifest["tokenizer"]["vocab_size"])
    train(out, trained, datamix.LossCallback(out, every=2), 6).train()
    first = (out / "losses.jsonl").read_text()
    callback = datamix.LossCallback(out, every=2)
    train(out, trained, callback, 8).train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-4"))
    whole = (out / "losses.jsonl").read_text()
    assert whole.startswith(first)
    added = [json.loads(line) for line in whole[len(first) :].splitlines()]
    assert sorted({line["step"] for line in added}) == [6, 8]
    curves = read_losses(out / "losses.jsonl")
    assert [loss.step for loss in curves["general", "validation"]] == [0, 2, 4, 6, 8]


def test_training_goes_on_as_if_nothing_was_measured(tmp_path: Path) -> None:
    out = built(tmp_path)
    vocab_size = json.loads((out / "manifest.json").read_text())["tokenizer"]["vocab_size"]
    weights = []
    for callback in (datamix.LossCallback(out, every=1), transformers.TrainerCallback()):
        trained = model(vocab_size)
        train(out, trained, callback, 4).train()
        weights.append([value.clone() for value in trained.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_what_is_forgotten_is_proposed_more_weight_and_the_change_can_be_passed_on(tmp_path: Path) -> None:
    out = built(tmp_path)
    vocab_size = json.loads((out / "manifest.json").read_text())["tokenizer"]["vocab_size"]
    callback = datamix.LossCallback(out, every=5)
    train(out, model(vocab_size), callback, 5).train()
    assert callback.propose() is None  # everything got better
    with (out / "losses.jsonl").open("a") as file:
        file.write(loss_line(Loss(0, 0, "general", "validation", 0.5)))  # as if the start had been better
    proposal = callback.propose()
    assert proposal is not None
    assert proposal.change["row"] == 20
    assert proposal.change["weights"] == pytest.approx({"general": 0.75, "medical": 0.25})
    assert proposal.because.startswith("general: its validation loss is")
    assert "from row 20 on its weight is 75.0% instead of 70.0%" in proposal.because
    changed = datamix.open(out, cache=tmp_path / "cache", changes=[proposal.change])
    general = [changed.source_of(place) == "general" for place in range(20, 120)]
    assert abs(sum(general) - 75) <= 1
    assert changed.torch(4).state_dict()["changes"][0]["weights"] == proposal.change["weights"]


def test_a_set_without_validation_and_rows_without_labels_are_refused(tmp_path: Path) -> None:
    out = built(tmp_path, validation=None)
    with pytest.raises(RecipeError, match="holds no validation rows"):
        datamix.LossCallback(out)
    with pytest.raises(RecipeError, match="every=0"):
        datamix.LossCallback(out, every=0)
    with pytest.raises(DataError, match="is not there"):
        datamix.LossCallback(tmp_path / "none")
