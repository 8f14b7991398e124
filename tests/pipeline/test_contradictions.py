from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import small
from hypothesis import given
from hypothesis import strategies as st

from datamix.pipeline.contradictions import contradictory

EDGES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20)


def found(*edges: tuple[int, int]) -> list[bool]:
    better, worse = np.array(edges, np.uint64).reshape(-1, 2).T
    return contradictory(better, worse).tolist()


def test_two_pairs_the_other_way_round_contradict_each_other() -> None:
    assert found((1, 2), (2, 1), (1, 2), (3, 2)) == [True, True, True, False]


def test_a_circle_of_three_is_found_and_what_hangs_on_it_stays() -> None:
    assert found((1, 2), (2, 3), (3, 1), (3, 4), (5, 1)) == [True, True, True, False, False]


def test_a_way_between_two_circles_is_on_none() -> None:
    assert found((1, 2), (2, 1), (2, 3), (3, 4), (4, 3)) == [True, True, False, True, True]


def test_an_answer_equal_to_its_rival_is_no_circle() -> None:
    assert found((1, 1)) == [False]
    assert found() == []


@given(EDGES)
def test_a_pair_contradicts_where_its_worse_answer_leads_back(edges: list[tuple[int, int]]) -> None:
    reach = np.eye(8, dtype=bool)
    for a, b in edges:
        reach[a, b] = True
    for middle in range(8):  # Warshall's closure
        reach |= reach[:, middle : middle + 1] & reach[middle : middle + 1, :]
    assert found(*edges) == [bool(a != b and reach[b, a]) for a, b in edges]


def test_a_build_removes_contradictions_across_sources_when_asked(tmp_path: Path) -> None:
    def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    plain = [pair(f"第{i}个问题是什么？", f"好的回答{i}", f"坏的回答{i}") for i in range(20)]
    small.write_jsonl(tmp_path / "one.jsonl", [pair("A or B?", "Take A.", "Take B."), *plain])
    small.write_jsonl(
        tmp_path / "two.jsonl", [pair("A or B?", "Take B.", "Take A."), pair("Other?", "Yes.", "No.")]
    )
    path = small.recipe(
        tmp_path,
        kind="preference",
        sources={"one": {"path": "one.jsonl"}, "two": {"path": "two.jsonl"}},
        clean=[{"preference_checks": {"contradictions": True}}],
        dedupe={"exact": True},
        validation=None,
        encode={"max_length": 256},
    )
    done = small.datamix("build", path, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    removed = pq.read_table(tmp_path / "out" / "removed").to_pylist()
    wrong = [(row["source"], row["record"]) for row in removed if row["reason"] == "contradictory"]
    assert sorted(wrong) == [("one", 0), ("two", 0)]
    assert small.datamix("verify", tmp_path / "out").returncode == 0
