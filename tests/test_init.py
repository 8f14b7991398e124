"""From unknown files to a recipe: what was recognised is a source, what was not is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from small import TOKENIZER, datamix

from datamix.core.errors import RecipeError
from datamix.jobs.init import init
from datamix.recipe import Recipe

SAMPLES = Path(__file__).parents[1] / "samples"


def lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


CHAT = {"conversations": [{"from": "human", "value": "问：是吗？"}, {"from": "gpt", "value": "是"}]}
PAIR = {"prompt": "q", "chosen": "g", "rejected": "b"}


def recipe(paths: list[Path], kind: str | None, base: Path) -> tuple[dict[str, Any], str]:
    text = init([str(p) for p in paths], kind, str(base))
    return yaml.safe_load(text), text


def test_files_become_sources_with_a_count_and_an_example(tmp_path: Path) -> None:
    lines(tmp_path / "data" / "对话 a.jsonl", [CHAT] * 4)
    lines(tmp_path / "data" / "pairs.jsonl", [PAIR] * 2)
    lines(tmp_path / "data" / "odd.jsonl", [{"foo": 1}])
    loaded, text = recipe([tmp_path / "data"], None, tmp_path)
    assert loaded["kind"] == "sft"
    assert loaded["sources"] == {"对话_a": {"path": "data/对话 a.jsonl", "format": "sharegpt"}}
    assert "# 4 records, e.g. 问：是吗？ 是" in text
    assert "# 2 records, the prompt and better answer of each pair, e.g. q g b" in text
    assert "#   data/odd.jsonl: no known format: its first record has the fields foo" in text


def test_the_kind_may_be_asked_for(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [CHAT] * 4)
    lines(tmp_path / "pairs.jsonl", [PAIR] * 2)
    loaded, text = recipe([tmp_path], "preference", tmp_path)
    assert (loaded["kind"], list(loaded["sources"])) == ("preference", ["pairs"])
    assert "#   a.jsonl: sft records cannot be used in a preference recipe" in text
    with pytest.raises(RecipeError, match="Kinds: pretrain, sft, preference, prompt"):
        init([str(tmp_path)], "dpo", str(tmp_path))


def test_a_tree_of_documents_is_one_source(tmp_path: Path) -> None:
    for i in range(30):
        path = tmp_path / "book" / f"part{i % 3}" / f"{i}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# Chapter {i}\n\nSome words of prose.\n")
    loaded, text = recipe([tmp_path / "book"], None, tmp_path)
    assert loaded["kind"] == "pretrain"
    assert loaded["sources"] == {"book": {"path": "book", "format": "text"}}
    assert "# 30 records in 30 files" in text


def test_many_shards_of_one_thing_are_one_source(tmp_path: Path) -> None:
    for i in range(25):
        lines(tmp_path / "shards" / f"part-{i:03}.jsonl", [{"text": f"t{i}"}] * 2)
    loaded, text = recipe([tmp_path / "shards"], None, tmp_path)
    assert loaded["sources"] == {"shards": {"path": "shards", "format": "text"}}
    assert "# 50 records in 25 files" in text


def test_names_are_made_fit_and_unique(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        lines(tmp_path / folder / "医疗.jsonl", [CHAT])
        lines(tmp_path / folder / "a b.jsonl", [CHAT])
    loaded, _ = recipe([tmp_path], None, tmp_path)
    assert sorted(loaded["sources"]) == ["a_b", "a_b_2", "医疗", "医疗_2"]


def test_a_file_of_mostly_broken_records_is_no_source(tmp_path: Path) -> None:
    lines(tmp_path / "good.jsonl", [CHAT] * 3)
    lines(tmp_path / "bad.jsonl", [CHAT] * 6 + [{"conversations": []}] * 2)
    loaded, text = recipe([tmp_path], None, tmp_path)
    assert list(loaded["sources"]) == ["good"]
    assert "bad.jsonl: 2 of the first 8 records do not fit sharegpt (empty_conversation 2)" in text


def test_entries_of_a_dataset_info_become_sources(tmp_path: Path) -> None:
    lines(tmp_path / "d" / "x.jsonl", [{"q": "问", "a": "答", "input": "hidden"}])
    entries = {
        "mine": {"file_name": "x.jsonl", "columns": {"prompt": "q", "response": "a"}},
        "far": {"hf_hub_url": "A/B"},
        "gone": {"file_name": "gone.json"},
    }
    (tmp_path / "d" / "dataset_info.json").write_text(json.dumps(entries))
    loaded, text = recipe([tmp_path / "d"], None, tmp_path)
    columns = {"history": "", "input": "", "instruction": "q", "output": "a", "system": ""}
    assert loaded["sources"] == {"mine": {"path": "d/x.jsonl", "format": "alpaca", "columns": columns}}
    assert "hf://datasets/A/B: on the Hub" in text
    assert "#   far:" in text
    assert "d/gone.json: its file does not exist" in text


def test_entries_with_ranked_answers_are_pairs_and_one_that_cannot_be_read_is_listed(tmp_path: Path) -> None:
    ranked = [{"instruction": f"q{i}", "input": "", "output": ["best", "good", "bad"]} for i in range(20)]
    lines(tmp_path / "d" / "ranked.jsonl", ranked)
    lines(tmp_path / "d" / "odd.jsonl", [{"foo": 1}] * 20)
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    entries = {
        "mapped": {"file_name": "ranked.jsonl", "ranking": True, "columns": columns},
        "bare": {"file_name": "ranked.jsonl", "ranking": True},
        "silent": {"file_name": "ranked.jsonl"},
        "odd": {"file_name": "odd.jsonl", "ranking": True, "columns": columns},
    }
    (tmp_path / "d" / "dataset_info.json").write_text(json.dumps(entries))
    loaded, text = recipe([tmp_path / "d"], None, tmp_path)
    assert loaded["kind"] == "preference"
    assert {name: source["format"] for name, source in loaded["sources"].items()} == dict.fromkeys(
        ("mapped", "bare", "silent"), "caregpt"
    )
    assert "odd.jsonl: 20 of the first 20 records do not fit caregpt (missing_field 20)" in text


def test_nothing_usable_is_an_error_that_says_what_was_found(tmp_path: Path) -> None:
    lines(tmp_path / "odd.jsonl", [{"foo": 1}])
    with pytest.raises(RecipeError, match=r"No file can be a source .*fields foo"):
        init([str(tmp_path)], None, str(tmp_path))


@pytest.mark.parametrize("kind", ["pretrain", "sft", "preference", "prompt"])
def test_the_recipe_of_the_samples_builds_as_it_stands(tmp_path: Path, kind: str) -> None:
    from datamix.jobs.build import build
    from datamix.pipeline.steps import Options
    from datamix.recipe import Recipe

    shutil.copytree(SAMPLES, tmp_path / "data", ignore=shutil.ignore_patterns("*.py", "*.yaml", "README.md"))
    (tmp_path / "recipe.yaml").write_text(
        init([str(tmp_path / "data")], kind, str(tmp_path)), encoding="utf-8"
    )
    assert "tokenizer: data/tokenizer" in (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    read = Recipe.read(tmp_path / "recipe.yaml")
    manifest = build(read, Options(tmp_path / "out", tmp_path / "cache", workers=1))
    assert manifest["kind"] == kind
    assert all(source["emitted"]["rows"] for source in manifest["sources"].values())


def test_documents_below_a_folder_of_folders_only_are_one_source(tmp_path: Path) -> None:
    for name in ("a/x", "b/y"):
        folder = tmp_path / "mixed" / name
        folder.mkdir(parents=True)
        (folder / "doc.txt").write_text("A sentence about spring.\n")
        (folder.parent / "vocabulary.bin.json").write_text('{"some": "thing"}')
    (tmp_path / "mixed" / "a" / "data.jsonl").write_text('{"text": "春天来了"}\n')
    text = init([str(tmp_path / "mixed")], None, str(tmp_path))
    assert "kind: pretrain" in text


def test_what_a_file_holds_never_spoils_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text('{"text": "春天来了"}\n')
    (tmp_path / "odd.json").write_text('[{"a\\u0000\\u2028\\u0007\\nb: [": 1}]')
    written = tmp_path / "recipe.yaml"
    written.write_text(init([str(tmp_path)], None, str(tmp_path)))
    assert list(Recipe.read(written).sources) == ["good"]
    assert "odd.json: no known format" in written.read_text()


def test_five_shards_of_one_prefix_are_one_source(tmp_path: Path) -> None:
    for i in range(5):
        lines(tmp_path / "d" / f"web-{i:05}-of-00005.jsonl", [{"text": f"t{i}"}] * 2)
        lines(tmp_path / "d" / f"chat_{i}.jsonl", [CHAT])
    lines(tmp_path / "d" / "2024.jsonl", [{"text": "t"}])
    lines(tmp_path / "d" / "web-00000-of-00005.json", [{"text": "t"}])
    loaded, text = recipe([tmp_path / "d"], "pretrain", tmp_path)
    assert loaded["sources"]["web"] == {"path": "d/web-*.jsonl", "format": "text"}
    assert sorted(loaded["sources"]) == ["2024", "web", "web-00000-of-00005"]
    assert "# 10 records in 5 files" in text
    chats = recipe([tmp_path / "d"], "sft", tmp_path)[0]["sources"]
    assert chats == {"chat": {"path": "d/chat_*.jsonl", "format": "sharegpt"}}


def test_shards_without_a_prefix_are_called_like_their_folder(tmp_path: Path) -> None:
    for i in range(3):
        lines(tmp_path / "医疗 数据" / f"{i:04}.jsonl", [CHAT])
    loaded, _ = recipe([tmp_path / "医疗 数据"], None, tmp_path)
    assert loaded["sources"] == {"医疗_数据": {"path": "医疗 数据", "format": "sharegpt"}}


def test_each_kind_of_a_mixed_folder_gets_a_recipe_in_one_call(tmp_path: Path) -> None:
    lines(tmp_path / "data" / "对话.jsonl", [CHAT] * 4)
    lines(tmp_path / "data" / "pairs.jsonl", [PAIR] * 2)
    lines(tmp_path / "data" / "web.jsonl", [{"text": f"words {i}"} for i in range(9)])
    lines(tmp_path / "data" / "odd.jsonl", [{"foo": 1, "bar": 2}])
    (tmp_path / "data" / "empty.jsonl").write_text("")
    (tmp_path / "data" / "notes.py").write_text("from trl import SFTTrainer")
    done = datamix("init", tmp_path / "data", "-o", tmp_path / "r.yaml", "--tokenizer", TOKENIZER)
    assert done.returncode == 0, done.stderr
    assert "r.yaml: pretrain, 1 source, 9 records." in done.stdout or "2 sources" in done.stdout
    written = {p.name: yaml.safe_load(p.read_text(encoding="utf-8")) for p in tmp_path.glob("*.yaml")}
    assert {name: value["kind"] for name, value in written.items()} == {
        "r.yaml": "pretrain", "r-sft.yaml": "sft", "r-preference.yaml": "preference",
    }  # fmt: skip
    assert list(written["r-sft.yaml"]["sources"]) == ["对话"]
    assert (
        "odd.jsonl: no known format: its first record has the fields foo, bar. Name them in a recipe"
        in done.stdout
    )
    assert "empty.jsonl: it holds no records" in done.stdout
    assert "pairs.jsonl" not in done.stdout
    for name in written:
        built = Recipe.read(tmp_path / name)
        assert Path(tmp_path, built.tokenizer).resolve() == TOKENIZER.resolve()
    again = datamix("init", tmp_path / "data", "-o", tmp_path / "r.yaml")
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


def test_a_mixed_folder_is_built_after_init(tmp_path: Path) -> None:
    chats = [{"instruction": f"问题 {i}？", "output": f"回答 {i} {'好' * (i % 7 + 1)}。"} for i in range(40)]
    lines(tmp_path / "data" / "general" / "zh.jsonl", chats[:20])
    lines(
        tmp_path / "data" / "general" / "en.jsonl",
        [{"question": f"Q {i}?", "answer": f"An answer {i}."} for i in range(20)],
    )
    lines(tmp_path / "data" / "medical" / "medical.jsonl", chats[20:])
    path = tmp_path / "recipe.yaml"
    assert (
        datamix("init", tmp_path / "data", "-o", path, "--kind", "sft", "--tokenizer", TOKENIZER).returncode
        == 0
    )
    read = Recipe.read(path)
    assert {name: source.group for name, source in read.sources.items()} == {
        "zh": "general", "en": "general", "medical": "medical-group",
    }  # fmt: skip
    assert set(read.groups) == {"general", "medical-group"}
    assert sum(group.weight for group in read.groups.values()) == pytest.approx(1, abs=0.02)
    built = datamix("build", path, "-o", tmp_path / "out")
    assert built.returncode == 0, built.stderr


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"content": "春天来了，花开了", "id": 3}, {"text": "content"}),
        ({"Content": "words of a page", "url": "u"}, {"text": "Content"}),
        ({"id": 1, "abstract": "the only text there is"}, {"text": "abstract"}),
        ({"问题": "什么？", "回答": "这个", "科室": "内科"}, {"question": "问题", "answer": "回答"}),
        ({"q": "what?", "a": "that"}, {"instruction": "q", "output": "a"}),
        ({"foo": "x", "bar": "y"}, None),
    ],
)
@pytest.mark.parametrize("container", ["jsonl", "parquet"])
def test_a_nearly_right_field_gets_its_columns(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str] | None, container: str
) -> None:
    rows = [{k: v if isinstance(v, int) else f"{v} {i}" for k, v in row.items()} for i in range(6)]
    if container == "jsonl":
        lines(tmp_path / "x.jsonl", rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    lines(tmp_path / "z.jsonl", [{"instruction": "a", "output": "b"}] * 2)
    if columns is None:
        assert "no known format" in recipe([tmp_path], "sft", tmp_path)[1]
        return
    kind = "pretrain" if "text" in columns else "sft"
    loaded, _ = recipe([tmp_path], kind, tmp_path)
    source = loaded["sources"]["x"]
    assert source.get("columns", columns) == columns


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("swift.sh", "swift sft --model m --dataset a.jsonl#10", "datamix init --from"),
        ("trl.py", "from trl import SFTTrainer\n", "a training script, not data"),
        ("train.yaml", "model_name_or_path: m\n", "datamix init --from"),
    ],
)
def test_a_script_is_reported_as_one_and_not_read_as_text(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError, match=reason):
        init([str(tmp_path / name)], None, str(tmp_path))
    lines(tmp_path / "good.jsonl", [CHAT])
    loaded = yaml.safe_load(init([str(tmp_path / name), str(tmp_path / "good.jsonl")], None, str(tmp_path)))
    assert list(loaded["sources"]) == ["good"]


def test_num_samples_and_entries_of_the_hub_are_carried(tmp_path: Path) -> None:
    lines(tmp_path / "x.jsonl", [{"instruction": "问", "output": "答"}] * 4)
    entries = {
        "mine": {"file_name": "x.jsonl", "num_samples": 2},
        "far": {"hf_hub_url": "A/B", "num_samples": 7},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    loaded, text = recipe([tmp_path], None, tmp_path)
    assert loaded["sources"]["mine"]["max_records"] == 2
    assert "#   far:" in text
    assert '#     path: "hf://datasets/A/B"' in text
    assert "#     max_records: 7" in text


def test_weights_of_folders_are_their_share_of_what_is_trained(tmp_path: Path) -> None:
    short = [{"instruction": f"{i} " + "a long question " * 20, "output": "yes, it is so"} for i in range(8)]
    long = [{"instruction": f"{i}?", "output": "a long answer, " * 8} for i in range(8)]
    lines(tmp_path / "d" / "a" / "one.jsonl", short)
    lines(tmp_path / "d" / "a" / "two.jsonl", short)
    lines(tmp_path / "d" / "b" / "chat.jsonl", long)
    groups = recipe([tmp_path / "d"], None, tmp_path)[0]["groups"]
    assert groups["a"]["weight"] == pytest.approx(26 / (26 + 120), abs=0.01)
    lines(tmp_path / "d" / "b" / "pairs.jsonl", [PAIR] * 3)
    lines(tmp_path / "d" / "a" / "pairs.jsonl", [PAIR] * 6)
    lines(tmp_path / "d" / "a" / "more.jsonl", [PAIR])
    pairs = recipe([tmp_path / "d"], "preference", tmp_path)[0]["groups"]
    assert {name: group["weight"] for name, group in pairs.items()} == {"a": 0.7, "b": 0.3}
