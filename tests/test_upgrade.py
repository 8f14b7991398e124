"""Sets and caches of earlier versions: verified, opened and exported for good; newer ones are refused in words."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard
from small import datamix as command

import datamix
from datamix.core.errors import DataError
from datamix.pipeline.exporting import export, parse_format

ARCHIVE = Path(__file__).parent / "fixtures" / "0.1.0" / "sets.tar.zst"
CONTENT = {
    "pretrain-packed": "3e27af5e28cae311884da745f103f49c17248608a5b9eefadd5632ef8d555634",
    "pretrain-blocks": "a7bef4517c4332a1afd6c4b67d82a2c584dd62118b64d898eacd6845b0e078c7",
    "pretrain-stages": "d71f7d484af7fa54a5c1ad12ebc851e39cb1054ac6a5f7642a66f02dc1dc358c",
    "sft-packed": "cec300c695de03a87880a18738f1f0dbc6b6405cf92eb0f870efa2478c48c853",
    "sft-loose": "cd693391c60291e80c50aa17d6561270ea219b005ec87519497fcc345d14927f",
    "sft-weights": "4fc905192bd1ea5ab3383ae5cdbd94d54c5060072104d8559fc0964f1e7597fb",
    "preference-pairs": "a3f37658cbf29348a7195e1898b9abb02a026e24dc3ae06552e77e495e3cec11",
    "preference-votes": "d34e3c320ef646838cc6981ca8b340d7172c2c3af16c1e795a9f5c00c706bbfe",
    "prompt": "50f560438565073fa2fbbd93682b79db625c71b3fcefa66004578b094b747a96",
}
SETS = [*CONTENT, "sft-virtual"]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with the sets of 0.1.0 and their cache, as a user has them after an upgrade."""
    content = zstandard.ZstdDecompressor().stream_reader(ARCHIVE.read_bytes()).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(tmp_path / "old", filter="data")
    return tmp_path / "old"


def manifest(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "manifest.json").read_bytes())
    return found


@pytest.mark.parametrize("name", SETS)
def test_a_set_of_0_1_0_is_verified(old: Path, name: str) -> None:
    assert manifest(old / name)["datamix_version"] == "0.1.0"
    assert [check.detail for check in datamix.verify(old / name) if not check.ok] == []


@pytest.mark.parametrize("name", SETS)
def test_a_set_of_0_1_0_is_opened(old: Path, name: str) -> None:
    rows = datamix.open(old / name)
    table = pq.read_table(old / name.replace("virtual", "packed") / "train")
    assert len(rows) == table.num_rows > 4
    column = next(c for c in ("input_ids", "prompt_ids") if c in table.column_names)
    assert [row[column].tolist() for row in rows] == table.column(column).to_pylist()
    assert [row["source"] for row in rows] == table.column("source").to_pylist()


@pytest.mark.parametrize("name", SETS)
def test_a_set_of_0_1_0_is_exported(old: Path, name: str) -> None:
    listed = export(old / name, [parse_format("arrow"), parse_format("parquet")], None, workers=1)
    assert "arrow" in {entry["format"] for entry in listed}
    assert [check.detail for check in datamix.verify(old / name) if not check.ok] == []
    if name == "sft-virtual":
        assert pq.read_table(old / name / "train").equals(pq.read_table(old / "sft-packed" / "train"))


@pytest.mark.parametrize("name", CONTENT)
def test_the_recipe_of_a_set_of_0_1_0_gives_the_same_rows(old: Path, tmp_path: Path, name: str) -> None:
    built = datamix.build(old / f"{name}.yaml", tmp_path / name, cache=tmp_path / "cache", workers=1)
    assert built["content_sha256"] == manifest(old / name)["content_sha256"] == CONTENT[name]


def test_a_virtual_set_of_0_1_0_without_its_cache_says_how_to_get_it_back(old: Path) -> None:
    shutil.rmtree(old / ".datamix")
    with pytest.raises(DataError, match="Run the same `datamix build"):
        datamix.open(old / "sft-virtual")


def test_a_build_says_once_that_it_ignores_the_cache_of_0_1_0_and_the_old_set_stays_readable(
    old: Path,
) -> None:
    first = command("build", old / "sft-loose.yaml", "-o", old / "new", "--cache", old / ".datamix")
    assert first.returncode == 0, first.stderr
    assert (
        " ".join(first.stderr.split()).count(
            "filled by another version of datamix; what this version cannot use is"
        )
        == 1
    )
    assert manifest(old / "new")["content_sha256"] == CONTENT["sft-loose"]
    again = command("build", old / "prompt.yaml", "-o", old / "again", "--cache", old / ".datamix")
    assert again.returncode == 0, again.stderr
    assert "another version" not in again.stderr
    assert len(datamix.open(old / "sft-virtual")) == len(datamix.open(old / "sft-packed"))


def test_a_new_cache_is_not_called_old(old: Path, tmp_path: Path) -> None:
    built = command("build", old / "prompt.yaml", "-o", tmp_path / "new", "--cache", tmp_path / "cache")
    assert built.returncode == 0, built.stderr
    assert "another version" not in built.stderr


def test_pruning_keeps_what_sets_of_0_1_0_need_and_passes_over_an_entry_that_it_cannot_read(
    old: Path,
) -> None:
    (old / ".datamix" / "sets" / ("0" * 64 + ".json")).write_text('{"splits": 1}', encoding="utf-8")
    pruned = command("cache", "--prune", "--cache", old / ".datamix")
    assert pruned.returncode == 0, pruned.stderr
    assert [check.detail for check in datamix.verify(old / "sft-virtual") if not check.ok] == []


def test_a_set_of_a_newer_major_version_is_refused_in_words(old: Path) -> None:
    for name in ("sft-packed", "sft-virtual"):
        path = old / name / "manifest.json"
        path.write_text(json.dumps(manifest(old / name) | {"datamix_version": "9.1.0"}), encoding="utf-8")
        sentence = r"was built by datamix 9\.1\.0; this is .* Upgrade datamix to 9\.0 or newer"
        with pytest.raises(DataError, match=sentence):
            datamix.open(old / name)
        with pytest.raises(DataError, match=sentence):
            datamix.verify(old / name)
        with pytest.raises(DataError, match=sentence):
            export(old / name, [parse_format("jsonl")], None, workers=1)
    shown = command("inspect", old / "sft-packed")
    assert shown.returncode == 3
    assert "Upgrade datamix" in shown.stderr


def test_a_set_of_a_newer_minor_version_is_read(old: Path) -> None:
    path = old / "sft-packed" / "manifest.json"
    path.write_text(
        json.dumps(manifest(old / "sft-packed") | {"datamix_version": "0.99.0"}), encoding="utf-8"
    )
    assert len(datamix.open(old / "sft-packed")) > 4


@pytest.mark.parametrize("name", ["sft-virtual", "sft-packed"])
def test_weights_of_a_set_of_0_1_0_change_at_a_row(old: Path, name: str) -> None:
    changes = [{"row": 4, "weights": {"general": 0.5, "medical": 0.5}}]
    before, after = datamix.open(old / name), datamix.open(old / name, changes=changes)
    assert [row["input_ids"].tolist() for row in after[:4]] == [
        row["input_ids"].tolist() for row in before[:4]
    ]
    assert len(after) > 4
