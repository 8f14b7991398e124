"""ms-swift trains from our folder: the words that reach the model are our records', in our order, none left out."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("swift", reason="needs tests/trainers/requirements-swift.txt")

CPU = ("--model_type", "qwen2", "--template", "chatml", "--agent_template", "hermes", "--tuner_type", "full")
CPU = (*CPU, "--gradient_accumulation_steps", "1", "--save_strategy", "no", "--output_dir", "output")


@pytest.fixture
def run(make_set, tiny_model, train):
    """``run("sft", "swift sft ", 8)`` -> our records, what every step was given, the model's folder."""

    def make(name, starts, batch, *more):
        out = make_set(name, "ms-swift")
        model = tiny_model(out)
        seen = train(
            out / "ms-swift", model, starts, *CPU, "--per_device_train_batch_size", str(batch), *more
        )
        files = sorted((out / "ms-swift/train").glob("*.jsonl"))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()], seen, model

    return make


def said(model, seen):
    """The texts that reached the model, in order."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(model)
    for given in seen:
        for ids, mask in zip(given["input_ids"], given["attention_mask"], strict=True):
            yield words.decode(ids[mask == 1])


def test_every_conversation_reaches_the_model_in_our_order(run):
    records, seen, model = run("sft", "swift sft ", 8)
    texts = list(said(model, seen))
    assert len(texts) == len(records)
    for text, record in zip(texts, records, strict=True):
        assert record["messages"][-1]["content"].strip()[-40:] in text
        if not record.get("tools"):
            assert sum(turn["content"].strip()[-40:] in text for turn in record["messages"]) == len(
                record["messages"]
            )


def test_documents_reach_the_model_in_our_order(run):
    records, seen, model = run("pretrain", "swift pt ", 4, "--max_steps", "3")
    texts = said(model, seen)
    for record, _ in zip(records, range(8), strict=False):  # a long one is split over several rows
        text = next(texts)
        assert text.strip()[:20] in record["messages"][0]["content"]
        while record["messages"][0]["content"].strip()[-10:] not in text:
            text = next(texts)


def test_pairs_reach_the_model_in_our_order(run):
    records, seen, model = run("preference", "swift rlhf --rlhf_type dpo ", 2, "--max_steps", "2")
    for step, given in enumerate(seen):
        pairs = records[2 * step : 2 * step + 2]
        sides = [pair[side] for side in ("messages", "rejected_messages") for pair in pairs]
        for turns, text in zip(sides, said(model, [given]), strict=True):
            assert turns[-1]["content"].strip()[-40:] in text
