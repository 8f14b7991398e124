"""Killed anywhere and run again: the bytes of the run that was left alone, and nothing done twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import datamix, fingerprint, recipe

from datamix.pipeline.store import Store


def count(*roots: Path) -> int:
    return sum(1 for root in roots for _ in root.glob("??/*/receipt.json"))


def killed_after(path: Path, out: Path, receipts: int) -> bool:
    """Start a build in its own process group and kill all of it once that many results are there."""
    store = out.parent / ".datamix" / "store"
    process = subprocess.Popen(
        [sys.executable, "-m", "datamix", "build", str(path), "-o", str(out), "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if count(store, out / ".building") >= receipts:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


def whole_runs(folder: Path) -> tuple[dict[str, str], int, Path]:
    path = recipe(folder)
    done = datamix("build", path, "-o", folder / "calm" / "set", "--workers", "2")
    assert done.returncode == 0, done.stderr
    return fingerprint(folder / "calm/set"), count(folder / "calm/.datamix/store"), path


def stamps(store: Path) -> dict[str, int]:
    return {
        key: (Store(store).folder(key) / "receipt.json").stat().st_mtime_ns for key in Store(store).finished()
    }


def check_killed_at(folder: Path, path: Path, calm: dict[str, str], receipts: int) -> bool:
    """Kill a build at ``receipts`` and finish it; whether the kill came before the end."""
    out = folder / f"killed-{receipts}" / "set"
    killed = killed_after(path, out, receipts)
    store = out.parent / ".datamix" / "store"
    before = stamps(store)
    assert before
    if killed and (out / "manifest.json").exists():
        assert fingerprint(out) == calm or (out / ".building").exists()
    done = datamix("build", path, "-o", out, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert fingerprint(out) == calm
    after = stamps(store)
    assert {key: after[key] for key in before} == before
    return killed


def test_a_build_killed_in_several_places_ends_with_the_same_bytes(tmp_path: Path) -> None:
    calm, total, path = whole_runs(tmp_path)
    assert check_killed_at(tmp_path, path, calm, 1)
    assert check_killed_at(tmp_path, path, calm, total // 2)
    check_killed_at(tmp_path, path, calm, total + 1)  # in the last copy, which may be over before the kill


@pytest.mark.slow
def test_a_build_killed_after_every_single_result_ends_with_the_same_bytes(tmp_path: Path) -> None:
    calm, total, path = whole_runs(tmp_path)
    killed = [check_killed_at(tmp_path, path, calm, receipts) for receipts in range(1, total + 6)]
    assert all(killed[: total // 2])


def test_a_build_killed_again_and_again_gets_there(tmp_path: Path) -> None:
    calm, total, path = whole_runs(tmp_path)
    out = tmp_path / "again" / "set"
    killed = [killed_after(path, out, receipts) for receipts in range(2, total + 2, 4)]
    assert sum(killed) >= len(killed) // 2
    assert datamix("build", path, "-o", out, "--workers", "2").returncode == 0
    assert fingerprint(out) == calm
