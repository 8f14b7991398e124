"""LLaMA-Factory's dataset_info.json becomes sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamix.core.contracts import Rows
from datamix.core.errors import RecipeError
from datamix.formats import DatasetEntry, ShapeSpec, dataset_info, native_kinds, shape

SHARED = Path(__file__).parents[3] / "shared" / "data"


def entry(folder: Path, content: dict[str, Any]) -> DatasetEntry:
    path = folder / "dataset_info.json"
    path.write_text(json.dumps({"set": content}), encoding="utf-8")
    (only,) = dataset_info(path)
    return only


def read(found: DatasetEntry, row: dict[str, Any]) -> list[dict[str, Any]]:
    spec = ShapeSpec(found.format, native_kinds(found.format)[0], found.columns, found.system)
    result = shape(Rows([row], [0], [1], [b""]), 0, spec)
    assert not result.rejects, result.rejects
    return result.batch.to_pylist()


def test_an_entry_without_columns_is_alpaca(tmp_path: Path) -> None:
    found = entry(tmp_path, {"file_name": "identity.json"})
    assert (found.name, found.files, found.format, found.columns) == ("set", ("identity.json",), "alpaca", ())


def test_named_columns_hide_the_others(tmp_path: Path) -> None:
    found = entry(tmp_path, {"hf_hub_url": "A/B", "columns": {"prompt": "input", "response": "target"}})
    assert found.files == ("hf://datasets/A/B",)
    (record,) = read(found, {"input": "q", "target": "x", "system": "hidden", "history": [["a", "b"]]})
    assert [m["content"] for m in record["messages"]] == ["q", "x"]


def test_a_lone_prompt_column_is_text(tmp_path: Path) -> None:
    found = entry(tmp_path, {"file_name": "c4.jsonl", "columns": {"prompt": "raw_content"}})
    assert found.format == "text"
    assert read(found, {"raw_content": "words"})[0]["text"] == "words"


def test_tags_rename_roles_and_turns(tmp_path: Path) -> None:
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "USER", "assistant_tag": "BOT"}
    found = entry(
        tmp_path, {"file_name": "x", "formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": tags}
    )
    (record,) = read(found, {"talk": [{"who": "USER", "says": "q"}, {"who": "BOT", "says": "x"}]})
    assert [(m["role"], m["content"]) for m in record["messages"]] == [("user", "q"), ("assistant", "x")]


def test_ranking_and_kto_entries_are_preferences(tmp_path: Path) -> None:
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    found = entry(tmp_path, {"file_name": "x", "ranking": True, "columns": columns})
    assert (found.format, found.ranking) == ("ranking", True)
    (record,) = read(found, {"question": "q", "good": "g", "bad": "b"})
    assert (record["chosen"][0]["content"], record["rejected"][0]["content"]) == ("g", "b")
    columns = {"prompt": "prompt", "response": "completion", "kto_tag": "label"}
    found = entry(tmp_path, {"file_name": "x", "columns": columns})
    (record,) = read(found, {"prompt": "q", "completion": "g", "label": False})
    assert (record["label"], record["chosen"][0]["content"]) == (False, "g")


def test_entries_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    columns = {"messages": "messages", "images": "images"}
    found = entry(tmp_path, {"file_name": "x", "formatting": "sharegpt", "columns": columns})
    assert found.problem == "its rows need images, and only text is read"
    assert "download it" in (entry(tmp_path, {"ms_hub_url": "a/b"}).problem or "")


def test_another_json_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dataset_info.json"
    for content in ('{"a": 1}', "[]", "{", "{}"):
        path.write_text(content)
        with pytest.raises(RecipeError, match=r"dataset_info\.json"):
            dataset_info(path)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real corpora are not beside the checkout")
def test_the_real_catalogue_is_read_whole() -> None:
    folder = SHARED / "sft_general" / "hiyouga__LLaMA-Factory"
    entries = {e.name: e for e in dataset_info(folder / "dataset_info.json")}
    assert len(entries) == 104
    assert sum(e.problem is None for e in entries.values()) == 90
    for name in ("alpaca_zh_demo", "identity", "glaive_toolcall_zh_demo"):
        found = entries[name]
        rows = json.loads((folder / found.files[0]).read_text(encoding="utf-8"))
        spec = ShapeSpec(found.format, "sft", found.columns)
        num = len(rows)
        result = shape(Rows(rows, list(range(num)), [None] * num, [b""] * num), 0, spec)
        assert (result.batch.num_rows, result.rejects) == (num, [])
    kto = entries["kto_en_demo"]
    assert (kto.format, kto.columns) == (
        "kto",
        (("conversations", "messages"), ("system", ""), ("tools", "")),
    )
