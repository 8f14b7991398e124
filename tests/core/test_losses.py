"""losses.jsonl as a file: the last line of a step counts, a line that was cut off is none, and wrong lines are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamix.core.errors import RecipeError
from datamix.core.losses import Loss, loss_line, read_losses


def written(folder: Path, *losses: Loss, rest: str = "") -> Path:
    path = folder / "losses.jsonl"
    path.write_text("".join(map(loss_line, losses)) + rest, encoding="utf-8")
    return path


def test_the_last_line_of_a_step_source_and_split_counts(tmp_path: Path) -> None:
    lines = [
        Loss(0, 0, "general", "validation", 3.0),
        Loss(100, 800, "general", "validation", 2.5),
        Loss(100, 800, None, "validation", 2.6),
        Loss(200, 1600, "general", "validation", 2.4),
        Loss(100, 800, "general", "validation", 2.55),  # the run resumed from step 0's checkpoint
    ]
    curves = read_losses(written(tmp_path, *lines))
    assert curves == {
        ("general", "validation"): (lines[0], lines[4], lines[3]),
        (None, "validation"): (lines[2],),
    }


def test_a_line_that_a_stopped_run_was_writing_is_left_out(tmp_path: Path) -> None:
    first = Loss(0, 0, "通用", "train", 3.0)
    whole = loss_line(Loss(100, 800, "通用", "train", 2.0))
    for cut in range(1, len(whole) - 1):
        assert read_losses(written(tmp_path, first, rest=whole[:cut])) == {("通用", "train"): (first,)}
    assert len(read_losses(written(tmp_path, first, rest=whole.rstrip()))["通用", "train"]) == 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("step 1: 2.0", "line 1 is not JSON"),
        ("[1, 2]", "line 1 has no step, tokens, source, split, loss"),
        ('{"step": 1, "tokens": 2, "source": "a", "loss": 2.0}', "line 1 has no split"),
        ('{"step": 1, "tokens": 2, "source": "a", "split": "eval", "loss": 2.0}', "split is 'eval'"),
        ('{"step": 1, "tokens": 2, "source": "a", "split": "train", "loss": NaN}', "the run has diverged"),
        ('{"step": 1, "tokens": 2, "source": "a", "split": "train", "loss": "2"}', "loss is '2'"),
        ('{"step": -1, "tokens": 2, "source": "a", "split": "train", "loss": 2}', "step is -1"),
        ('{"step": 1, "tokens": 2.5, "source": "a", "split": "train", "loss": 2}', "tokens is 2.5"),
        ('{"step": 1, "tokens": 2, "source": 3, "split": "train", "loss": 2}', "source is 3"),
        ("", "holds no losses"),
    ],
)
def test_a_line_that_is_no_measurement_is_named_with_a_line_that_is(
    tmp_path: Path, line: str, problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem) as caught:
        read_losses(written(tmp_path, rest=line + "\n"))
    assert '"split": "validation"' in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read as losses"):
        read_losses(tmp_path / "losses.jsonl")
