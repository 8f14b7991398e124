"""``report --losses``: what was forgotten and overfitted, in sentences and drawings, from losses that are known."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import small
from click.testing import CliRunner

import datamix
from datamix.commands.cli import cli
from datamix.core.losses import Loss, loss_line
from datamix.reporting.charts import range_ticks


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("losses")
    datamix.build(small.recipe(folder), folder / "out", cache=folder / ".datamix", workers=1)
    return folder / "out"


def write(folder: Path, name: str, losses: list[Loss]) -> Path:
    path = folder / name
    path.write_text("".join(map(loss_line, losses)), encoding="utf-8")
    return path


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, ["report", *arguments])
    if code:
        assert getattr(done.exception, "exit_code", None) == code, done
        return str(done.exception)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def made(tokens: int) -> list[Loss]:
    """general rises by .15 from the start; medical falls, is lowest at step 20 and rises by .3 while its training loss falls."""
    values = {
        ("general", "validation"): [2.0, 2.05, 2.1, 2.12, 2.15],
        ("general", "train"): [2.0, 2.04, 2.05, 2.06, 2.07],
        ("medical", "validation"): [3.0, 2.5, 2.2, 2.3, 2.5],
        ("medical", "train"): [3.0, 2.4, 1.9, 1.5, 1.2],
        (None, "validation"): [2.3, 2.2, 2.12, 2.15, 2.25],
    }
    return [
        Loss(10 * n, tokens * n // 4, source, split, loss)
        for (source, split), losses in values.items()
        for n, loss in enumerate(losses)
    ]


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_forgetting_and_overfitting_are_said_with_the_epoch_that_the_rows_give(
    built: Path, tmp_path: Path
) -> None:
    rows = datamix.open(built)
    lengths = [len(row["input_ids"]) for row in rows]
    path = write(tmp_path, "a.jsonl", made(sum(lengths)))
    before = (built / "report.html").read_bytes()
    run(str(built), "--losses", str(path))
    page = text_of((built / "report.html").read_text(encoding="utf-8"))
    assert (
        "general is being forgotten: its validation loss was 2 before training and is 2.15 (+0.150)." in page
    )
    assert "Validation losses that fell since step 0: medical -0.500." in page
    half, seen, medical = sum(lengths) * 2 // 4, 0, 0
    for place, length in enumerate(lengths):
        seen += length
        if seen <= half and rows.source_of(place) == "medical":
            medical += length
    manifest = rows.manifest["sources"]["medical"]
    epoch = medical / manifest["available"]["tokens"]
    assert 0.3 < epoch < manifest["epochs"]
    assert (
        f"medical is overfitted from epoch {epoch:.2f} (step 20) on: since then its validation loss rose by 0.300"
        in page
    )
    assert "general is overfitted" not in page
    assert "Nothing is forgotten" not in page
    assert all(check.ok for check in datamix.verify(built))
    run(str(built))
    assert (built / "report.html").read_bytes() == before


def test_a_run_of_three_passes_counts_their_epochs(built: Path, tmp_path: Path) -> None:
    rows = datamix.open(built)
    total = sum(len(row["input_ids"]) for row in rows)
    run(str(built), "--losses", str(write(tmp_path, "a.jsonl", made(4 * total))))
    epochs = rows.manifest["sources"]["medical"]["epochs"]
    tokens = rows.manifest["sources"]["medical"]
    expected = 2 * tokens["emitted"]["tokens"] / tokens["available"]["tokens"]
    assert math.isclose(expected, 2 * epochs, rel_tol=0.1)
    assert f"from epoch {expected:.2f}" in (built / "report.html").read_text(encoding="utf-8")


def test_the_page_of_losses_is_written_in_chinese(built: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", made(100_000))
    run(str(built), "--losses", str(path), "--language", "zh")
    page = (built / "report.html").read_text(encoding="utf-8")
    for text in ("general 正在被遗忘", "起过拟合", "各来源的损失", "已训练的 token"):
        assert text in page
    assert page.count("<figure") >= 3


def test_what_was_not_forgotten_and_a_start_that_is_missing_are_said(built: Path, tmp_path: Path) -> None:
    steady = [Loss(step, step, "general", "validation", 2.0 - step / 1e4) for step in (0, 50)]
    run(str(built), "--losses", str(write(tmp_path, "a.jsonl", steady)))
    page = text_of((built / "report.html").read_text(encoding="utf-8"))
    assert "Nothing is forgotten: no validation loss is more than 0.01 above its start." in page
    run(str(built), "--losses", str(write(tmp_path, "b.jsonl", steady[1:])))
    page = text_of((built / "report.html").read_text(encoding="utf-8"))
    assert "The losses do not begin at step 0" in page
    assert "Nothing is forgotten" not in page


def test_losses_of_another_set_and_files_that_hold_none_are_refused(built: Path, tmp_path: Path) -> None:
    other = write(tmp_path, "a.jsonl", [Loss(0, 0, "law", "validation", 2.0)])
    assert "has losses of law, and" in run(str(built), "--losses", str(other), code=2)
    train = write(tmp_path, "b.jsonl", [Loss(0, 0, "general", "train", 2.0)])
    assert "no validation losses" in run(str(built), "--losses", str(train), code=2)
    assert "holds no losses" in run(str(built), "--losses", str(write(tmp_path, "c.jsonl", [])), code=2)
    assert "cannot be read" in run(str(built), "--losses", str(tmp_path / "none.jsonl"), code=2)
    assert not (built / ".building").exists()


@pytest.mark.parametrize(
    ("low", "high"), [(-0.43, 0.17), (2.3, 2.31), (0.0, 9.0), (-3e-5, 2e-5), (1.9, 14.2)]
)
def test_ticks_of_a_range_are_round_and_inside_it(low: float, high: float) -> None:
    ticks = range_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert len({label for _, label in ticks}) == len(ticks)
    for at, label in ticks:
        assert -1e-6 <= at <= 100 + 1e-6
        assert math.isclose(low + at / 100 * (high - low), float(label), abs_tol=1e-6 * (high - low))
