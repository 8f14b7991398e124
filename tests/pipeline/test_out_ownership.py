"""What counts as a file of the set in OUT, and what is refused, kept or repaired because of it."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from small import GENERAL, MEDICAL, ROOT, alpaca, datamix, fingerprint, recipe, write_jsonl

from datamix import Recipe, verify
from datamix.core.errors import MachineError, RecipeError
from datamix.jobs.build import build, sweep
from datamix.pipeline import building, exporting, out_folder
from datamix.pipeline.exporting import export
from datamix.pipeline.steps import Options


def run(path: Path, out: Path, cache: Path | None = None, overwrite: bool = False) -> dict[str, Any]:
    return build(Recipe.read(path), Options(out, cache or out.parent / ".datamix", 1, overwrite=overwrite))


def edit(out: Path, entries: list[dict[str, Any]]) -> None:
    """Add entries to the outputs of a manifest."""
    manifest = json.loads((out / "manifest.json").read_bytes())
    manifest["outputs"] += entries
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("name", ["train\n/../../notes.md", "train/../../notes.md", "../notes.md"])
def test_a_manifest_that_lists_a_file_outside_gives_no_right_to_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, notes = recipe(tmp_path), tmp_path / "set", tmp_path / "notes.md"
    run(path, out)
    notes.write_text("mine")
    (out / "train\n").mkdir()
    digest = hashlib.sha256(b"mine").hexdigest()
    entry = {"path": name, "format": "parquet", "split": "train", "rows": 0, "bytes": 4}
    edit(out, [entry | {"sha256": digest, "keeps": []}])
    with pytest.raises(RecipeError, match="schema"):
        run(path, out, overwrite=True)
    monkeypatch.setattr(out_folder, "read_set", lambda out: json.loads((out / "manifest.json").read_bytes()))
    assert name not in out_folder.owned_files(out)
    assert notes.read_text() == "mine"


def test_a_source_name_with_two_dots_makes_a_set_that_is_built_again(tmp_path: Path) -> None:
    path, out = recipe(tmp_path, sources={"a..b": {"path": "general.jsonl"}}), tmp_path / "set"
    first = run(path, out)
    assert run(path, out) == first


@pytest.mark.parametrize("name", ["manifest.json", "report.html", "train/00000.parquet"])
@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_link_or_folder_in_the_place_of_a_listed_file_is_refused_before_work(
    tmp_path: Path, name: str, kind: str
) -> None:
    path, out, far = recipe(tmp_path), tmp_path / "set", tmp_path / "far"
    run(path, out)
    shutil.move(out / name, far)
    if kind == "link":
        (out / name).symlink_to(far)
    else:
        (out / name).mkdir()
        (out / name / "mine").write_text("mine")
    write_jsonl(tmp_path / "general.jsonl", alpaca(GENERAL, 310))
    before, far_before = fingerprint(out), far.read_bytes()
    match = "not a training set" if (kind, name) == ("folder", "manifest.json") else "must go"
    with pytest.raises(RecipeError, match=match):
        run(path, out, cache=tmp_path / "unused", overwrite=True)
    assert not (tmp_path / "unused").exists()
    assert (fingerprint(out), far.read_bytes()) == (before, far_before)
    assert not (out / building.BUILDING).exists()


@pytest.mark.parametrize(
    "name", ["tokenizer/special_tokens_map.json", "rejects/general.jsonl", "removed/general.parquet"]
)
def test_a_stranger_among_the_tokenizer_and_the_ledger_is_refused_before_work(
    tmp_path: Path, name: str
) -> None:
    path, out = recipe(tmp_path, dedupe=None), tmp_path / "set"
    run(path, out)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    with pytest.raises(RecipeError, match="must go"):
        run(path, out, cache=tmp_path / "unused", overwrite=True)
    assert not (tmp_path / "unused").exists()
    assert (out / name).read_text() == "mine"


def test_an_empty_building_folder_does_not_make_a_home_folder_a_set(tmp_path: Path) -> None:
    path, home = recipe(tmp_path / "p"), tmp_path / "home"
    (home / building.BUILDING).mkdir(parents=True)
    (home / "notes.md").write_text("mine")
    with pytest.raises(RecipeError, match="holds other files"):
        run(path, home, overwrite=True)
    (home / "notes.md").unlink()
    run(path, home)


@pytest.mark.parametrize("marker", [b"", b"datamix", b"\xff"])
def test_a_building_folder_whose_marker_is_not_ours_is_refused(tmp_path: Path, marker: bytes) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    folder = out / building.BUILDING
    folder.mkdir(parents=True)
    (folder / "datamix").write_bytes(marker)
    (folder / "plans.txt").write_text("mine")
    with pytest.raises(RecipeError, match="not made by datamix"):
        run(path, out, overwrite=True)
    assert (folder / "plans.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["lock", "new", "ab", "owned.json"])
def test_links_inside_building_are_unlinked_and_never_followed(tmp_path: Path, name: str) -> None:
    path, out, far = recipe(tmp_path), tmp_path / "set", tmp_path / "far"
    far.mkdir()
    (far / "mine").write_text("mine")
    with building.hold_folder(out):
        pass
    (out / building.BUILDING / name).unlink(missing_ok=True)
    (out / building.BUILDING / name).symlink_to(far / "mine" if "." in name or name == "lock" else far)
    run(path, out)
    assert fingerprint(far) == {"mine": hashlib.sha256(b"mine").hexdigest()}
    assert not (out / building.BUILDING).exists()


@pytest.mark.parametrize("after", range(6))
def test_work_in_progress_that_was_removed_in_part_is_still_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out = tmp_path / "set"
    with building.hold_folder(out):
        for name in ("new", "ab", "partial"):
            (out / building.BUILDING / name).mkdir()
    steps = 0

    def stop(*arguments: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > after:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    original = building._remove
    unlink, rmdir = Path.unlink, Path.rmdir
    with monkeypatch.context() as patch:
        patch.setattr(building, "_remove", stop)
        patch.setattr(Path, "unlink", lambda p, **o: stop_path(unlink, p, o))
        patch.setattr(Path, "rmdir", lambda p, **o: stop_path(rmdir, p, o))

        def stop_path(call: Any, path: Path, options: dict[str, Any]) -> Any:
            nonlocal steps
            steps += 1
            if steps > after:
                raise KeyboardInterrupt
            return call(path, **options)

        with pytest.raises(KeyboardInterrupt):
            building.remove_building(out)
    assert building.is_marked(out / building.BUILDING)
    with building.hold_folder(out):
        building.remove_building(out)
    assert list(out.iterdir()) == []


def test_builds_that_start_while_another_ends_are_done_or_refused_with_its_pid(tmp_path: Path) -> None:
    out = tmp_path / "set"
    code = textwrap.dedent(
        f"""
        from pathlib import Path
        from datamix.core.errors import RecipeError
        from datamix.pipeline.building import hold_folder, remove_building
        out = Path({str(out)!r})
        for _ in range(100):
            try:
                with hold_folder(out):
                    (out / ".building" / "new").mkdir()
                    remove_building(out)
            except RecipeError as error:
                assert "(process" in str(error), error
        """
    )
    out.mkdir()
    (out / "mine").write_text("mine")
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [(p.communicate()[1], p.returncode) for p in started] == [("", 0)] * 3
    with building.hold_folder(out):
        building.remove_building(out)
    assert [p.name for p in out.iterdir()] == ["mine"]


def test_what_lies_beside_a_set_in_its_folder_is_no_input_of_it(tmp_path: Path) -> None:
    path = recipe(tmp_path, sources={"all": {"path": "data/"}}, validation=None)
    write_jsonl(tmp_path / "data" / "general.jsonl", alpaca(GENERAL, 300))
    out = tmp_path / "data" / "set"
    first = run(path, out)
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "trainer_state.json").write_text('{"log": 1}')
    write_jsonl(out / "my-export" / "train.jsonl", alpaca(MEDICAL, 50))
    (out / "report.html").write_text("my annotations")
    assert run(path, out) == first
    assert run(path, out) == first  # nor is what was set aside
    named = recipe(tmp_path, sources={"all": {"path": ["data/general.jsonl", "data/set/my-export/*.jsonl"]}})
    inputs = run(named, out, overwrite=True)["inputs"]
    assert [i["path"] for i in inputs] == ["data/general.jsonl", "data/set/my-export/train.jsonl"]


def test_the_sets_of_a_sweep_are_no_inputs_of_the_next(tmp_path: Path) -> None:
    sources = {"general": {"path": "data/", "weight": 1}, "medical": {"path": "medical.jsonl", "weight": 1}}
    path = recipe(tmp_path, sources=sources)
    write_jsonl(tmp_path / "data" / "general.jsonl", alpaca(GENERAL, 300))
    options = Options(tmp_path / "data" / "set", tmp_path / ".datamix", 1)
    first = sweep(Recipe.read(path), "general=0.4,0.6", options)
    assert sweep(Recipe.read(path), "general=0.4,0.6", options) == first


def test_a_sweep_is_refused_before_work_where_one_of_its_folders_is_not_a_set(tmp_path: Path) -> None:
    path, cache = recipe(tmp_path), tmp_path / "unused"
    (tmp_path / "set-general-0.6").mkdir()
    (tmp_path / "set-general-0.6" / "notes.md").write_text("mine")
    with pytest.raises(RecipeError, match="not a training set"):
        sweep(Recipe.read(path), "general=0.4,0.6", Options(tmp_path / "set", cache, 1, overwrite=True))
    assert not cache.exists()
    assert not (tmp_path / "set-general-0.4").exists()


def test_a_cache_deep_inside_out_survives_a_build_that_failed(tmp_path: Path) -> None:
    path, out = recipe(tmp_path, mix={"size": 10**9}), tmp_path / "x" / ".." / "set"
    (tmp_path / "x").mkdir()
    cache = tmp_path / "set" / "work" / "cache"
    for _ in range(2):
        with pytest.raises(RecipeError, match=r"mix\.size"):
            run(path, out, cache)
    assert (cache / "store").is_dir()
    run(recipe(tmp_path), out, cache)


def test_a_cache_in_the_folder_of_a_format_is_refused(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    with pytest.raises(RecipeError, match="among the files of the set"):
        run(path, out, out / "jsonl")
    assert not out.exists()


def test_verify_leaves_its_mark_in_sets_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for text in (None, '{"name": "an app"}'):
        if text is not None:
            (home / "manifest.json").write_text(text)
        before = fingerprint(home)
        assert datamix("verify", home).returncode == 1
        assert fingerprint(home) == before


@pytest.mark.parametrize("kind", ["binary", "pipe", "folder", "link"])
def test_something_else_called_like_the_mark_of_verify_stays(tmp_path: Path, kind: str) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    run(path, out)
    mark = out / out_folder.FAILED
    if kind == "binary":
        mark.write_bytes(b"\xff\xfe")
    elif kind == "pipe":
        os.mkfifo(mark)
    elif kind == "folder":
        mark.mkdir()
    else:
        mark.symlink_to(tmp_path / "nowhere")
    kept = os.lstat(mark)
    out_folder.mark_failed(out)
    out_folder.clear_failed(out)
    run(path, out)
    assert os.lstat(mark) == kept


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def test_a_repaired_set_verifies_beside_what_was_set_aside(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    run(path, out)
    flip(out / "train" / "00000.parquet")
    assert not all(check.ok for check in verify(out))
    run(path, out)
    assert (out / "train" / "00000.parquet.yours").exists()
    assert all(check.ok for check in verify(out))


def test_an_export_does_not_clear_the_mark_of_a_broken_set(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    run(path, out)
    out_folder.mark_failed(out)
    export(out, [("openai", ())], tmp_path / ".datamix", 1)
    assert (out / out_folder.FAILED).exists()
    run(path, out)
    assert not (out / out_folder.FAILED).exists()


def test_a_listed_file_that_cannot_be_read_is_set_aside_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    run(path, out)
    whole, original = fingerprint(out), out_folder.file_sha256
    bad = (out / "train" / "00000.parquet").stat().st_ino

    def read(file: Path) -> str:
        if file.stat().st_ino == bad:
            raise OSError(errno.EIO, "Input/output error")
        return original(file)

    monkeypatch.setattr(out_folder, "file_sha256", read)
    run(path, out, overwrite=True)
    assert {n: d for n, d in fingerprint(out).items() if not n.endswith(".yours")} == whole


def test_an_export_that_waited_for_another_lists_the_files_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, cache = recipe(tmp_path), tmp_path / "set", tmp_path / ".datamix"
    run(path, out)
    hold = exporting.hold_folder

    def hold_late(folder: Path) -> Any:
        monkeypatch.setattr(exporting, "hold_folder", hold)
        export(out, [("openai", ())], cache, 1)
        return hold(folder)

    monkeypatch.setattr(exporting, "hold_folder", hold_late)
    export(out, [("ms-swift", ())], cache, 1)
    formats = {e["format"] for e in json.loads((out / "manifest.json").read_bytes())["outputs"]}
    assert {"openai", "ms-swift", "jsonl"} <= formats


def test_an_export_into_a_link_or_from_any_manifest_json_is_refused_before_work(tmp_path: Path) -> None:
    path, out, far = recipe(tmp_path), tmp_path / "set", tmp_path / "far"
    run(path, out)
    far.mkdir()
    (out / "openai").symlink_to(far)
    with pytest.raises(RecipeError, match="must go"):
        export(out, [("openai", ())], tmp_path / ".datamix", 1)
    assert list(far.iterdir()) == []
    assert not (out / building.BUILDING).exists()
    (far / "manifest.json").write_text('{"name": "an app", "outputs": []}')
    with pytest.raises(RecipeError, match="not one of datamix"):
        export(far, [("openai", ())], tmp_path / ".datamix", 1)
    assert [p.name for p in far.iterdir()] == ["manifest.json"]


def test_an_out_that_cannot_be_written_is_a_failure_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(MachineError, match=r"cannot be written: File exists\. .*the link that leads nowhere"):
        run(path, tmp_path / "dangling")
    (tmp_path / "file").touch()
    with pytest.raises(
        MachineError, match=r"cannot be written: .*file is a file\. Move it away, or choose another"
    ):
        run(path, tmp_path / "file" / "below" / "set")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(MachineError, match="Permission denied"):
        run(path, out)


_KILLED = """
import os, signal, sys
from pathlib import Path
from datamix import Recipe
from datamix.jobs.build import build
from datamix.pipeline.steps import Options
path, out, last = Path(sys.argv[1]), os.path.realpath(sys.argv[2]), int(sys.argv[3])
changes = 0
def watch(event, arguments):
    global changes
    if event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"):
        return
    place = os.fsdecode(arguments[1 if event in ("os.rename", "os.link") else 0])
    if os.path.isabs(place) and not place.startswith(out):
        return
    changes += 1
    if changes == last:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
build(Recipe.read(path), Options(Path(sys.argv[2]), path.parent / ".datamix", 1))
print(changes)
"""


def killed(path: Path, out: Path, last: int) -> subprocess.CompletedProcess[str]:
    """A build that is killed before its change number ``last`` below OUT."""
    command = [sys.executable, "-c", _KILLED, str(path), str(out), str(last)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_build_killed_before_any_single_change_in_out_is_completed_by_the_next(tmp_path: Path) -> None:
    path, out, old = recipe(tmp_path), tmp_path / "set", tmp_path / "old"
    run(path, out)
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "model.bin").write_text("weights")
    write_jsonl(tmp_path / "general.jsonl", alpaca(GENERAL, 310))
    shutil.copytree(out, old)
    changes = int(killed(path, out, -1).stdout)
    new = fingerprint(out)
    assert changes > 20
    for last in range(1, changes + 1):
        shutil.rmtree(out)
        shutil.copytree(old, out)
        assert killed(path, out, last).returncode == -signal.SIGKILL
        assert (out / "checkpoints" / "model.bin").read_text() == "weights"
        if (out / "manifest.json").exists():
            assert all(
                hashlib.sha256((out / e["path"]).read_bytes()).hexdigest() == e["sha256"]
                for e in json.loads((out / "manifest.json").read_bytes())["outputs"]
            )
        run(path, out)
        assert fingerprint(out) == new, last


def test_a_marker_that_an_ending_build_took_away_is_written_again_under_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lock = tmp_path / "set" / building.BUILDING, fcntl.flock

    def lock_late(*arguments: Any) -> None:
        (folder / "datamix").unlink()
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with building.hold_folder(tmp_path / "set"):
        (folder / "new").mkdir()
        assert building.carries_marker(folder)


def test_the_report_of_a_set_of_0_1_which_lists_none_is_set_aside(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    run(path, out)
    manifest = json.loads((out / "manifest.json").read_bytes())
    manifest["datamix_version"] = "0.1.0"
    manifest["outputs"] = [e for e in manifest["outputs"] if e["path"] != "report.html"]
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (out / "report.html").write_text("annotated", encoding="utf-8")
    write_jsonl(tmp_path / "general.jsonl", alpaca(GENERAL, 310))
    run(path, out)
    assert (out / "report.html.yours").read_text(encoding="utf-8") == "annotated"
    assert all(check.ok for check in verify(out))


def test_a_kill_before_the_manifest_has_its_name_leaves_no_unfinished_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, replace = recipe(tmp_path), tmp_path / "set", Path.replace

    def stop(source: Path, target: Path) -> Path:
        if target == out / "manifest.json":
            raise KeyboardInterrupt
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            run(path, out)
    assert not [p for p in out.rglob("*.partial*") if p.parent.name != building.BUILDING]
    run(path, out)  # in the same process, as the next one in a container may have the same pid
    assert not list(out.rglob("*.partial*"))
    assert all(check.ok for check in verify(out))
