"""`trl` trains two steps from our folder by its command line: what reaches the model is what stands in the set."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("trl", reason="needs tests/trainers/requirements-formats.txt")
if pytest.importorskip("transformers").__version__ < "5.20":
    pytest.skip(
        "another trainer's TRL; needs tests/trainers/requirements-formats.txt", allow_module_level=True
    )

CPU = (
    "--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "true", "--bf16", "false",
    "--report_to", "none", "--save_strategy", "no",
)  # fmt: skip


@pytest.fixture
def run(make_set, rows, tiny_model, train):
    """``run("sft", "sft", "encode.pack=none")`` -> the set's rows, what reached the model, the model's folder."""

    def make(name, trainer, *changes, more=()):
        out = make_set(name, "trl", *changes)
        model = tiny_model(out)
        seen = train(out / "trl", model, f"trl {trainer} ", *CPU, *more)
        assert len(seen) == 2
        return rows(out), seen, model

    return make


@pytest.mark.parametrize("name", ["sft", "pretrain"])
def test_rows_reach_the_model(run, name):
    wanted, seen, _ = run(name, "sft", "encode.pack=none")
    for place, row in enumerate(wanted[:4]):
        given, i, length = seen[place // 2], place % 2, len(row["input_ids"])
        assert given["input_ids"][i, :length].tolist() == row["input_ids"]
        assert given["labels"][i, :length].tolist() == row["labels"]
        assert set(given["labels"][i, length:].tolist()) <= {-100}


@pytest.mark.parametrize("name", ["sft", "pretrain"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_have_the_logits_they_have_alone(run, alone_equal, name, attention):
    wanted, seen, model = run(name, "sft", more=("--attn_implementation", attention))
    for step, given in enumerate(seen):
        pair = wanted[2 * step : 2 * step + 2]
        for column in ("input_ids", "labels", "position_ids"):
            assert given[column][0].tolist() == [value for row in pair for value in row[column]]
    lengths = [[n for row in wanted[:2] for n in row["seq_lengths"]]]
    alone_equal(model, seen[0], lengths, attention)


def test_pairs_reach_the_reward_model(run):
    wanted, seen, _ = run("preference", "reward")
    for step, given in enumerate(seen):
        pair = wanted[2 * step : 2 * step + 2]
        both = [
            row["prompt_ids"] + row[f"{side}_completion_ids"]
            for side in ("chosen", "rejected")
            for row in pair
        ]
        got = [
            ids[mask == 1].tolist()
            for ids, mask in zip(given["input_ids"], given["attention_mask"], strict=True)
        ]
        assert got == both


def test_grpo_asks_our_prompts_in_our_order(make_set, rows, tiny_model, train):
    out = make_set("prompt", "trl")
    model = tiny_model(out)
    (out / "trl/rewards.py").write_text(
        "import json\n\n\ndef score(completions, prompts, reference, **more):\n"
        "    with open('asked.jsonl', 'a') as asked:\n"
        "        asked.write(json.dumps([prompts, reference]) + '\\n')\n"
        "    return [float(i) for i in range(len(completions))]\n"
    )
    train(out / "trl", model, "trl grpo ", *CPU, "--num_generations", "2", "--max_completion_length", "4")
    asked = [json.loads(line) for line in (out / "trl/asked.jsonl").read_text().splitlines()]
    said = [(prompts[0][-1]["content"], reference[0]) for prompts, reference in asked]
    assert said == [(row["prompt"][-1]["content"], row["reference"]) for row in rows(out)[:2]]


@pytest.mark.parametrize(("name", "trainer"), [("preference", "dpo"), ("kto", "kto")])
def test_the_words_of_pairs_reach_the_model(run, name, trainer):
    wanted, seen, _ = run(name, trainer)
    side = "chosen_completion_ids" if trainer == "dpo" else "completion_ids"
    ids = seen[0]["input_ids"]
    got = [row[row_mask == 1].tolist() for row, row_mask in zip(ids, seen[0]["attention_mask"], strict=True)]
    for i, row in enumerate(wanted[:2]):
        assert row["prompt_ids"] + row[side] == got[i][: len(row["prompt_ids"]) + len(row[side])]
