"""Rows, records and removed pairs as a person sees them in a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import handmade
import pyarrow.parquet as pq
import pytest

from datamix.core.errors import DataError, RecipeError, visible
from datamix.reporting.decode import Decoder
from datamix.reporting.inspection import show

_GREEN = re.compile(r"\x1b\[32m(.*?)\x1b\[0m", re.DOTALL)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    root = tmp_path_factory.mktemp("shown")

    def get(kind: str, pack: str) -> Path:
        folder = root / f"{kind}-{pack}"
        if not folder.exists():
            folder.mkdir()
            handmade.build(folder / "out", kind, pack)
        return folder / "out"

    return get


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_row_shows_its_text_with_what_is_trained_coloured(made: Callable[[str, str], Path]) -> None:
    out = made("sft", "none")
    row = pq.read_table(out / "train").slice(2, 1).to_pylist()[0]
    text = show(out, 2, False, False)
    trained = [label for label in row["labels"] if label != -100]
    assert "".join(_GREEN.findall(text)) == Decoder(out).text(trained)
    assert Decoder(out).text(row["input_ids"]).rstrip() in _plain(text)
    assert (
        f"source {row['source']}   stage main   {len(row['labels'])} tokens, {len(trained)} trained"
        in _plain(text)
    )


def test_a_packed_row_shows_where_each_document_begins(made: Callable[[str, str], Path]) -> None:
    out = made("sft", "best_fit")
    row = pq.read_table(out / "train").to_pylist()[0]
    text = _plain(show(out, 0, False, False))
    first, second = row["seq_lengths"][:2]
    assert f"tokens 0 to {first - 1}, positions 0 to {first - 1}" in text
    assert f"tokens {first} to {first + second - 1}, positions 0 to {second - 1}" in text
    assert f"data/general_0.jsonl, record {row['records'][0]['record']}" in text


def test_without_a_number_the_first_rows_are_shown(made: Callable[[str, str], Path]) -> None:
    text = _plain(show(made("pretrain", "concat"), None, False, False))
    assert [f"Row {n} of 14" in text for n in range(4)] == [True, True, True, False]
    assert "11 more rows: choose one with --row N." in text


def test_a_pair_shows_prompt_and_both_completions(made: Callable[[str, str], Path]) -> None:
    text = _plain(show(made("preference", "none"), 0, False, False))
    assert re.search(r"-- data/\S+, record \d+ .*-- chosen .*-- rejected ", text, re.DOTALL)


def test_one_shard_of_a_set_is_shown_by_itself(made: Callable[[str, str], Path]) -> None:
    out = made("sft", "none")
    shard = out / "train/part-00001.parquet"
    assert f"Row 0 of {pq.read_metadata(shard).num_rows}" in _plain(show(shard, 0, False, False))


def test_a_row_that_is_not_there_is_told_with_the_rows_that_are(made: Callable[[str, str], Path]) -> None:
    with pytest.raises(RecipeError, match=r"--row 99: there are 14 rows, numbered from 0 to 13"):
        show(made("pretrain", "concat"), 99, False, False)


def test_statistics_count_the_set(made: Callable[[str, str], Path]) -> None:
    out = made("sft", "best_fit")
    manifest = json.loads((out / "manifest.json").read_text())
    text = _plain(show(out, None, True, False))
    for name, source in manifest["sources"].items():
        line = next(x for x in text.splitlines() if x.strip().startswith(name))
        assert f"{source['emitted']['tokens']:,}" in line
        assert f"{source['share']['loss_tokens']:.2%}" in line
    ids = {i for row in pq.read_table(out / "train")["input_ids"].to_pylist() for i in row}
    assert f"{len(ids):,} of {manifest['tokenizer']['vocab_size']:,} ids are used" in text


def test_removed_records_stand_beside_what_was_kept(
    made: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = made("sft", "none")
    monkeypatch.chdir(out.parent)
    text = show(out, None, False, True)
    plain = _plain(text)
    assert "7 records removed" in plain
    assert "near   similarity 0.875" in plain
    assert "removed  general, data/general_0.jsonl, record 3" in plain
    assert "kept     general, data/general_0.jsonl, record 12" in plain
    assert "写一首关于秋天的短诗" in plain  # record 3
    assert "How do plants eat <light>?" in plain  # record 12
    assert "\x1b[1;31m" in text
    assert "\x1b[1;32m" in text


def test_removed_records_are_named_where_their_files_have_changed(
    made: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = handmade.build(tmp_path / "out", "sft")
    for path in (tmp_path / "data").iterdir():
        path.write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    text = _plain(show(out, 0, False, True))
    assert "data/general_0.jsonl, record 2" in text
    assert "its input file is not available from here, or has changed" in text


def test_a_file_of_records_is_shown_as_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    turns = [
        {"role": "user", "content": "高血压能喝咖啡吗?"},
        {"role": "assistant", "content": "可以少量饮用。"},
    ]
    path.write_text(json.dumps({"messages": turns}, ensure_ascii=False) + "\n{broken\n", encoding="utf-8")
    text = show(path, None, False, False)
    assert "jsonl, utf-8   format messages (sft)" in _plain(text)
    assert "user: 高血压能喝咖啡吗?\nassistant: 可以少量饮用。" in _plain(text)
    assert "可以少量饮用。" in _GREEN.findall(text)[0]
    assert "-- record 1\njson_syntax:" in _plain(text)


def test_what_is_asked_of_the_wrong_thing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    with pytest.raises(RecipeError, match="There is nothing at"):
        show(tmp_path / "nowhere", None, False, False)
    with pytest.raises(RecipeError, match="holds no manifest"):
        show(tmp_path, None, False, False)
    with pytest.raises(RecipeError, match="are for finished sets"):
        show(path, None, False, True)
    with pytest.raises(RecipeError, match="has no record of that number"):
        show(path, 7, False, False)
    path.write_text('{"nobody": 1}\n')
    with pytest.raises(DataError, match="no known format"):
        show(path, None, False, False)


def test_a_set_without_its_tokenizer_says_so(tmp_path: Path) -> None:
    out = handmade.build(tmp_path / "out", "sft")
    (out / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer.json is missing"):
        show(out, 0, False, False)


def test_text_cannot_steer_the_terminal() -> None:
    assert visible("a\x1b[31mb\x07\tc\n\x7f\x9bd") == "a␛[31mb␇\tc\n␡\ufffdd"
    assert visible("abc\u202edef") == "abc<U+202E>def"
    assert visible("中文 émoji 👩‍⚕️") == "中文 émoji 👩‍⚕️"


def test_a_page_of_rows_is_html(made: Callable[[str, str], Path]) -> None:
    page = show(made("sft", "none"), 3, False, False, html=True)
    assert page.startswith("<!doctype html>")
    assert "<mark>" in page
    assert page.count('<details class="row" open>') == 71  # of 74 rows, those from row 3 on


def test_stats_of_a_file_say_what_each_cleaning_step_would_do(tmp_path: Path) -> None:
    rows = [
        {"instruction": "你好", "input": "", "output": "你好，有什么可以帮你？"},
        {"instruction": "Call me", "input": "", "output": "Write to ann@example.com or 13812345678 today."},
        {"instruction": "Say it", "input": "", "output": "Say it"},
        {"instruction": "邮箱？", "input": "", "output": "请发邮件到 bob@example.com，谢谢。"},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*rows, {"output": 1}]))
    lines = _plain(show(path, None, True, False)).splitlines()
    assert lines[0].endswith("mine.jsonl: 4 sft records, 1 more do not fit")
    assert "length  nothing" in lines
    checks = lines[lines.index("sft_checks") + 1]
    assert checks.split()[:5] == ["drop", "answer_equals_question", "1", "25.0%", "record"]
    assert "record 2: Say it" in checks
    email = next(line for line in lines if line.startswith("  fix  email"))
    assert email.split()[2:4] == ["2", "50.0%"]
    assert "record 3" in email
    assert "[EMAIL]" in email
    assert not any(line.startswith("preference_checks") for line in lines)
    assert path.read_text().count("\n") == 5
