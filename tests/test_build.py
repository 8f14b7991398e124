"""Builds from end to end: as a user runs them, with what they leave counted again."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from small import GENERAL, ROOT, alpaca, datamix, fingerprint, recipe, write_jsonl

from datamix.audit import verify
from datamix.core.errors import DataError, RecipeError
from datamix.jobs.build import build
from datamix.pipeline.steps import Options
from datamix.pipeline.store import Store
from datamix.recipe import Recipe


def run(path: Path, out: Path, **options: Any) -> dict[str, Any]:
    return build(Recipe.read(path), Options(out, out.parent / "cache", workers=1, **options))


def kept(cache: Path, name: str) -> set[str]:
    """Keys of the cached results that hold a file of this name."""
    store = Store(cache / "store")
    return {key for key in store.finished() if (store.folder(key) / name).exists()}


def failed(out: Path) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in verify(out) if not check.ok]


@pytest.mark.parametrize("kind", ["pretrain", "sft", "preference", "prompt"])
def test_every_sample_recipe_builds_a_set_that_verifies(kind: str, tmp_path: Path) -> None:
    manifest = run(ROOT / "samples" / f"{kind}.yaml", tmp_path / kind)
    assert failed(tmp_path / kind) == []
    for source in manifest["sources"].values():
        ledger = source["records"]
        assert ledger["read"] == sum(n for fate, n in ledger.items() if fate != "read")
    assert manifest["mixture"]["max_prefix_deviation"] <= manifest["mixture"]["bound"]


def test_broken_sample_records_stand_in_rejects_with_their_bytes(tmp_path: Path) -> None:
    run(ROOT / "samples" / "sft.yaml", tmp_path / "sft")
    rejects = [json.loads(line) for line in (tmp_path / "sft/rejects/tools.jsonl").read_text().splitlines()]
    lines = (ROOT / "samples/sft/broken.jsonl").read_bytes().split(b"\n")
    assert len(rejects) >= 10
    for reject in rejects:
        assert reject["file"] == "sft/broken.jsonl"
        assert reject["reason"]
        if "raw_encoding" not in reject:
            assert reject["raw"].strip().encode() == lines[reject["line"] - 1].strip()


def test_weights_change_and_no_text_is_read_or_tokenized_again(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    first = run(path, tmp_path / "a")
    before = {
        name: kept(tmp_path / "cache", name)
        for name in ("records.arrow", "tokens.arrow", "signatures.arrow", "train.arrow")
    }
    text = path.read_text().replace("0.7", "0.5").replace('"weight": 0.3', '"weight": 0.5')
    path.write_text(text)
    second = run(path, tmp_path / "b")
    assert {name: kept(tmp_path / "cache", name) for name in before} == before
    assert second["sources"]["medical"]["share"]["asked"] == pytest.approx(0.5)
    assert first["sources"]["medical"]["share"]["asked"] == pytest.approx(0.3)
    assert failed(tmp_path / "b") == []


def test_a_new_file_costs_that_file_alone(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    run(path, tmp_path / "a")
    before = kept(tmp_path / "cache", "tokens.arrow")
    write_jsonl(tmp_path / "more.jsonl", alpaca(["另一个问题"], 50))
    path.write_text(
        path.read_text().replace('"path": "general.jsonl"', '"path": ["general.jsonl", "more.jsonl"]')
    )
    manifest = run(path, tmp_path / "b")
    after = kept(tmp_path / "cache", "tokens.arrow")
    assert before <= after
    store = Store(tmp_path / "cache" / "store")
    receipts = [store.find(key) for key in after - before]
    encoded = sum(receipt.counts["rows"] for receipt in receipts if receipt)
    assert 50 <= encoded <= 350  # the new file, with those of its task at most; never the 200 of medical
    assert manifest["sources"]["general"]["records"]["read"] == 350


def test_workers_hash_seed_locale_time_zone_and_place_change_no_byte(tmp_path: Path) -> None:
    settings = [
        ("1", {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C"}),
        ("2", {"PYTHONHASHSEED": "7", "TZ": "Asia/Shanghai", "LC_ALL": "C.UTF-8"}),
    ]
    prints = []
    for number, (workers, environment) in enumerate(settings):
        path = recipe(tmp_path / f"place{'/deeper' * number}")
        out = tmp_path / str(number) / "set"
        done = datamix("build", path, "-o", out, "--workers", workers, **environment)
        assert done.returncode == 0, done.stderr
        prints.append(fingerprint(out))
    assert prints[0] == prints[1]


def test_a_finished_set_is_left_alone_and_another_recipe_needs_overwrite(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    first = run(path, tmp_path / "set")
    stamp = (tmp_path / "set/manifest.json").stat().st_mtime_ns
    assert run(path, tmp_path / "set") == first
    assert (tmp_path / "set/manifest.json").stat().st_mtime_ns == stamp
    path = recipe(tmp_path, seed=7)
    with pytest.raises(RecipeError, match="--overwrite"):
        run(path, tmp_path / "set")
    assert (tmp_path / "set/manifest.json").stat().st_mtime_ns == stamp
    assert run(path, tmp_path / "set", overwrite=True)["seed"] == 7
    assert failed(tmp_path / "set") == []


def test_a_changed_input_builds_the_set_anew(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    run(path, tmp_path / "set")
    write_jsonl(tmp_path / "general.jsonl", alpaca(GENERAL, 310))
    manifest = run(path, tmp_path / "set")
    assert manifest["sources"]["general"]["records"]["read"] == 310
    assert failed(tmp_path / "set") == []


def test_a_foreign_folder_is_never_touched(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="not a training set"):
        run(path, tmp_path / "set", overwrite=True)
    assert (tmp_path / "set/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer": "nowhere/at/all"}, "tokenizer"),
        ({"sources": {"a": {"path": "generel.jsonl"}}}, "general.jsonl"),
        ({"sources": {"a": {"path": "general.jsonl", "weight": 0.9}, "b": {"path": "medical.jsonl", "weight": 0.1}}, "mix": {"size": "10M"}}, "max_epochs"),
        ({"clean": [{"lenght": {"min_chars": 2}}]}, "length"),
        ({"clean": [{"length": {"min_char": 2}}]}, "min_chars"),
        ({"write": ["parquett"]}, "parquet"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_told_in_one_paragraph(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    done = datamix("build", recipe(tmp_path, **changes), "-o", tmp_path / "set", "--workers", "1")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_a_tokenizer_without_a_chat_template_names_the_cure(tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((ROOT / "samples/tokenizer/tokenizer.json").read_bytes())
    with pytest.raises(RecipeError, match="chat_template"):
        run(recipe(tmp_path, tokenizer="bare"), tmp_path / "set")


def test_an_empty_source_is_data_that_cannot_be_used(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    (tmp_path / "medical.jsonl").write_text("")
    with pytest.raises(DataError, match="medical is empty"):
        run(path, tmp_path / "set")


def test_a_cut_archive_is_named(tmp_path: Path) -> None:
    path = recipe(tmp_path, sources={"general": {"path": "general.jsonl.gz"}})
    whole = gzip.compress((tmp_path / "general.jsonl").read_bytes(), mtime=0)
    (tmp_path / "general.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"general\.jsonl\.gz"):
        run(path, tmp_path / "set")


def test_too_many_rejects_stop_the_build_with_the_first_of_them(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    with (tmp_path / "general.jsonl").open("a") as stream:
        stream.write("not json\n" * 100)
    with pytest.raises(DataError, match="line 301"):
        run(path, tmp_path / "set")


def test_the_second_build_into_a_folder_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    import fcntl

    path = recipe(tmp_path)
    (tmp_path / "set/.building").mkdir(parents=True)
    with (tmp_path / "set/.building/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        done = datamix("build", path, "-o", tmp_path / "set", "--workers", "1")
    assert done.returncode == 2
    assert "4711" in done.stderr


def test_blocks_are_full_and_joined_in_concat_pretraining(tmp_path: Path) -> None:
    texts = [
        {"text": f"第 {i} 篇。 " + " ".join(f"word{(i * 7 + k) % 50}" for k in range(30 + i % 9))}
        for i in range(120)
    ]
    write_jsonl(tmp_path / "texts.jsonl", texts)
    path = recipe(tmp_path, kind="pretrain", sources={"t": {"path": "texts.jsonl"}}, encode={"max_length": 64, "pack": "concat"},
                  dedupe=None, validation=None)  # fmt: skip
    run(path, tmp_path / "set")
    assert failed(tmp_path / "set") == []
    table = pq.read_table(tmp_path / "set/train/00000.parquet")
    lengths = sorted(len(ids) for ids in table["input_ids"].to_pylist())
    assert set(lengths[1:]) == {64}
    assert table.column_names[-3:] == ["input_ids", "labels", "attention_mask"]


def test_kept_fields_travel_to_the_rows(tmp_path: Path) -> None:
    rows = [{**record, "department": f"内科{i % 3}"} for i, record in enumerate(alpaca(GENERAL, 40))]
    path = recipe(tmp_path, sources={"g": {"path": "kept.jsonl", "keep_meta": ["department"]}}, dedupe=None, validation=None,
                  encode={"max_length": 256})  # fmt: skip
    write_jsonl(tmp_path / "kept.jsonl", rows)
    run(path, tmp_path / "set")
    table = pq.read_table(tmp_path / "set/train/00000.parquet")
    for row in table.select(["records", "meta"]).to_pylist():
        assert json.loads(row["meta"])["department"] == rows[row["records"][0]["record"]]["department"]


def test_a_validation_file_is_held_out_and_its_copies_leave_training(tmp_path: Path) -> None:
    path = recipe(tmp_path, validation={"path": "dev.jsonl"})
    dev = alpaca(GENERAL, 300)[:20]
    write_jsonl(tmp_path / "dev.jsonl", dev)
    manifest = run(path, tmp_path / "set")
    assert failed(tmp_path / "set") == []
    assert manifest["sources"]["validation"]["records"]["validation"] == 20
    assert manifest["sources"]["general"]["removed_by"]["leaked"] >= 20
    assert pq.read_table(tmp_path / "set/validation").num_rows > 0


def test_records_of_earlier_files_are_removed_from_the_new_ones_only(tmp_path: Path) -> None:
    path = recipe(tmp_path, dedupe={"exact": True, "against": ["old.jsonl"]}, validation=None)
    write_jsonl(tmp_path / "old.jsonl", alpaca(GENERAL, 300)[:50])
    manifest = run(path, tmp_path / "set")
    assert failed(tmp_path / "set") == []
    assert manifest["sources"]["general"]["removed_by"] == {"exact": 50}
    removed = pq.read_table(tmp_path / "set/removed/general.parquet").to_pylist()
    assert {r["kept_source"] for r in removed if r["reason"] == "exact"} == {"old.jsonl"}


def test_lines_that_stand_in_many_documents_are_cut_from_all(tmp_path: Path) -> None:
    notice = "版权所有 Copyright notice: all rights reserved."
    texts = [
        {"text": f"第 {i} 篇 about topic {i * 37 % 101}, written once.\n{notice}\nIts end {i}."}
        for i in range(60)
    ]
    write_jsonl(tmp_path / "texts.jsonl", [*texts, {"text": notice}])
    path = recipe(tmp_path, kind="pretrain", sources={"t": {"path": "texts.jsonl"}}, encode={"max_length": 64},
                  dedupe={"exact": True, "lines": {"max_documents": 20}}, validation=None)  # fmt: skip
    manifest = run(path, tmp_path / "set")
    assert failed(tmp_path / "set") == []
    assert manifest["sources"]["t"]["cleaned_by"] == {"repeated_lines": 1}
    assert manifest["sources"]["t"]["mended_by"]["repeated_lines"] == 61
    shown = datamix("inspect", tmp_path / "set", "--row", "0").stdout
    assert "written once" in shown
    assert "Copyright" not in shown


def test_records_of_an_earlier_set_are_not_trained_again(tmp_path: Path) -> None:
    old = recipe(tmp_path / "old", sources={"general": {"path": "general.jsonl"}}, validation=None)
    first = build(Recipe.read(old), Options(tmp_path / "first", tmp_path / "cache", workers=1))
    path = recipe(tmp_path, dedupe={"exact": True, "against": ["first"]}, validation=None)
    write_jsonl(tmp_path / "general.jsonl", alpaca(GENERAL, 500))
    manifest = build(Recipe.read(path), Options(tmp_path / "second", tmp_path / "cache", workers=1))
    used = first["sources"]["general"]["records"]["used"]
    assert manifest["sources"]["general"]["removed_by"] == {"exact": used}
    assert failed(tmp_path / "second") == []


def test_all_that_a_recipe_names_is_looked_for_before_any_work(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    text = (
        "name: x\nkind: sft\ntokenizer: nowhere\nsources:\n  a: {path: generel.jsonl}\n  b: {path: '*.gz'}\n"
        "clean:\n  - normalise: {unicode: NFC}\n  - length: {min_chars: two}\n"
        "decontaminate: {against: [{path: exam.jsonl}]}\nencode: {max_length: 64}\nwrite: [parquet, megatorn]\n"
    )
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        run(path, tmp_path / "set")
    told = str(caught.value).splitlines()
    wanted = {
        3: "nowhere",
        5: "general.jsonl",
        6: "*.gz",
        8: "normalize",
        9: "min_chars",
        10: "exam.jsonl",
        12: "megatron",
    }
    for line, word in wanted.items():
        assert any(f"line {line}:" in t and word in t for t in told), (line, word, told)
    assert not (tmp_path / "set").exists()
    assert not (tmp_path / "cache").exists()


def test_what_the_template_refused_is_said_in_its_own_words(tmp_path: Path) -> None:
    path = recipe(tmp_path, chat_template="picky.jinja")
    template = (tmp_path / "tokenizer" / "chat_template.jinja").read_text()
    refusal = "{% for m in messages %}{% if '(1' in (m.content or '') %}{{ raise_exception('no ones') }}{% endif %}{% endfor %}"
    (tmp_path / "picky.jinja").write_text(refusal + template)
    made = datamix("build", path, "-o", tmp_path / "out")
    assert made.returncode == 0, made.stderr
    assert "records of general: the chat template refuses them: no ones (111)." in made.stdout
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["sources"]["general"]["noticed"] == {"template: no ones": 111}


def test_a_pool_of_workers_builds_what_one_process_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path)
    build(Recipe.read(path), Options(tmp_path / "one/set", tmp_path / "one/cache", workers=1))
    monkeypatch.setattr("datamix.pipeline.engine._SMALL_BYTES", 0)
    build(Recipe.read(path), Options(tmp_path / "two/set", tmp_path / "two/cache", workers=2))
    assert fingerprint(tmp_path / "two/set") == fingerprint(tmp_path / "one/set")
