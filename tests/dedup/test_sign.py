"""Signatures of records: each keeps its place, whatever it lacks."""

import pyarrow as pa


def test_records_without_system_turn_and_tools_keep_their_place_in_the_context() -> None:
    from datamix.core.records import SCHEMAS
    from datamix.dedup.text_columns import contexts

    def record(number: int, system: str | None, tools: str | None) -> dict[str, object]:
        turns = [{"role": "system", "content": system}] if system else []
        return {
            "slice": 0,
            "record": number,
            "messages": [*turns, {"role": "user", "content": "q"}],
            "tools": tools,
        }

    rows = [
        record(0, None, None),
        record(1, "s", None),
        record(2, None, None),
        record(3, None, "[]"),
        record(4, "s", "[]"),
    ]
    found = contexts(pa.RecordBatch.from_pylist(rows, SCHEMAS["sft"]), "sft").to_pylist()
    assert [text is None for text in found] == [True, False, True, False, False]
    assert len({found[1], found[3], found[4]}) == 3


def test_a_text_has_one_key_however_arrow_stores_it() -> None:
    from datamix.core.hashing import content_keys

    words = ["你好", "", None, "hello", "x" * 5000]
    plain = content_keys(pa.array(words))
    assert (
        plain[1].as_py().hex() == "99aa06d3014798d86001c324468d497f"
    )  # XXH3_128bits of nothing, as published
    assert plain[2] == plain[1]
    assert len(set(plain.to_pylist())) == 4
    assert content_keys(pa.array(words, pa.large_string())).equals(plain)
    assert content_keys(pa.array(words).dictionary_encode()).equals(plain)
    assert content_keys(pa.array(words, pa.string_view())).equals(plain)
    assert content_keys(pa.array(["before", *words, "after"]).slice(1, 5)).equals(plain)
    assert len(content_keys(pa.array([], pa.string()))) == 0
