"""LLaMA-Factory trains two steps from our folder: what reaches the model is what stands in the set, in our order."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("llamafactory", reason="needs tests/trainers/requirements-llamafactory.txt")

CPU = (
    "max_steps=2",
    "per_device_train_batch_size=2",
    "gradient_accumulation_steps=1",
    "use_cpu=true",
    "report_to=none",
)


@pytest.fixture
def run(make_set, rows, tiny_model, train):
    """``run("sft", "sft.yaml", "encode.pack=none")`` -> the set's rows, what reached the model, the model's folder."""

    def make(name, config, *changes, more=()):
        out = make_set(name, "llamafactory", *changes)
        model = tiny_model(out)
        seen = train(out / "llamafactory", model, f"llamafactory-cli train {config} ", *CPU, *more)
        assert len(seen) == 2
        return rows(out), seen, model

    return make


def inside(given, name, i):
    """Row ``i`` of a tensor without its padding."""
    return given[name][i][given["attention_mask"][i] == 1].tolist()


def test_sft_rows_reach_the_model(run):
    wanted, seen, _ = run("sft", "sft.yaml", "encode.pack=none")
    for place, row in enumerate(wanted[:4]):
        given, i = seen[place // 2], place % 2
        assert inside(given, "input_ids", i) == row["input_ids"]
        assert inside(given, "labels", i) == row["labels"]
        assert (given["labels"][i] != -100).sum() == sum(label != -100 for label in row["labels"])


def test_pretraining_rows_reach_the_model(run):
    wanted, seen, _ = run("pretrain", "pt.yaml", "encode.pack=none")
    for place, row in enumerate(wanted[:4]):
        given, i = seen[place // 2], place % 2
        assert inside(given, "input_ids", i) == row["input_ids"]
        assert inside(given, "labels", i) == row["labels"]


@pytest.mark.parametrize("name", ["sft", "pretrain"])
@pytest.mark.parametrize("attention", ["sdpa", "disabled"])
def test_packed_documents_have_the_logits_they_have_alone(run, alone_equal, name, attention):
    wanted, seen, model = run(name, "sft.yaml", more=(f"flash_attn={attention}",))
    for place, row in enumerate(wanted[:4]):
        given, i = seen[place // 2], place % 2
        length = len(row["input_ids"])
        for column in ("input_ids", "labels", "position_ids"):
            assert given[column][i, :length].tolist() == row[column]
        assert set(given["labels"][i, length:].tolist()) <= {-100}
    alone_equal(model, seen[0], [row["seq_lengths"] for row in wanted[:2]])


@pytest.mark.parametrize("stage", ["dpo", "rm"])
def test_pairs_reach_the_model(run, stage):
    wanted, seen, _ = run("preference", f"{stage}.yaml")
    for step, given in enumerate(seen):
        pair = wanted[2 * step : 2 * step + 2]
        sides = [(row, side) for side in ("chosen", "rejected") for row in pair]
        for i, (row, side) in enumerate(sides):
            answer = row[f"{side}_completion_ids"]
            assert inside(given, "input_ids", i) == row["prompt_ids"] + answer
            if "labels" in given:
                assert inside(given, "labels", i) == [-100] * len(row["prompt_ids"]) + answer


def test_labelled_completions_reach_the_model(run):
    wanted, seen, _ = run("kto", "kto.yaml")
    for place, row in enumerate(wanted[:4]):
        assert inside(seen[place // 2], "input_ids", place % 2) == row["prompt_ids"] + row["completion_ids"]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sft", "sft_text.yaml"),
        ("pretrain", "pt_text.yaml"),
        ("preference", "dpo_text.yaml"),
        ("kto", "kto_text.yaml"),
    ],
)
def test_text_is_read_by_its_own_templates(make_set, tiny_model, train, name, config):
    from transformers import AutoTokenizer

    out = make_set(name, "llamafactory", *(["encode.pack=none"] if name in ("sft", "pretrain") else []))
    model, folder = tiny_model(out), out / "llamafactory"
    seen = train(folder, model, f"llamafactory-cli train {config} ", *CPU)
    first = json.loads(sorted(folder.glob("text/train/*.jsonl"))[0].read_text().splitlines()[0])
    said = first["text"] if "text" in first else first["conversations"][-1]["value"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(said[:40], add_special_tokens=False)["input_ids"][1:8]
    given = seen[0]["input_ids"][0].tolist()
    assert any(given[i : i + len(ids)] == ids for i in range(len(given)))
