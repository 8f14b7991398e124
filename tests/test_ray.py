"""Builds on Ray: two nodes on this machine, of which one is killed or falls silent; the same bytes as one process.

`make test-ray`. The loop that supervises tasks is tested without Ray in tests/pipeline/test_engine_ray.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
SAMPLES = ("sft", "pretrain", "preference", "prompt")
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head node with one processor; tests add and kill others."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "c0ffee" * 8}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, connect=False, head_node_args=NODE)
    yield cluster
    cluster.shutdown()


def many_tasks(folder: Path) -> Path:
    """A recipe of twelve sources, so that every phase has tasks for two nodes."""
    questions = small.GENERAL + small.MEDICAL
    for n in range(12):
        small.write_jsonl(folder / f"s{n}.jsonl", small.alpaca([f"{q} {n}" for q in questions], 900))
    sources = {f"s{n}": {"path": f"s{n}.jsonl", "weight": 1 + n % 3} for n in range(12)}
    return small.recipe(folder, sources=sources)


def alone(recipe: Path, folder: Path) -> dict[str, str]:
    """The set as one process builds it."""
    done = small.datamix("build", recipe, "-o", folder / "alone", "--cache", folder / "c", "--workers", 1)
    assert done.returncode == 0, done.stderr
    print(f"{recipe.stem}: {small.tree_digest(folder / 'alone')} one process")
    return small.fingerprint(folder / "alone")


def ray_build(recipe: Path, folder: Path, address: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "datamix", "build", recipe, "-o", folder / "out", "--cache", folder / "cache",
               "--engine", "ray", "--address", address, *more]  # fmt: skip
    return subprocess.Popen(
        [str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def receipts(folder: Path) -> int:
    return len(list((folder / "cache" / "store").glob("??/*/receipt.json")))


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def finished(process: subprocess.Popen[str], folder: Path, name: str) -> dict[str, str]:
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    print(f"{name}: {small.tree_digest(folder / 'out')}")
    return small.fingerprint(folder / "out")


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_the_same_bytes_on_a_ray_of_its_own(name: str, tmp_path: Path) -> None:
    recipe = small.ROOT / "samples" / f"{name}.yaml"
    expected = alone(recipe, tmp_path)
    assert finished(ray_build(recipe, tmp_path, "local"), tmp_path, "Ray, one node") == expected


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_the_same_bytes_on_two_nodes(name: str, tmp_path: Path, cluster: Any) -> None:
    recipe = small.ROOT / "samples" / f"{name}.yaml"
    expected = alone(recipe, tmp_path)
    node = cluster.add_node(**NODE)
    try:
        build = ray_build(recipe, tmp_path, cluster.address)
        assert finished(build, tmp_path, "Ray, two nodes") == expected
    finally:
        cluster.remove_node(node)


def test_a_node_that_is_killed_costs_its_tasks_and_no_byte(tmp_path: Path, cluster: Any) -> None:
    recipe = many_tasks(tmp_path)
    expected = alone(recipe, tmp_path)
    node = cluster.add_node(**NODE)
    build = ray_build(recipe, tmp_path, cluster.address)
    wait_until(lambda: receipts(tmp_path) >= 16, build)
    cluster.remove_node(node, allow_graceful=False)
    assert finished(build, tmp_path, "Ray, one of two nodes killed") == expected


def test_a_node_that_falls_silent_costs_its_tasks_and_no_byte(tmp_path: Path, cluster: Any) -> None:
    recipe = many_tasks(tmp_path)
    expected = alone(recipe, tmp_path)
    node = cluster.add_node(**NODE)
    build = ray_build(recipe, tmp_path, cluster.address)
    wait_until(lambda: receipts(tmp_path) >= 16, build)
    stopped = descendants(node.all_processes["raylet"][0].process.pid)
    for pid in stopped:  # as behind a cable that was pulled: nothing answers, nothing is closed
        os.kill(pid, signal.SIGSTOP)
    try:
        assert finished(build, tmp_path, "Ray, one of two nodes silent") == expected
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        cluster.remove_node(node, allow_graceful=False)


def descendants(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for parent in found:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(path.parent.name))
    return found


def test_a_driver_that_is_killed_continues_when_it_is_started_again(tmp_path: Path, cluster: Any) -> None:
    recipe = many_tasks(tmp_path)
    expected = alone(recipe, tmp_path)
    build = ray_build(recipe, tmp_path, cluster.address)
    wait_until(lambda: receipts(tmp_path) >= 12, build)
    second = ray_build(recipe, tmp_path, cluster.address)
    assert f"Another build (process {build.pid}) is writing" in second.communicate(timeout=60)[0]
    assert second.returncode == 2
    build.kill()
    build.communicate()
    kept = receipts(tmp_path)
    again = ray_build(recipe, tmp_path, cluster.address)
    assert finished(again, tmp_path, "Ray, driver killed and started again") == expected
    assert kept >= 12


def test_an_interrupted_build_cancels_its_tasks_and_leaves_no_process(tmp_path: Path) -> None:
    build = ray_build(many_tasks(tmp_path), tmp_path, "local")
    wait_until(lambda: receipts(tmp_path) >= 4, build)
    ours = descendants(build.pid)
    build.send_signal(signal.SIGINT)
    assert "Stopped. Finished work is saved" in build.communicate(timeout=120)[0]
    assert build.returncode == 130
    deadline = time.monotonic() + 30
    while alive := [pid for pid in ours if Path(f"/proc/{pid}").exists() and not is_zombie(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)
    assert not (tmp_path / "cache" / "work").exists() or not list((tmp_path / "cache" / "work").iterdir())


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_node_with_another_version_is_named_in_one_sentence(tmp_path: Path, cluster: Any) -> None:
    other = tmp_path / "site" / "ftfy-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: ftfy\nVersion: 0.0.1\n")
    node = cluster.add_node(**NODE, env_vars={"PYTHONPATH": str(other.parent)})
    try:
        build = ray_build(small.recipe(tmp_path), tmp_path, cluster.address)
        said = build.communicate(timeout=200)[0]
        assert build.returncode == 4
        assert "of the Ray cluster: ftfy is 0.0.1 here and" in said
        assert len(said.strip().splitlines()) == 1
    finally:
        cluster.remove_node(node)


def test_an_address_where_no_cluster_answers_is_exit_code_4(tmp_path: Path) -> None:
    build = ray_build(small.recipe(tmp_path), tmp_path, "127.0.0.1:9")
    assert "No Ray cluster can be joined at 127.0.0.1:9" in build.communicate(timeout=60)[0]
    assert build.returncode == 4


def test_an_error_of_the_data_is_the_same_as_on_one_machine(tmp_path: Path, cluster: Any) -> None:
    recipe = small.recipe(tmp_path)
    twice = (tmp_path / "general.jsonl").read_text(encoding="utf-8").splitlines()[0] + "\n"
    (tmp_path / "general.jsonl").write_text(twice * 50, encoding="utf-8")
    here = small.datamix(
        "build", recipe, "-o", tmp_path / "a", "--cache", tmp_path / "c", "--workers", 1, "--quiet"
    )
    build = ray_build(recipe, tmp_path, cluster.address, "--quiet")
    assert build.communicate(timeout=120)[0] == here.stderr
    assert (build.returncode, here.returncode) == (3, 3)
