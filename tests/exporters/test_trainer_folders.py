"""Trainers' folders: the columns each takes as ready, the text each reads, and the command beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from datamix.core.errors import DataError, RecipeError
from datamix.exporters import EXPORT_FORMATS, SetInfo, command, keeps, needs_records, open_sink
from datamix.exporters.trainers.llamafactory import choices

TRAINERS = (
    "llamafactory", "trl", "axolotl", "ms-swift", "torchtune", "open-instruct", "medicalgpt", "verl", "openrlhf",
    "openai", "nanochat", "megatron",
)  # fmt: skip
KINDS = ("pretrain", "sft", "preference", "prompt")


class Words:
    """Records by (file, record): texts in a pretraining set, conversations else."""

    def __init__(self, kind: str, flagged: bool = True) -> None:
        self.kind = kind
        self.flag = False if flagged else None  # of the last answer

    def fetch_many(self, files, records) -> list[dict]:
        return [self._record(*at) for at in zip(files.tolist(), records.tolist(), strict=True)]

    def piece_texts(self, files, records, starts, lengths) -> list[str | None]:
        if self.kind != "pretrain":
            return [None] * len(files)
        stretches = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
        return [
            f"{self._record(*at)['text']}{start}-{stop}"
            for at, (start, stop) in zip(
                zip(files.tolist(), records.tolist(), strict=True), stretches, strict=True
            )
        ]

    def _record(self, file: int, record: int) -> dict:
        if self.kind == "pretrain":
            return {"text": f"文本 {file}:{record}\n", "meta": None}
        turn = dict.fromkeys(("content", "reasoning", "tool_calls", "tool_call_id", "name", "train"))
        call = json.dumps([{"type": "function", "function": {"name": "查", "arguments": {"q": "头痛"}}}])
        return {
            "messages": [
                turn | {"role": "system", "content": "you are"},
                turn | {"role": "user", "content": f"问题 {file}:{record}"},
                turn | {"role": "assistant", "tool_calls": call},
                turn | {"role": "tool", "content": "结果"},
                turn | {"role": "assistant", "content": "答案", "reasoning": "想"},
                turn | {"role": "user", "content": "more"},
                turn | {"role": "assistant", "content": "yes", "train": self.flag},
            ],
            "tools": json.dumps([{"type": "function", "function": {"name": "查", "parameters": {}}}]),
            "kwargs": None,
            "meta": None,
        }


def build(name, info, rows, folder, split="train", index=0, flagged=None):
    """A shard; a flag that says "not this turn" where the format can hold it, or where it is asked for."""
    words = Words(info.kind, name in ("openai", "ms-swift") if flagged is None else flagged)
    sink = open_sink(name, (), info, split, words if needs_records(name) else None)
    names = sink.write([rows.slice(0, 3), rows.slice(3)], index, folder)
    return names, sink.finish([names], folder)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_has_a_folder_for_some_kind(make_info, name):
    def opens(kind):
        try:
            open_sink(name, (), make_info(kind, stages=("broad", "sharpen")), "train")
        except RecipeError:
            return False
        return True

    assert any(map(opens, KINDS))


@pytest.mark.parametrize(
    ("name", "kind", "packed", "paired"), list(product(TRAINERS, KINDS, (False, True), (False, True)))
)
def test_every_folder_it_can_hold_is_complete_and_the_same_each_time(
    make_info, make_rows, bytes_below, tmp_path, name, kind, packed, paired
):
    if (packed and kind not in ("pretrain", "sft")) or (not paired and kind != "preference"):
        return
    info = make_info(kind, packed=packed, paired=paired, stages=("broad", "sharpen"))
    try:
        open_sink(name, (), info, "train")
    except RecipeError:
        return
    seen = []
    for run in ("one", "two"):
        folder = tmp_path / run
        written, once = build(name, info, make_rows(info, 8), folder)
        checked, twice = build(name, info, make_rows(info, 4), folder, "validation/medical")
        assert {*written, *checked, *once, *twice} == set(bytes_below(folder))
        seen.append(bytes_below(folder))
    assert seen[0] == seen[1]
    text = (tmp_path / "one/README.md").read_text()
    assert command(name, (), info) in text
    for promise in ("ratio", "order", "isolation"):
        assert f"- {promise}: {'kept' if promise in keeps(name, (), info) else '**not kept**'}" in text
    for config in tmp_path.glob("one/*.yaml"):
        assert yaml.safe_load(config.read_text())


def test_llamafactory_sft_tokens_have_exactly_the_three_columns(make_info, make_rows, tmp_path):
    from datasets import load_from_disk

    info = make_info("sft", stages=("broad", "sharpen"))
    rows = make_rows(info, 8)
    build("llamafactory", info, rows, tmp_path)
    build("llamafactory", info, make_rows(info, 4), tmp_path, "validation/medical")
    loaded = load_from_disk(tmp_path / "tokenized")
    assert list(loaded) == ["train", "validation_medical"]
    assert loaded["train"].column_names == ["input_ids", "attention_mask", "labels"]
    assert loaded["train"]["labels"][:] == rows.column("labels").to_pylist()
    assert len(load_from_disk(tmp_path / "tokenized/stages/sharpen")) == 4
    entries = json.loads((tmp_path / "dataset_info.json").read_text())
    assert list(entries) == [
        "demo_train_00000-s0-broad",
        "demo_train_00000-s1-sharpen",
        "demo_validation_medical_00000",
    ]
    entry = entries["demo_train_00000-s0-broad"]
    assert entry["columns"] == {"messages": "conversations", "tools": "tools"}
    said = lines(tmp_path / entry["file_name"])
    assert [turn["from"] for turn in said[0]["conversations"]] == [
        "system", "human", "function_call", "observation", "gpt", "human", "gpt",
    ]  # fmt: skip
    assert json.loads(said[0]["conversations"][2]["value"]) == {"name": "查", "arguments": {"q": "头痛"}}
    assert said[0]["conversations"][4]["value"] == "<think>\n想\n</think>\n\n答案"
    assert json.loads(said[0]["tools"])[0]["function"]["name"] == "查"
    config = yaml.safe_load((tmp_path / "sft.yaml").read_text())
    assert config["disable_shuffling"] is True
    assert config["num_train_epochs"] == 1
    texts = yaml.safe_load((tmp_path / "sft_text.yaml").read_text())
    assert texts["dataset"].split(",") == list(entries)[:2]


def test_llamafactory_packed_rows_count_their_documents_and_fill_a_multiple_of_eight(
    make_info, make_rows, tmp_path
):
    from datasets import load_from_disk

    info = make_info("sft", packed=True, max_length=19)
    rows = make_rows(info, 6)
    build("llamafactory", info, rows, tmp_path)
    for got, want in zip(load_from_disk(tmp_path / "tokenized")["train"], rows.to_pylist(), strict=True):
        length = len(want["input_ids"])
        assert {len(column) for column in got.values()} == {24}
        first, second = want["seq_lengths"]
        assert got["attention_mask"] == [1] * first + [2] * second + [0] * (24 - length)
        assert got["input_ids"][:length] == want["input_ids"]
        assert got["position_ids"][:length] == want["position_ids"]
        assert got["labels"] == want["labels"] + [-100] * (24 - length)
    assert yaml.safe_load((tmp_path / "sft.yaml").read_text())["neat_packing"] is True


def test_llamafactory_pairs_carry_the_prompt_and_the_empty_image_columns(make_info, make_rows, tmp_path):
    from datasets import load_from_disk

    info = make_info("preference")
    rows = make_rows(info, 5)
    build("llamafactory", info, rows, tmp_path)
    for got, want in zip(load_from_disk(tmp_path / "tokenized")["train"], rows.to_pylist(), strict=True):
        assert got["chosen_input_ids"] == want["prompt_ids"] + want["chosen_completion_ids"]
        assert got["rejected_labels"] == [-100] * len(want["prompt_ids"]) + want["rejected_completion_ids"]
        assert got["images"] is got["videos"] is got["audios"] is None
    entry = json.loads((tmp_path / "dataset_info.json").read_text())["demo_train_00000"]
    assert entry["ranking"] is True
    pair = lines(tmp_path / entry["file_name"])[0]
    assert pair["conversations"][-1]["from"] == "human"
    assert pair["chosen"] == {"from": "gpt", "value": "好的 0"}


def test_llamafactory_labelled_completions_have_another_rows_for_the_kl_term(make_info, make_rows, tmp_path):
    from datasets import load_from_disk

    info = make_info("preference", paired=False)
    rows = make_rows(info, 3)
    build("llamafactory", info, rows, tmp_path)
    got = load_from_disk(tmp_path / "tokenized")["train"][1]
    assert got["kto_tags"] is False
    assert got["kl_input_ids"] == rows["prompt_ids"][1].as_py() + rows["completion_ids"][0].as_py()


@pytest.mark.parametrize("packed", [False, True])
def test_trl_sft_has_labels_and_the_lengths_of_documents(make_info, make_rows, tmp_path, packed):
    info = make_info("sft", packed=packed)
    rows = make_rows(info, 5)
    (name,), _ = build("trl", info, rows, tmp_path)
    table = pq.read_table(tmp_path / name)
    assert table.column_names == ["input_ids", "labels", *(["seq_lengths"] if packed else [])]
    assert table.to_pylist() == rows.select(table.column_names).to_pylist()
    config = yaml.safe_load((tmp_path / "sft.yaml").read_text())
    assert config["packing"] is False
    assert config["padding_free"] is packed
    assert config["max_length"] == (None if packed else 16)
    assert config["datasets"][0]["data_files"]["train"] == ["train/00000.parquet"]


def test_axolotl_gets_a_row_a_document(make_info, make_rows, tmp_path):
    info = make_info("sft", packed=True)
    rows = make_rows(info, 5)
    (name,), _ = build("axolotl", info, rows, tmp_path)
    got = pq.read_table(tmp_path / name)
    assert got.column_names == ["input_ids", "attention_mask", "labels"]
    assert len(got) == 10
    assert [t for row in got["input_ids"].to_pylist() for t in row] == [
        t for row in rows["input_ids"].to_pylist() for t in row
    ]
    assert {labels[0] for labels in got["labels"].to_pylist()} == {-100}
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["datasets"] == [{"path": "train/00000.parquet", "ds_type": "parquet", "type": None}]
    assert config["sample_packing_sequentially"] is True


def test_openai_examples_hold_calls_reasoning_and_weights(make_info, make_rows, tmp_path):
    info = make_info("sft")
    (name,), _ = build("openai", info, make_rows(info, 5), tmp_path)
    example = lines(tmp_path / name)[3]
    messages = example["messages"]
    call = messages[2]["tool_calls"][0]
    assert messages[1]["content"] == "问题 1:6"
    assert messages[2]["content"] is None
    assert json.loads(call["function"]["arguments"]) == {"q": "头痛"}
    assert messages[3]["tool_call_id"] == call["id"]
    assert messages[4]["content"].startswith("<think>\n想\n</think>")
    assert messages[6]["weight"] == 0
    assert example["tools"][0]["function"]["name"] == "查"


@pytest.mark.parametrize("name", ["medicalgpt", "nanochat", "ms-swift", "llamafactory"])
def test_each_piece_of_a_document_that_is_cut_over_rows_is_a_text(make_info, tmp_path, name):
    info = make_info("pretrain")
    rows = [
        {
            "source": "general",
            "stage": "train",
            "records": [{"file": 0, "record": 5, "start": start, "length": 2}],
            "input_ids": [3, 4],
            "labels": [3, 4],
            "attention_mask": [1, 1],
        }
        for start in (6, 2, 6)  # no first piece, and one twice
    ]
    names, _ = build(name, info, pa.RecordBatch.from_pylist(rows, schema=info.schema), tmp_path)
    (text,) = [n for n in names if not n.endswith(".arrow")]
    assert texts_in(tmp_path / text) == ["文本 0:5\n6-8", "文本 0:5\n2-4", "文本 0:5\n6-8"]


def texts_in(path):
    if path.suffix == ".parquet":
        return pq.read_table(path)["text"].to_pylist()
    return [line.get("text") or line["messages"][0]["content"] for line in lines(path)]


def test_text_of_a_conversation_in_a_pretraining_set_is_refused_with_a_way_out(
    make_info, make_rows, tmp_path
):
    sink = open_sink("medicalgpt", (), make_info("pretrain"), "train", Words("sft"))
    with pytest.raises(DataError, match="chat template"):
        sink.write([make_rows(make_info("pretrain"), 2)], 0, tmp_path)


def test_medicalgpt_pairs_are_a_conversation_and_two_answers(make_info, make_rows, tmp_path):
    info = make_info("preference")
    (name,), _ = build("medicalgpt", info, make_rows(info, 2), tmp_path)
    assert lines(tmp_path / name)[1] == {
        "conversations": [{"from": "human", "value": "what is 1?\n问题"}],
        "chosen": "好的 1",
        "rejected": "不知道",
    }


def test_verl_and_openrlhf_carry_the_reference(make_info, make_rows, tmp_path):
    info = make_info("prompt")
    rows = make_rows(info, 5)
    (name,), _ = build("verl", info, rows, tmp_path / "verl")
    row = pq.read_table(tmp_path / "verl" / name).to_pylist()[1]
    assert row["reward_model"] == {"style": "rule", "ground_truth": "答案 1"}
    assert row["prompt"] == [{"role": "user", "content": "what is 1?\n问题"}]
    assert row["extra_info"] == {"index": 2, "stage": "train", "verifier": None, "env": None}
    (name,), _ = build("openrlhf", info, rows, tmp_path / "openrlhf")
    assert [line["label"] for line in lines(tmp_path / "openrlhf" / name)] == [
        None,
        "答案 1",
        "答案 2",
        None,
        "答案 4",
    ]


def test_nanochat_joins_all_validation_into_its_last_file(make_info, make_rows, tmp_path):
    info = make_info("pretrain")
    build("nanochat", info, make_rows(info, 5), tmp_path)
    for source in info.sources:
        build("nanochat", info, make_rows(info, 2), tmp_path, f"validation/{source}")
    shards = sorted(tmp_path.glob("*.parquet"))
    assert [path.name for path in shards] == ["shard_00000.parquet", "shard_99999.parquet"]
    assert pq.read_table(shards[0])["text"].to_pylist()[0].startswith("文本 0:0\n")
    assert len(pq.read_table(shards[1])) == 4


def test_ms_swift_turns_calls_into_its_own_roles(make_info, make_rows, tmp_path):
    info = make_info("sft")
    (name,), _ = build("ms-swift", info, make_rows(info, 1), tmp_path)
    (example,) = lines(tmp_path / name)
    assert [m["role"] for m in example["messages"]] == [
        "system", "user", "tool_call", "tool_response", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert example["messages"][-1]["loss"] is False


def test_a_text_format_without_records_says_what_to_do(make_info, make_rows, tmp_path):
    with pytest.raises(DataError, match="Build the set again"):
        open_sink("openai", (), make_info("sft"), "train").write(
            [make_rows(make_info("sft"), 1)], 0, tmp_path
        )


def test_formats_that_read_records_say_so():
    assert {name for name in EXPORT_FORMATS if needs_records(name)} == {
        "llamafactory", "ms-swift", "medicalgpt", "openai", "nanochat",
    }  # fmt: skip


def test_llamafactory_yaml_offers_lora_and_precision_as_comments_that_fit_a_gpu_of_24_gb() -> None:
    info = SetInfo("s", "sft", True, 2048, 152_000, 0, 0, ("a",), ("main",), "tokenizer", (("a", 1.0),))
    short, long = choices(info), choices(replace(info, max_length=16_384))
    assert "bf16: true" in short
    assert any(line.startswith("finetuning_type: lora") for line in short)
    assert any("7.6e9 x 2 B = 15.2 GB" in line for line in short)
    assert "quantization_bit: 4" not in short
    assert long[-1] == "quantization_bit: 4"
