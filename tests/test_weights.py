"""The column ``weight``: one average of the loss becomes the other, in every form of a set, and is recounted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import recipe

import datamix
from datamix.audit import verify
from datamix.audit.row_laws import RowWeights
from datamix.core.errors import RecipeError

AS_EXAMPLES = {"trainer": "token", "wanted": "example"}
AS_TOKENS = {"trainer": "example", "wanted": "token"}
LOOSE: dict[str, Any] = {"max_length": 256, "pack": "none"}


def built(folder: Path, name: str, loss_norm: Any, write: list[str], **changes: Any) -> Path:
    made = recipe(folder, mix={"loss_norm": loss_norm}, write=write, **changes)
    datamix.build(made, folder / name, cache=folder / ".datamix", workers=1)
    return folder / name


def trained(rows: pa.Table) -> np.ndarray:
    return np.array([sum(label != -100 for label in labels) for labels in rows.column("labels").to_pylist()])


def weights(rows: pa.Table) -> np.ndarray:
    assert rows.schema.field("weight").type == pa.float32()
    return rows.column("weight").to_numpy()


@pytest.mark.parametrize("encode", [LOOSE, {"max_length": 256, "pack": "best_fit"}], ids=["loose", "packed"])
def test_weighed_tokens_count_as_if_every_row_counted_alike(tmp_path: Path, encode: dict[str, Any]) -> None:
    out = built(tmp_path, "set", AS_EXAMPLES, ["parquet"], encode=encode)
    rows = pq.read_table(out / "train")
    loss, weight = trained(rows), weights(rows)
    assert len(set(loss.tolist())) > 5
    assert weight * loss == pytest.approx(np.full(len(rows), loss.mean()))
    assert (weight * loss).sum() / loss.sum() == pytest.approx(1)  # over what the trainer averages
    assert not [check for check in verify(out) if not check.ok]
    assert "weights" in [check.name for check in verify(out)]


def test_weighed_rows_count_as_if_every_token_counted_alike(tmp_path: Path) -> None:
    out = built(tmp_path, "set", AS_TOKENS, ["parquet"], encode=LOOSE)
    rows = pq.read_table(out / "train")
    loss, weight = trained(rows), weights(rows)
    assert weight == pytest.approx(loss / loss.mean())
    assert weight.mean() == pytest.approx(1)
    held = pq.read_table(out / "validation")
    assert weights(held) == pytest.approx(trained(held) / loss.mean())  # on the scale of train/
    assert not [check for check in verify(out) if not check.ok]


def test_a_weight_changes_nothing_else(tmp_path: Path) -> None:
    plain = pq.read_table(built(tmp_path, "plain", "token", ["parquet"]) / "train")
    rows = pq.read_table(built(tmp_path, "weighed", AS_EXAMPLES, ["parquet"]) / "train")
    assert "weight" not in plain.column_names
    assert rows.drop_columns("weight").equals(plain)


def test_formats_that_carry_all_columns_carry_the_weight_and_others_do_without(tmp_path: Path) -> None:
    out = built(tmp_path, "set", AS_EXAMPLES, ["parquet", "arrow", "jsonl", "mds", "litdata", "trl", "npy"])
    want = weights(pq.read_table(out / "train")).tolist()
    rows = datamix.open(out)  # of its Arrow files
    assert [row["weight"] for row in rows] == want
    (lines,) = (out / "jsonl" / "train").iterdir()
    assert [json.loads(line)["weight"] for line in lines.read_text().splitlines()] == want
    batches = list(rows.batches(7))
    assert np.concatenate([batch["weight"] for batch in batches]).tolist() == want
    assert {batch["weight"].dtype for batch in batches} == {np.dtype(np.float32)}
    assert {o["format"] for o in rows.manifest["outputs"]} >= {"mds", "litdata", "trl", "npy"}


def test_a_virtual_set_weighs_as_the_written_one(tmp_path: Path) -> None:
    want = weights(pq.read_table(built(tmp_path, "set", AS_EXAMPLES, ["parquet"]) / "train")).tolist()
    virtual = datamix.open(built(tmp_path, "virtual", AS_EXAMPLES, []))
    assert [row["weight"] for row in virtual] == want
    joined = virtual.batches(5, packed=True)
    assert np.concatenate([batch["weight"] for batch in joined]).tolist() == want
    assert not [check for check in verify(tmp_path / "virtual") if not check.ok]


@pytest.mark.parametrize("write", [["parquet"], ["arrow"], []], ids=["parquet", "arrow", "virtual"])
def test_tensors_come_with_the_weights_of_their_rows(tmp_path: Path, write: list[str]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
    rows = datamix.open(built(tmp_path, "set", AS_EXAMPLES, write, encode=LOOSE))
    products = []
    for rank in range(2):
        for batch in rows.torch(3, rank=rank, world_size=2):
            assert batch["weight"].dtype == torch.float32
            products += (batch["weight"] * (batch["labels"] != -100).sum(1)).tolist()
    assert len(products) == len(rows)
    assert products == pytest.approx([products[0]] * len(products))


def test_the_share_of_the_loss_is_that_after_weighing(tmp_path: Path) -> None:
    manifest = datamix.open(built(tmp_path, "set", AS_EXAMPLES, ["parquet"])).manifest
    rows = sum(s["emitted"]["rows"] for s in manifest["sources"].values())
    for source in manifest["sources"].values():
        assert source["share"]["effective"] == pytest.approx(source["emitted"]["rows"] / rows)


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        ([2.0, 1.0, 0.0], ""),
        ([2.0, 1.1, 0.0], "as if rows trained 22 tokens"),
        ([4.0, 2.0, 0.0], "as if rows trained 40 tokens"),
        ([2.0, 1.0, 1.0], "row 2 weighs 1"),
        ([2.0, None, 0.0], "row 1 weighs nan"),
        ([2.0, -1.0, 0.0], "row 1 weighs -1"),
    ],
)
def test_a_weight_that_does_not_follow_is_found(weight: list[float | None], told: str) -> None:
    held, loss = RowWeights("token"), np.array([10, 20, 0])
    held.count(np.array([10, 20, 0, 30]))
    held.add(pa.array(weight, pa.float32()), loss, "part-00000.parquet row", 0)
    check = held.check()
    assert check.ok == (not told)
    assert told in check.detail


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mix": {"loss_norm": {"trainer": "token", "wanted": "token"}}}, "write loss_norm: token"),
        (
            {"mix": {"loss_norm": AS_TOKENS}, "kind": "preference", "encode": LOOSE},
            "preference rows have none",
        ),
    ],
)
def test_weights_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        datamix.Recipe.read(recipe(tmp_path, **changes))
