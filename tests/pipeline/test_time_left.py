"""The time that is left of a build: about right after the first tenth, on a machine of any speed, and after a resume."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from small import recipe

from datamix.jobs.build import build, phase_titles
from datamix.pipeline.progress import LoggedScreen, Screen, duration
from datamix.pipeline.steps import Options
from datamix.pipeline.time_left import TimeLeft, usual_seconds
from datamix.recipe import Recipe

TITLES = ["scan", "prepare", "sign", "encode", "select", "pack", "order", "write", "report"]
USUAL = usual_seconds(2e9, TITLES, 2, 1)


def errors(
    pace: float, of_encode: float = 1.0, cached: dict[str, float] | None = None, num_workers: int = 2
) -> list[float]:
    """How wrong the time left is after each task past the first tenth of a build whose phases take ``pace`` times the usual.

    As a part of what is left, at the end of a twentieth of the whole.
    """
    left, now = TimeLeft(TITLES, num_workers), 0.0
    left.expect(USUAL)
    told: list[tuple[float, float]] = []
    for title in TITLES:
        found = round(40 * (cached or {}).get(title, 0.0))
        seconds = USUAL[title] * pace * (of_encode if title == "encode" else 1.0) * (40 - found) / 40
        left.begin(title, 40_000, now)
        for _ in range(found):
            left.skip(1000)
        begin, fresh, in_hand = now, 40 - found, (num_workers - 1) / 2
        for number in range(1, fresh + 1):  # when a task ends, those of the other workers are half done
            now = begin + seconds * min(1.0, (number + in_hand) / fresh)
            left.advance(1000, now)
            value = left.left(now + 1e-6)
            assert value is not None
            told.append((now, value))
        left.end(now)
    return [(value - (now - at)) / max(now - at, now / 20) for at, value in told if at > 0.1 * now]


@pytest.mark.parametrize("pace", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("num_workers", [1, 2, 8])
def test_it_is_right_on_machines_of_any_speed(pace: float, num_workers: int) -> None:
    wrong = errors(pace, num_workers=num_workers)
    assert sum(abs(error) < 0.3 for error in wrong) > 0.99 * len(wrong)
    assert max(map(abs, wrong)) < 0.4


def test_work_that_is_cached_counts_for_nothing() -> None:
    wrong = errors(2.0, cached={"prepare": 1.0, "sign": 1.0, "encode": 0.5})
    assert sum(abs(error) < 0.3 for error in wrong) > 0.9 * len(wrong)
    assert max(map(abs, wrong)) < 0.5


def test_a_tokenizer_of_another_speed_shows_once_it_runs() -> None:
    """Encode takes three times as long as told, where no sample was encoded before: within a tenth of the phase that is known."""
    late = errors(1.0, of_encode=3.0)
    assert max(map(abs, late)) < 2.0
    assert sum(abs(error) < 0.3 for error in late) > 0.5 * len(late)


def test_what_was_measured_in_a_sample_replaces_the_usual_rate() -> None:
    left = TimeLeft(TITLES, 2)
    left.expect(USUAL)
    before = left.left(0.0)
    left.expect({"encode": 100.0})
    assert before is not None
    assert left.left(0.0) == pytest.approx(before + 100.0 - USUAL["encode"])
    assert TimeLeft(TITLES).left(0.0) is None


def test_a_log_counts_the_phases_and_says_what_is_left(tmp_path: Path) -> None:
    text, log = io.StringIO(), io.StringIO()
    screen = LoggedScreen(log)
    screen.console = Console(file=text, width=200)
    read = Recipe.read(recipe(tmp_path))
    assert "lines" not in phase_titles(read)
    build(read, Options(tmp_path / "out", tmp_path / "cache", 1), screen)
    lines = [line for line in text.getvalue().splitlines() if " done in " in line]
    count = len(phase_titles(read))
    assert lines[0].startswith(f"1/{count} scan")
    assert lines[-1].startswith(f"{count}/{count} report")
    assert all(line.endswith(" left") for line in lines)
    ended = [entry for entry in map(json.loads, log.getvalue().splitlines()) if entry.get("event") == "end"]
    assert all(entry["left"] >= 0 for entry in ended)
    again = io.StringIO()
    screen.console = Console(file=again, width=200)
    build(read, Options(tmp_path / "out", tmp_path / "cache", 1), screen)
    assert "nothing to do" in again.getvalue()


def test_a_terminal_has_one_bar_for_the_whole_build(tmp_path: Path) -> None:
    text = io.StringIO()
    screen = Screen(Console(file=text, width=120, force_terminal=True))
    read = Recipe.read(recipe(tmp_path))
    build(read, Options(tmp_path / "out", tmp_path / "cache", 1), screen)
    count = len(phase_titles(read))
    assert f"{count}/{count} report" in text.getvalue()
    assert " left" in text.getvalue()
    assert "done in" not in text.getvalue()
    assert screen.time_left is None


def test_quiet_shows_nothing(tmp_path: Path) -> None:
    text = io.StringIO()
    build(
        Recipe.read(recipe(tmp_path)),
        Options(tmp_path / "out", tmp_path / "cache", 1),
        Screen(Console(file=text), quiet=True),
    )
    assert text.getvalue() == ""


def test_durations_are_short() -> None:
    assert [duration(s) for s in (0.2, 89, 95, 700, 7300)] == [
        "0 s",
        "89 s",
        "1 min 35 s",
        "11 min",
        "2 h 1 min",
    ]
