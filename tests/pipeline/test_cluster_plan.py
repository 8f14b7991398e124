"""``plan --cluster``: the task graph of a build, simulated."""

from __future__ import annotations

import json
from pathlib import Path

import small
from hypothesis import given
from hypothesis import strategies as st

from datamix.pipeline.cluster_plan import Cluster, makespan, simulate
from datamix.pipeline.plan_values import SourcePlan
from datamix.pipeline.scan import InputFile


def source(name: str, num_files: int, num_bytes: int, records: float) -> SourcePlan:
    most = {"records": 1, "tokens": 4096, "loss_tokens": 4096}
    tokens = num_bytes / 4
    return SourcePlan(
        name, False, "estimate", num_files, records, tokens, tokens / 2, tokens / 4096, most, most, num_bytes
    )


def file(num_bytes: int, compression: str | None = None) -> InputFile:
    return InputFile("s", "a", "a", "0", num_bytes, "jsonl", compression, "utf-8", (), "text", "text", (), ())


@given(st.lists(st.floats(0.01, 100), max_size=60), st.integers(1, 20))
def test_no_schedule_is_shorter_than_its_longest_task_or_its_share_of_the_work(
    seconds: list[float], num_slots: int
) -> None:
    bound = max([sum(seconds) / num_slots, *seconds], default=0.0)
    assert bound - 1e-9 <= makespan(seconds, num_slots) <= 2 * bound + 1e-9
    assert makespan([3, 2, 2], 2) == 4


def test_ten_terabytes_on_sixty_four_machines() -> None:
    parts = [file(1 << 30)] * 10_000
    plan = simulate(Cluster(64, 16), [source("web", 10_000, 10_000 << 30, 1e10)], [parts], 8e12, True)
    tasks = {line["phase"]: line["tasks"] for line in plan["phases"]}
    assert tasks["prepare"] == 320_000
    assert tasks["encode"] == 640_000
    assert tasks["select"] == tasks["order"] == 1
    select = next(line for line in plan["phases"] if line["phase"] == "select")
    assert 1e12 < select["memory"] < 1.2e12  # said, not hidden: one machine must see every record
    assert plan["bytes"] > 30e12
    twice = simulate(Cluster(128, 16), [source("web", 10_000, 10_000 << 30, 1e10)], [parts], 8e12, True)
    assert plan["seconds"] / 2 < twice["seconds"] < plan["seconds"]


def test_a_file_that_cannot_be_cut_is_one_task_and_shows_in_the_time() -> None:
    whole = [source("a", 1, 100 << 30, 1e7)]
    cut = simulate(Cluster(64, 16), whole, [[file(100 << 30)]], 8e9, False)
    packed = simulate(Cluster(64, 16), whole, [[file(100 << 30, "gzip")]], 8e9, False)
    times = [{line["phase"]: line["seconds"] for line in plan["phases"]} for plan in (cut, packed)]
    assert times[0]["prepare"] < 10
    assert times[1]["prepare"] > 3600
    assert times[0]["encode"] == times[1]["encode"]


def test_the_command_shows_the_cluster_and_refuses_what_is_none(tmp_path: Path) -> None:
    recipe = small.recipe(tmp_path)
    shown = small.datamix("plan", recipe, "-o", tmp_path / "out", "--cluster", "64x16")
    assert shown.returncode == 0, shown.stderr
    assert "on 64 x 16 processors" in shown.stdout
    assert "memory a machine" in shown.stdout
    plan = json.loads(
        small.datamix("plan", recipe, "-o", tmp_path / "out", "--cluster", "2x1", "--json").stdout
    )
    assert plan["cluster"]["nodes"] == 2
    for wrong in ("64", "0x4", "ax4", "4x"):
        refused = small.datamix("plan", recipe, "-o", tmp_path / "out", "--cluster", wrong)
        assert refused.returncode == 2
        assert "such as 64x16" in refused.stderr
