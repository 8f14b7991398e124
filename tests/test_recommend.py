"""``datamix recommend`` from the outside: verdicts, options, files, and tables that are wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamix.core.errors import RecipeError
from datamix.fitting.runs import join_losses, read_runs
from datamix.jobs.recommend import Request, answer

SOURCES = ("网页:zh", "code=x, y", "书")


def write_runs(path: Path, rows: list[dict[str, Any]]) -> Path:
    header = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def swarm(num_runs: int, noise: float = 0.005, seed: int = 0, shuffle: bool = False) -> list[dict[str, Any]]:
    """Runs over three sources whose losses follow power laws; the second target depends on the third source."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(3), num_runs)
    first = 2 + 0.3 * (weights[:, 0] + 0.05) ** -0.4 + 0.1 * (weights[:, 1] + 0.05) ** -0.4
    second = 1 + 0.2 * (weights[:, 2] + 0.05) ** -0.5
    losses = np.stack([first, second], axis=1) * (1 + noise * rng.normal(size=(num_runs, 2)))
    losses = rng.permutation(losses) if shuffle else losses
    return [
        {"run": f"r{i}", **{f"weight:{n}": w for n, w in zip(SOURCES, weights[i], strict=True)},
         "loss:mmlu:rc::olmes": losses[i, 0], "loss:问答": losses[i, 1]}
        for i in range(num_runs)
    ]  # fmt: skip


def test_runs_that_tell_give_weights_and_a_gain_over_the_best_of_them_or_a_tie(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "runs.csv", swarm(24))
    found = answer(Request(path)).to_json()
    assert found["verdict"] in ("better", "indistinguishable")
    assert sum(w["mean"] for w in found["weights"].values()) == pytest.approx(1, abs=1e-4)
    assert all(w["low"] <= w["mean"] <= w["high"] for w in found["weights"].values())
    assert found["target"]["spearman_cv"] > 0.7
    assert found["target"]["noise"] is None
    assert found["predicted"]["recipe"] is None
    assert found["predicted"]["recommended"]["mean"] <= found["predicted"]["uniform"]["mean"]
    assert found["critical"] is None
    json.dumps(found, allow_nan=False)


def test_the_verdict_is_better_where_the_recipe_is_far_from_the_optimum(tmp_path: Path) -> None:
    rows = swarm(20)
    max(rows, key=lambda row: row["loss:mmlu:rc::olmes"] + row["loss:问答"])["run"] = "recipe"
    found = answer(Request(write_runs(tmp_path / "runs.csv", rows))).to_json()
    assert found["verdict"] == "better"
    assert found["difference"]["low"] > 0


@pytest.mark.parametrize("seed", range(6))
def test_shuffled_losses_are_refused(tmp_path: Path, seed: int) -> None:
    found = answer(Request(write_runs(tmp_path / "runs.csv", swarm(14, seed=seed, shuffle=True))))
    assert found.result.verdict == "cannot_tell"
    assert "cannot tell" in found.result.because


def test_too_few_runs_cannot_tell_and_say_how_many_are_needed(tmp_path: Path) -> None:
    found = answer(Request(write_runs(tmp_path / "runs.csv", swarm(7)))).result
    assert found.verdict == "cannot_tell"
    assert "2 x 3 + 2 = 8" in found.because


def test_a_spread_that_is_not_above_the_noise_of_repeats_cannot_tell(tmp_path: Path) -> None:
    rows = swarm(12, 0.0)
    again = [{**row, "run": f"again-{row['run']}"} for row in rows[:6]]
    rng = np.random.default_rng(0)
    for row in rows + again:
        row["loss:问答"] = 1 + rng.normal()
    found = answer(Request(write_runs(tmp_path / "runs.csv", rows + again), target="问答")).result
    assert found.verdict == "cannot_tell"
    assert "not above the noise" in found.because


@pytest.mark.parametrize("num_runs", [1, 2, 10])
def test_one_run_or_constant_losses_cannot_tell(tmp_path: Path, num_runs: int) -> None:
    rows = swarm(num_runs)
    for row in rows:
        row["loss:mmlu:rc::olmes"] = row["loss:问答"] = 2.5
    found = answer(Request(write_runs(tmp_path / "runs.csv", rows))).to_json()
    assert found["verdict"] == "cannot_tell"
    json.dumps(found, allow_nan=False)


def test_targets_are_named_with_colons_commas_and_weights(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "runs.csv", swarm(16))
    found = answer(Request(path, target="mmlu:rc::olmes=3,问答")).result
    assert found.question.amounts.tolist() == [3, 1]
    with pytest.raises(
        RecipeError, match=r"no column loss:mmlu; did you mean|no column loss:mmlu; there are"
    ):
        answer(Request(path, target="mmlu=2"))
    with pytest.raises(RecipeError, match="above 0"):
        answer(Request(path, target="问答=-1"))


def test_a_kept_loss_is_within_its_bound_and_a_base_is_needed_for_it(tmp_path: Path) -> None:
    rows = swarm(24)
    path = write_runs(tmp_path / "runs.csv", rows)
    with pytest.raises(RecipeError, match="no run is called base"):
        answer(Request(path, keep=("问答 <= base + 0.01",)))
    with pytest.raises(RecipeError, match="--keep 问答 < base"):
        answer(Request(path, keep=("问答 < base",)))
    write_runs(path, [*rows, {"run": "base", "loss:问答": 1.3, "loss:mmlu:rc::olmes": 3.0}])
    free = answer(Request(path, target="mmlu:rc::olmes")).result
    kept = answer(Request(path, target="mmlu:rc::olmes", keep=("问答 <= base + 0.01",))).result
    assert free.model is not None
    assert kept.mixture is not None
    assert free.mixture is not None
    assert free.model.predict(free.mixture[None])[0, 1] > 1.33
    assert free.model.predict(kept.mixture[None])[0, 1] <= 1.33


def two_sources(shares: list[float], noise: float = 0.001) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [{"run": "base", "loss:general": 2.05, "loss:medical": 3.0}]
    for i, share in enumerate(shares):
        rows.append(
            {"run": f"r{i}", "weight:general": share, "weight:medical": 1 - share,
             "loss:general": 2 + 0.5 * np.exp(-8 * share) + noise * rng.normal(),
             "loss:medical": 1.5 + 0.4 * np.exp(-4 * (1 - share)) + noise * rng.normal()}
        )  # fmt: skip
    return rows


def test_with_a_bound_the_best_observed_run_is_one_that_keeps_it(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "runs.csv", two_sources([0.0, 0.1, 0.25, 0.5, 0.6]))
    free = answer(Request(path, target="medical")).to_json()["predicted"]["best_observed"]["mean"]
    kept = answer(Request(path, target="medical", keep=("general <= base + 0.05",))).to_json()
    assert free == pytest.approx(1.5 + 0.4 * np.exp(-4), abs=0.004)
    assert kept["predicted"]["best_observed"]["mean"] == pytest.approx(1.5 + 0.4 * np.exp(-3), abs=0.004)


def test_the_critical_share_is_told_from_four_runs_and_a_base(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "runs.csv", two_sources([0.0, 0.1, 0.25, 0.5]))
    found = answer(
        Request(path, target="medical", keep=("general <= base + 0.01",), out=tmp_path / "out")
    ).to_json()
    truth = -np.log((2.06 - 2) / 0.5) / 8
    assert found["critical"]["source"] == "general"
    assert found["critical"]["low"] <= truth <= found["critical"]["high"]
    assert found["critical"]["high"] - found["critical"]["low"] < 0.3
    page = (tmp_path / "out" / "recommendation.html").read_text(encoding="utf-8")
    assert "general &lt;= base + 0.01" in page
    assert "http" not in page.replace("http-equiv", "")


def test_predictions_are_written_whatever_the_verdict(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "runs.csv", swarm(4))
    other = write_runs(
        tmp_path / "other.csv",
        [{k: v for k, v in row.items() if "loss" not in k} for row in swarm(5, seed=1)],
    )
    found = answer(Request(path, predict=other, out=tmp_path / "out"))
    assert found.result.verdict == "cannot_tell"
    text = (tmp_path / "out" / "predicted.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 5
    assert float(rows[0]["predicted:target"]) == pytest.approx(
        (float(rows[0]["predicted:mmlu:rc::olmes"]) + float(rows[0]["predicted:问答"])) / 2, rel=1e-4
    )
    with pytest.raises(RecipeError, match="-o FOLDER"):
        answer(Request(path, predict=other))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "predicted.csv").write_text("notes", encoding="utf-8")
    with pytest.raises(RecipeError, match="did not write it"):
        answer(Request(path, predict=other, out=tmp_path / "mine"))
    assert (tmp_path / "mine" / "predicted.csv").read_text(encoding="utf-8") == "notes"


def test_kinds_of_runs_are_fitted_each_on_its_own_and_ranked_against_each_other(tmp_path: Path) -> None:
    small = [{**row, "params": 1e6} for row in swarm(20)]
    large = [
        {**row, "params": 1e9, "loss:问答": row["loss:问答"] * 0.5, "run": f"big-{row['run']}"}
        for row in swarm(10)
    ]
    path = write_runs(tmp_path / "runs.csv", small + large)
    found = answer(Request(path)).to_json()
    assert [kind["chosen"] for kind in found["kinds"]] == [
        False,
        True,
    ]  # ten runs are enough for three sources
    assert found["kinds"][0]["spearman"] > 0.5
    assert answer(Request(path, where=("params=1e6",))).to_json()["kinds"] == []
    with pytest.raises(RecipeError, match=r"there are 1e\+06, 1e\+09"):
        answer(Request(path, where=("params=5",)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"weight:书": 7.0}, "sum to"),
        ({"weight:书": -0.1}, "at least 0"),
        ({"loss:问答": "low"}, "'low' is no number"),
    ],
)
def test_a_cell_that_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    rows = swarm(10)
    rows[4] |= change
    with pytest.raises(RecipeError, match=problem):
        read_runs(write_runs(tmp_path / "runs.csv", rows))


def test_weights_near_one_are_normalised_and_losses_that_are_missing_are_told(tmp_path: Path) -> None:
    rows = swarm(10)
    for name in SOURCES:
        rows[2][f"weight:{name}"] *= 1.004
    rows[3]["loss:问答"], rows[4]["loss:问答"] = "", "nan"
    runs = read_runs(write_runs(tmp_path / "runs.csv", rows))
    assert runs.weights.sum(axis=1) == pytest.approx(np.ones(10))
    assert any("normalised" in note for note in runs.notes)
    assert any("2 of 10 runs lack some losses" in note for note in runs.notes)
    for row in rows:
        row["loss:问答"] = row["loss:mmlu:rc::olmes"] = ""
    with pytest.raises(RecipeError, match="none of its 10 runs has a loss yet"):
        read_runs(write_runs(tmp_path / "runs.csv", rows))


def test_losses_of_a_folder_of_runs_are_joined_into_its_table(tmp_path: Path) -> None:
    rows = [
        {**{k: v for k, v in row.items() if "loss" not in k}, "loss:general": "", "loss:medical": ""}
        for row in two_sources([0.1, 0.4])[1:]
    ]
    write_runs(tmp_path / "runs.csv", rows)
    (tmp_path / "r0").mkdir()

    def line(step: int, source: str | None, loss: float, split: str = "validation") -> str:
        return (
            json.dumps({"step": step, "tokens": step * 10, "source": source, "split": split, "loss": loss})
            + "\n"
        )

    text = (
        line(0, "general", 3.0)
        + line(0, None, 3.1)
        + line(10, "general", 2.5)
        + line(10, "general", 2.4)
        + line(10, "medical", 1.5, "train")
    )
    (tmp_path / "r0" / "losses.jsonl").write_text(text, encoding="utf-8")
    assert join_losses(tmp_path) == 1
    assert join_losses(tmp_path) == 1  # again: the same table
    runs = read_runs(tmp_path / "runs.csv")
    assert runs.names == ("r0", "r1")
    assert runs.losses[0, 0] == 2.4
    assert np.isnan(runs.losses[1]).all()
    assert runs.bases["base"][0] == 3.0


def test_one_source_is_told_and_rows_without_weights_are_not_predicted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"run": f"r{i}", "weight:a": 1.0, "loss:x": 2 + i / 10} for i in range(5)]
    found = answer(Request(write_runs(tmp_path / "one.csv", rows)))
    assert "every run is made of one source" in found.result.because
    path = write_runs(tmp_path / "runs.csv", two_sources([0.0, 0.1, 0.25, 0.5]))
    answer(Request(path, predict=path, out=tmp_path / "out"))
    told = list(csv.DictReader((tmp_path / "out" / "predicted.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["predicted:general"] != "" for row in told] == [False, True, True, True, True]
    assert float(told[2]["predicted:general"]) == pytest.approx(float(told[2]["loss:general"]), abs=0.05)


def test_runs_that_differ_in_tokens_by_less_than_a_percent_are_of_one_length(tmp_path: Path) -> None:
    rows = [{**row, "tokens": 1_000_000 + 137 * i} for i, row in enumerate(swarm(12))]
    found = answer(Request(write_runs(tmp_path / "runs.csv", rows), where=("tokens=1000000",)))
    assert found.kinds == ()
    assert len(found.result.question.runs.names) == 12
