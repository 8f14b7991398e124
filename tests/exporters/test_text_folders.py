"""Folders of text hold what the set trains: calls, tools and reasoning, and no answer that is not to be trained."""

from __future__ import annotations

import json
import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from datamix.exporters import keeps, open_sink

CALL = [{"type": "function", "function": {"name": "look_up", "arguments": {"q": "头痛", "n": 2}}}]
OTHER = [{"id": "x1", "type": "function", "function": {"name": "add", "arguments": {"a": [1, 2]}}}]
TOOLS = [
    {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
]
EMPTY = dict.fromkeys(("content", "reasoning", "tool_calls", "tool_call_id", "name"))


def turn(role, content=None, **more):
    return EMPTY | {"role": role, "content": content} | more


def calls(value, content=None, **more):
    return turn("assistant", content, tool_calls=json.dumps(value, ensure_ascii=False), **more)


ASKED = [
    turn("system", "be brief"),
    turn("user", "price?"),
    calls(OTHER, ""),
    turn("tool", "7", tool_call_id="x1", name="add"),
]
PAIRS = [
    {
        "prompt": [turn("user", "head?")],
        "chosen": [calls(CALL, "")],
        "rejected": [turn("assistant", "no idea")],
    },
    {
        "prompt": ASKED,
        "chosen": [turn("assistant", "it is 7", reasoning="7 is 7")],
        "rejected": [turn("assistant", "8")],
    },
]


@pytest.fixture
def rich(make_info):
    """A set whose turns hold calls, reasoning and tools, and its rows."""

    def make(kind="preference", paired=True):
        info = make_info(kind, paired=paired, tools=True)
        rows = []
        for i, pair in enumerate(PAIRS):
            row = {
                "source": "general",
                "stage": "train",
                "records": [{"file": 0, "record": i, "start": 0, "length": 9}],
                "prompt_ids": [5, 6],
                "chosen_completion_ids": [7, 2],
                "rejected_completion_ids": [8, 2],
                "completion_ids": [7, 2],
                "completion": pair["chosen"],
                "label": True,
                "reference": "7",
                "tools": json.dumps(TOOLS),
                **pair,
            }
            rows.append({name: row.get(name) for name in info.schema.names})
        return info, pa.RecordBatch.from_pylist(rows, schema=info.schema)

    return make


def write(name, info, rows, folder, records=None):
    sink = open_sink(name, (), info, "train", records) if records else open_sink(name, (), info, "train")
    names = sink.write([rows], 0, folder)
    return names, sink.finish([names], folder)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("paired", [True, False])
def test_trl_messages_hold_calls_as_objects_and_the_tools_of_each_row(rich, tmp_path, paired):
    from datasets import load_dataset

    info, rows = rich(paired=paired)
    write("trl", info, rows, tmp_path)
    loaded = load_dataset(
        "parquet", data_files=str(tmp_path / "train/*.parquet"), split="train", cache_dir=tmp_path
    )
    answer = "chosen" if paired else "completion"
    assert loaded[0][answer] == [{"role": "assistant", "content": "", "tool_calls": CALL}]
    assert loaded[1]["prompt"][2]["tool_calls"] == OTHER
    assert loaded[1]["prompt"][3] == {"role": "tool", "content": "7", "tool_call_id": "x1", "name": "add"}
    assert loaded[1][answer][0]["reasoning_content"] == "7 is 7"
    assert [json.loads(tools) for tools in loaded["tools"]] == [TOOLS, TOOLS]
    for trainer in ("dpo", "reward") if paired else ("kto",):
        limit = yaml.safe_load((tmp_path / f"{trainer}.yaml").read_text())["max_length"]
        assert limit == info.max_length + (0 if trainer == "reward" else 16)  # ids of ours, or rendered there


def test_trl_prompts_hold_calls_and_tools(rich, tmp_path):
    from datasets import load_dataset

    info, rows = rich("prompt")
    write("trl", info, rows, tmp_path)
    loaded = load_dataset(
        "parquet", data_files=str(tmp_path / "train/*.parquet"), split="train", cache_dir=tmp_path
    )
    assert loaded[1]["prompt"][2]["tool_calls"] == OTHER
    assert json.loads(loaded[0]["tools"]) == TOOLS


def test_swift_pairs_and_prompts_hold_calls_and_tools(rich, tmp_path):
    info, rows = rich()
    (name,), _ = write("ms-swift", info, rows, tmp_path / "pairs")
    first, second = lines(tmp_path / "pairs" / name)
    assert first["messages"][-1]["role"] == "tool_call"
    assert json.loads(first["messages"][-1]["content"]) == {
        "name": "look_up",
        "arguments": {"q": "头痛", "n": 2},
    }
    assert first["rejected_messages"][-1] == {"role": "assistant", "content": "no idea"}
    assert [m["role"] for m in second["messages"]] == [
        "system",
        "user",
        "tool_call",
        "tool_response",
        "assistant",
    ]
    assert json.loads(second["tools"]) == TOOLS
    info, rows = rich("prompt")
    (name,), _ = write("ms-swift", info, rows, tmp_path / "prompts")
    assert [m["role"] for m in lines(tmp_path / "prompts" / name)[1]["messages"]][-1] == "tool_response"


@pytest.mark.parametrize("paired", [True, False])
def test_llamafactory_text_of_pairs_holds_calls_and_names_the_column_of_tools(rich, tmp_path, paired):
    info, rows = rich(paired=paired)
    write("llamafactory", info, rows, tmp_path)
    (entry,) = json.loads((tmp_path / "dataset_info.json").read_text()).values()
    assert entry["columns"]["tools"] == "tools"
    first, second = lines(tmp_path / entry["file_name"])
    answer = first["chosen"] if paired else first["conversations"][-1]
    assert answer["from"] == "function_call"
    assert json.loads(answer["value"])["name"] == "look_up"
    assert [t["from"] for t in second["conversations"]][:4] == [
        "system",
        "human",
        "function_call",
        "observation",
    ]
    assert json.loads(first["tools"]) == TOOLS


def test_openai_pairs_hold_arguments_as_text_and_ids(rich, tmp_path):
    info, rows = rich()
    (name,), _ = write("openai", info, rows, tmp_path)
    first, second = lines(tmp_path / name)
    (call,) = first["preferred_output"][0]["tool_calls"]
    assert call["id"]
    assert json.loads(call["function"]["arguments"]) == {"q": "头痛", "n": 2}
    assert first["input"]["tools"] == TOOLS
    assert second["input"]["messages"][2]["tool_calls"][0]["id"] == "x1"
    assert second["input"]["messages"][3]["tool_call_id"] == "x1"
    assert [m["role"] for m in second["non_preferred_output"]] == ["assistant"]


def test_medicalgpt_pairs_hold_calls_as_its_tool_format_writes_them(rich, tmp_path):
    info, rows = rich()
    (name,), _ = write("medicalgpt", info, rows, tmp_path)
    first, second = lines(tmp_path / name)
    assert first["chosen"] == 'Action: look_up\nAction Input: {"q":"头痛","n":2}\n'
    assert second["chosen"] == "<think>\n7 is 7\n</think>\n\nit is 7"
    assert json.loads(first["tools"]) == [
        TOOLS[0]["function"]
    ]  # its formatter reads names and properties of these
    assert "--tool_format default" in (tmp_path / "README.md").read_text()


def test_axolotl_leaves_pairs_with_calls_out_and_says_so(rich, tmp_path):
    info, rows = rich()
    names, _ = write("axolotl", info, rows, tmp_path)
    assert names == ["train/00000.parquet", "left_out/train-00000.jsonl"]
    assert pq.read_table(tmp_path / names[0]).to_pylist() == []
    assert lines(tmp_path / names[1]) == [{"file": 0, "record": i, "reason": "calls"} for i in (0, 1)]
    text = (tmp_path / "README.md").read_text()
    assert "2: the format cannot hold the tool calls of a turn" in text
    assert "- ratio: **not kept**" in text
    assert keeps("axolotl", (), info, names) == ("isolation",)
    assert keeps("axolotl", (), info) == ("ratio", "isolation")


def test_prompts_for_rl_hold_calls_or_are_left_out(rich, tmp_path):
    from datasets import load_dataset

    info, rows = rich("prompt")
    write("verl", info, rows, tmp_path / "verl")
    files = str(tmp_path / "verl/train/*.parquet")
    loaded = load_dataset("parquet", data_files=files, split="train", cache_dir=tmp_path)
    assert loaded[1]["prompt"][2]["tool_calls"] == OTHER
    names, _ = write("openrlhf", info, rows, tmp_path / "openrlhf")
    assert {line["reason"] for line in lines(tmp_path / "openrlhf" / names[1])} == {"tools"}


def message(role, content, train=None, **more):
    return turn(role, content, **more) | {"train": train}


class Talks:
    """One conversation a record."""

    def __init__(self, *conversations):
        self.conversations = conversations

    def fetch_many(self, files, records):
        return [
            {"messages": self.conversations[i % len(self.conversations)], "tools": None, "meta": None}
            for i in range(len(files))
        ]


FLAGGED = [
    message("user", "a"),
    message("assistant", "WRONG", False),
    message("user", "b"),
    message("assistant", "good"),
]
PLAIN = [message("user", "a"), message("assistant", "fine")]


@pytest.mark.parametrize("name", ["llamafactory", "medicalgpt"])
def test_an_answer_that_is_not_to_be_trained_leaves_its_record_out_and_is_counted(
    make_info, make_rows, tmp_path, name
):
    info = make_info("sft")
    names, _ = write(name, info, make_rows(info, 4), tmp_path, Talks(FLAGGED, PLAIN))
    (text,) = [n for n in names if n.endswith("00000.jsonl") and not n.startswith("left_out")]
    assert [line["conversations"][-1]["value"] for line in lines(tmp_path / text)] == ["fine", "fine"]
    assert [line["reason"] for line in lines(tmp_path / "left_out/train-00000.jsonl")] == [
        "untrained_turn"
    ] * 2
    assert "WRONG" not in (tmp_path / text).read_text()
    readme = (tmp_path / "README.md").read_text()
    assert "2: an answer is not to be trained" in readme
    assert "ratio" not in keeps(name, (), info, names, text)
    trains_tokens = name == "llamafactory"  # its command does, and tokens are all there
    assert ("- ratio: **not kept**" in readme) is not trains_tokens
    assert ("ratio" in keeps(name, (), info, names)) is trains_tokens


@pytest.mark.parametrize(("name", "key", "value"), [("openai", "weight", 0), ("ms-swift", "loss", False)])
def test_formats_that_can_say_not_this_turn_do(make_info, make_rows, tmp_path, name, key, value):
    info = make_info("sft")
    (text,), _ = write(name, info, make_rows(info, 1), tmp_path, Talks(FLAGGED))
    (example,) = lines(tmp_path / text)
    assert [m.get(key) for m in example["messages"] if m["role"] == "assistant"] == [value, None]


def test_training_the_last_answer_alone_reaches_every_text_folder(make_info, make_rows, tmp_path):
    info = make_info("sft", loss_on="last_assistant")
    two = [
        message("user", "a"),
        message("assistant", "one"),
        message("user", "b"),
        message("assistant", "two"),
    ]
    written = {}
    for name in ("openai", "ms-swift", "llamafactory", "medicalgpt"):
        names, _ = write(name, info, make_rows(info, 1), tmp_path / name, Talks(two))
        (text,) = [n for n in names if n.endswith("00000.jsonl") and not n.startswith("left_out")]
        written[name] = lines(tmp_path / name / text)
    assert written["openai"][0]["messages"][1]["weight"] == 0
    assert written["ms-swift"][0]["messages"][1]["loss"] is False
    assert len(written["llamafactory"]) == 1
    config = yaml.safe_load((tmp_path / "llamafactory/sft_text.yaml").read_text())
    assert config["mask_history"] is True
    assert written["medicalgpt"] == []
    everything = make_info("sft", loss_on="all")
    assert "--train_on_inputs True" in open_sink("medicalgpt", (), everything, "train").command()
    assert "--loss_scale all" in open_sink("ms-swift", (), everything, "train").command()


@pytest.mark.parametrize(
    ("talk", "roles"),
    [
        ([message("user", "a"), message("user", "b"), message("assistant", "c")], None),
        ([message("assistant", "hello"), message("user", "b"), message("assistant", "c")], None),
        ([message("user", "a"), message("assistant", "b"), message("user", "and?")], ["human", "gpt"]),
        (
            [
                message("user", "a"),
                calls(CALL * 2, ""),
                message("tool", "1"),
                message("tool", "2"),
                message("assistant", "c"),
            ],
            ["human", "function_call", "observation", "gpt"],
        ),
    ],
)
def test_llamafactory_text_has_the_order_of_turns_that_it_takes(make_info, make_rows, tmp_path, talk, roles):
    info = make_info("sft")
    names, _ = write("llamafactory", info, make_rows(info, 1), tmp_path, Talks(talk))
    written = [
        [t["from"] for t in line["conversations"]] for line in lines(tmp_path / "text/train/00000.jsonl")
    ]
    assert written == ([] if roles is None else [roles])
    if roles is None:
        assert [line["reason"] for line in lines(tmp_path / names[-1])] == ["turn_order"]


@pytest.mark.parametrize("kind", ["pretrain", "sft", "preference"])
def test_medicalgpt_commands_take_nothing_away_and_name_what_their_scripts_need(make_info, kind):
    commands = [
        shlex.split(c) for c in open_sink("medicalgpt", (), make_info(kind), "train").command().split("\n")
    ]
    for words in commands:
        options = {w: words[i + 1] for i, w in enumerate(words[:-1]) if w.startswith("--")}
        assert options["--validation_file_dir"] == "train"
        if words[1].endswith("reward_modeling.py"):
            assert options["--remove_unused_columns"] == "False"
        if words[1].endswith("dpo_training.py"):
            assert options["--eval_strategy"] == "no"
            assert int(options["--max_source_length"]) >= 16 * 16
            assert "wc -l" in options["--max_steps"]
    assert len(commands) == (2 if kind == "preference" else 1)


@pytest.mark.parametrize("kind", ["pretrain", "sft", "preference"])
def test_llamafactory_measures_each_source_where_there_is_validation(make_info, make_rows, tmp_path, kind):
    info = make_info(kind)

    class Either(Talks):
        def piece_texts(self, files, records, starts, lengths):
            return ["text"] * len(files)

    for split in ("train", "validation/general", "validation/medical"):
        sink = open_sink("llamafactory", (), info, split, Either(PLAIN))
        sink.finish([sink.write([make_rows(info, 2)], 0, tmp_path)], tmp_path)
    configs = [yaml.safe_load(p.read_text()) for p in sorted(tmp_path.glob("*.yaml"))]
    assert {config["eval_strategy"] for config in configs} == {"steps"}
    texts = [config for config in configs if "tokenized_path" not in config]
    for config in texts:
        assert config["eval_dataset"] == "demo_validation_general_00000,demo_validation_medical_00000"
        assert config["eval_on_each_dataset"] is True


@pytest.fixture
def fields_of_prompts(make_info):
    """Four prompts: with a verifier and an environment, with a context, with judged steps, with nothing."""
    meta = [
        {"verifier": "math", "env": {"env_name": "sandbox", "task_id": 3}, "data_source": "gsm8k"},
        {"privileged_context": "the answer is 4"},
        {"completions": ["2 is even.", "So 3 is even."], "labels": [True, False]},
        None,
    ]
    info = make_info("prompt")
    rows = [
        {
            "source": "general",
            "stage": "train",
            "records": [{"file": 0, "record": i, "start": 0, "length": 2}],
            "prompt_ids": [5, 6],
            "prompt": [{"role": "user", "content": f"question {i}"}],
            "reference": str(i),
            "meta": None if fields is None else json.dumps(fields),
        }
        for i, fields in enumerate(meta)
    ]
    return info, pa.RecordBatch.from_pylist(rows, schema=info.schema)


def test_verifier_env_and_data_source_reach_every_rl_folder(fields_of_prompts, tmp_path):
    from datasets import load_from_disk

    info, rows = fields_of_prompts
    write("verl", info, rows, tmp_path / "verl")
    first, *_, last = pq.read_table(tmp_path / "verl/train/00000.parquet").to_pylist()
    assert first["data_source"] == "gsm8k"
    assert first["extra_info"]["verifier"] == "math"
    assert json.loads(first["extra_info"]["env"]) == {"env_name": "sandbox", "task_id": 3}
    assert (last["data_source"], last["extra_info"]["verifier"]) == ("general", None)
    write("openrlhf", info, rows, tmp_path / "openrlhf")
    first, *_, last = lines(tmp_path / "openrlhf/train/00000.jsonl")
    assert (first["datasource"], first["verifier"], first["env"]["task_id"]) == ("gsm8k", "math", 3)
    assert (last["datasource"], last["verifier"]) == ("general", None)
    write("open-instruct", info, rows, tmp_path / "open-instruct")
    loaded = load_from_disk(tmp_path / "open-instruct/train")
    assert loaded["dataset"][:] == [["math"], ["general"], ["general"], ["general"]]
    assert loaded["ground_truth"][:2] == [["0"], ["1"]]
    assert loaded[0]["env_config"] == {"env_configs": [{"env_name": "sandbox", "task_id": "3"}]}
    assert loaded[0]["input_ids_prompt"] == [5, 6]
    write("trl", info, rows, tmp_path / "trl")
    first = pq.read_table(tmp_path / "trl/train/00000.parquet").to_pylist()[0]
    assert (first["verifier"], first["data_source"], first["reference"]) == ("math", "gsm8k", "0")


def test_trl_takes_self_distillation_and_process_reward_records(fields_of_prompts, tmp_path):
    info, rows = fields_of_prompts
    names, _ = write("trl", info, rows, tmp_path)
    assert names == ["train/00000.parquet", "steps/train/00000.parquet"]
    contexts = pq.read_table(tmp_path / names[0])["privileged_context"].to_pylist()
    assert contexts == [None, "the answer is 4", None, None]
    assert pq.read_table(tmp_path / names[1]).to_pylist() == [
        {"prompt": "question 2", "completions": ["2 is even.", "So 3 is even."], "labels": [True, False]}
    ]
    text = (tmp_path / "README.md").read_text()
    assert "SDFTTrainer" in text
    assert "PRMTrainer" in text
    assert yaml.safe_load((tmp_path / "grpo.yaml").read_text())["datasets"][0]["data_files"]["train"] == [
        names[0]
    ]


def test_final_answers_and_masked_calls_leave_no_other_answer_to_train(make_info, make_rows, tmp_path):
    acts = [
        message("user", "a"),
        calls(CALL, ""),
        message("tool", "1"),
        message("assistant", "so", None),
        calls(CALL, ""),
    ]
    info = make_info("sft", loss_on="final_answer")
    (name,), _ = write("openai", info, make_rows(info, 1), tmp_path / "final", Talks(acts))
    (example,) = lines(tmp_path / "final" / name)
    assert [m.get("weight") for m in example["messages"] if m["role"] == "assistant"] == [0, None, 0]
    masked = make_info("sft", mask=("tool_args",))
    for name in ("openai", "ms-swift", "llamafactory", "medicalgpt"):
        names, _ = write(name, masked, make_rows(masked, 2), tmp_path / name, Talks(acts, PLAIN))
        assert [line["reason"] for line in lines(tmp_path / name / names[-1])] == ["masked_calls"]


class Seen(Talks):
    """Conversations about an image."""

    def fetch_many(self, files, records):
        meta = json.dumps({"image": "a.jpg", "videos": ["b.mp4", "c.mp4"]})
        return [record | {"meta": meta} for record in super().fetch_many(files, records)]


def test_media_that_was_kept_is_held_or_leaves_its_record_out(make_info, make_rows, tmp_path):
    info = make_info("sft", media=True, meta=True)
    rows = make_rows(info, 1)
    write("llamafactory", info, rows, tmp_path / "llamafactory", Seen(PLAIN))
    (example,) = lines(tmp_path / "llamafactory/text/train/00000.jsonl")
    assert (example["images"], example["videos"], example["audios"]) == (["a.jpg"], ["b.mp4", "c.mp4"], [])
    (entry,) = json.loads((tmp_path / "llamafactory/dataset_info.json").read_text()).values()
    assert {"images", "videos", "audios"} < entry["columns"].keys()
    write("ms-swift", info, rows, tmp_path / "swift", Seen(PLAIN))
    (example,) = lines(tmp_path / "swift/train/00000.jsonl")
    assert (example["images"], example["videos"]) == (["a.jpg"], ["b.mp4", "c.mp4"])
    for name in ("openai", "medicalgpt"):
        names, _ = write(name, info, rows, tmp_path / name, Seen(PLAIN))
        assert [line["reason"] for line in lines(tmp_path / name / names[-1])] == ["media"]
    pairs = make_info("preference", media=True, meta=True)
    batch = make_rows(pairs, 2)
    place = batch.schema.get_field_index("meta")
    batch = batch.set_column(place, "meta", pa.array([json.dumps({"images": ["a.jpg"]}), None]))
    for name in ("trl", "axolotl", "openai", "medicalgpt"):
        names, _ = write(name, pairs, batch, tmp_path / f"pairs-{name}")
        assert [line["reason"] for line in lines(tmp_path / f"pairs-{name}" / names[-1])] == ["media"]
