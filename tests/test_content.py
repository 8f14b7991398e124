"""Equal rows have equal digests, however they came cut; other rows have others."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pyarrow as pa
from handmade import content_digest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamix.core.content import files_digest

Rows = list[dict[str, Any]]

_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "source": st.sampled_from(["general", "医疗", "", None]),
            "ids": st.none() | st.lists(st.integers(-5, 2**31 - 1), max_size=4),
            "records": st.lists(st.fixed_dictionaries({"file": st.none() | st.integers(0, 3), "name": st.text(max_size=2)}), max_size=3),
            "label": st.sampled_from([True, False, None]),
            "margin": st.none() | st.floats(allow_nan=False),
        }
    ),
    max_size=12,
)  # fmt: skip
_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("records", pa.list_(pa.struct([("file", pa.int32()), ("name", pa.string())]))),
        ("label", pa.bool_()),
        ("margin", pa.float64()),
    ]
)


@given(_ROWS, st.lists(st.integers(0, 12), max_size=4))
@settings(max_examples=150, deadline=None)
def test_the_content_digest_sees_no_batch_borders(rows: Rows, borders: list[int]) -> None:
    table = pa.Table.from_pylist(rows, _SCHEMA).combine_chunks()
    cuts = sorted({0, len(rows), *(b for b in borders if b < len(rows))})
    parts = [b for a, z in itertools.pairwise(cuts) for b in table.slice(a, z - a).to_batches()]
    whole = table.to_batches() or [pa.RecordBatch.from_pylist([], _SCHEMA)]
    assert content_digest(parts or whole) == content_digest(whole)


@given(_ROWS, _ROWS)
@settings(max_examples=150, deadline=None)
def test_other_rows_give_another_content_digest(left: Rows, right: Rows) -> None:
    digests = [content_digest([pa.RecordBatch.from_pylist(rows, _SCHEMA)]) for rows in (left, right)]
    as_bits = [
        json.dumps(rows, sort_keys=True) for rows in (left, right)
    ]  # tells 0.0 from -0.0, as the digest does
    assert (digests[0] == digests[1]) == (as_bits[0] == as_bits[1])


def test_the_content_digest_sees_the_split_of_lists_and_strings() -> None:
    def digest(values: list[Any], kind: pa.DataType) -> str:
        return content_digest([pa.record_batch({"x": pa.array(values, kind)})])

    assert digest(["ab", "c"], pa.string()) != digest(["a", "bc"], pa.string())
    assert digest([[1, 2], [3]], pa.list_(pa.int32())) != digest([[1], [2, 3]], pa.list_(pa.int32()))
    assert digest([[], None], pa.list_(pa.int32())) != digest([None, []], pa.list_(pa.int32()))
    assert digest(["a", "b"], pa.string()) == digest(["a", "b"], pa.large_string())


def test_the_content_digest_ignores_what_stands_below_a_null() -> None:
    clean = pa.array([[1], None, [2]], pa.list_(pa.int32()))
    dirty = pa.ListArray.from_arrays(
        pa.array([0, 1, 3, 4], pa.int32()),
        pa.array([1, 9, 9, 2], pa.int32()),
        mask=pa.array([False, True, False]),
    )
    assert clean.equals(dirty)
    assert content_digest([pa.record_batch({"x": clean})]) == content_digest([pa.record_batch({"x": dirty})])


def test_the_content_digest_of_known_rows_stays_what_it_was() -> None:
    batch = pa.RecordBatch.from_pylist([{"source": "医疗", "ids": [1, -100], "records": [{"file": 0, "name": "a"}], "label": None, "margin": 0.5}], _SCHEMA)  # fmt: skip
    assert content_digest([batch]) == "8cc4b5e1dbbec490ec409a822ff1d993fb9c4f3c5acc92f6fb3497ee1cac0aee"


def test_the_digest_of_a_set_sees_the_order_of_its_files() -> None:
    assert files_digest(["a", "b"]) != files_digest(["b", "a"])
    assert files_digest(["a"]) != files_digest(["a", "a"]) != files_digest([])
