"""Nothing of the user's in and around OUT is touched, by no option, wherever a build is killed."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from small import GENERAL, Lines, alpaca, datamix, fingerprint, recipe, write_jsonl

from datamix import Recipe, verify
from datamix.core.errors import MachineError, RecipeError
from datamix.jobs.build import build
from datamix.pipeline import out_folder
from datamix.pipeline.building import BUILDING, hold_folder
from datamix.pipeline.built_sets import prune
from datamix.pipeline.exporting import export
from datamix.pipeline.progress import Screen
from datamix.pipeline.steps import Options

Canary = dict[str, tuple[int, str]]


def run(path: Path, out: Path, overwrite: bool = False, screen: Screen | None = None) -> dict[str, Any]:
    cache = out.parent / ".datamix"
    return build(Recipe.read(path), Options(out, cache, 1, overwrite=overwrite), screen)


def plant(folder: Path, outside: Path) -> Canary:
    """Files, folders, links and hard links of the user's inside ``folder``; what they are, to compare later."""
    files = {
        "NOTES.md": "my notes",
        "checkpoints/step-100/model.bin": "weights",
        "my-export/train.jsonl": "{}",
        "train/README.txt": "about these rows",
        ".hidden/keys": "secret",
        "笔记.txt": "中文",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    outside.mkdir()
    (outside / "corpus.txt").write_text("far away", encoding="utf-8")
    (folder / "link-to-folder").symlink_to(outside)
    (folder / "link-to-file").symlink_to(outside / "corpus.txt")
    (folder / "dangling").symlink_to(outside / "nothing")
    os.link(outside / "corpus.txt", folder / "hard")
    for path in (folder / "train").glob("*.parquet"):
        os.link(path, folder / f"mine-{path.name}")
    names = [
        *files,
        *(p.name for p in folder.glob("mine-*")),
        "link-to-folder",
        "link-to-file",
        "dangling",
        "hard",
    ]
    return {name: stamp(folder / name) for name in names} | {"/outside": stamp(outside / "corpus.txt")}


def stamp(path: Path) -> tuple[int, str]:
    if path.is_symlink():
        return path.lstat().st_ino, os.readlink(path)
    return path.stat().st_ino, hashlib.sha256(path.read_bytes()).hexdigest()


def check(canary: Canary, folder: Path, outside: Path) -> None:
    now = {name: stamp(outside / "corpus.txt" if name == "/outside" else folder / name) for name in canary}
    assert now == canary


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_rebuild_touches_nothing_that_the_user_put_into_the_set(tmp_path: Path, overwrite: bool) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    run(path, out)
    canary = plant(out, tmp_path / "outside")
    write_jsonl(tmp_path / "general.jsonl", alpaca(GENERAL, 310))
    before = fingerprint(out)
    run(path, out, overwrite)
    check(canary, out, tmp_path / "outside")
    assert fingerprint(out)["manifest.json"] != before["manifest.json"]
    fresh = tmp_path / "fresh"
    run(path, fresh)
    new, mine = fingerprint(fresh), fingerprint(out)
    assert {name: mine[name] for name in new} == new


def test_a_listed_file_that_was_changed_is_set_aside_and_reported(tmp_path: Path) -> None:
    path, out, screen = recipe(tmp_path), tmp_path / "set", Lines()
    run(path, out)
    (out / "report.html").write_text("my annotations", encoding="utf-8")
    (out / "report.html.yours").write_text("older annotations", encoding="utf-8")
    run(path, out, screen=screen)
    assert (out / "report.html.yours").read_text(encoding="utf-8") == "older annotations"
    assert (out / "report.html.yours.2").read_text(encoding="utf-8") == "my annotations"
    assert any("report.html was changed" in line for line in screen.lines)
    assert all(c.ok for c in verify(out))


@pytest.mark.parametrize(
    "name",
    ["train", "rejects", "tokenizer", "report.html", "train/00000.parquet", "train/mine.parquet", "jsonl"],
)
def test_what_is_in_the_way_is_refused_before_anything_changes(tmp_path: Path, name: str) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    run(path, out)
    manifest = json.loads((out / "manifest.json").read_bytes())
    manifest["outputs"] = [e for e in manifest["outputs"] if not e["path"].startswith(name)]
    if (out / name).is_dir():
        shutil.rmtree(out / name)
    (out / name).unlink(missing_ok=True)
    (out / name).write_text("somebody else's", encoding="utf-8")
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    write_jsonl(tmp_path / "general.jsonl", alpaca(GENERAL, 310))
    before = fingerprint(out)
    with pytest.raises(RecipeError, match="must go"):
        run(path, out, overwrite=True)
    assert {n: d for n, d in fingerprint(out).items() if not n.startswith(BUILDING)} == before


def test_any_manifest_json_does_not_make_a_home_folder_a_set(tmp_path: Path) -> None:
    path, home = recipe(tmp_path), tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id").write_text("key")
    for text in ('{"name": "an app"}', "[1]", "not json", '{"recipe_sha256": "x", "outputs": []}'):
        (home / "manifest.json").write_text(text)
        before = fingerprint(home)
        with pytest.raises(RecipeError, match="not a training set of datamix"):
            run(path, home, overwrite=True)
        assert fingerprint(home) == before


def test_a_building_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    (out / BUILDING).mkdir(parents=True)
    (out / BUILDING / "house.txt").write_text("plans")
    with pytest.raises(RecipeError, match="not made by datamix"):
        run(path, out, overwrite=True)
    assert (out / BUILDING / "house.txt").read_text() == "plans"


def test_links_in_the_place_of_our_folders_are_refused_and_never_followed(tmp_path: Path) -> None:
    path, out, far = recipe(tmp_path), tmp_path / "set", tmp_path / "far"
    run(path, out)
    shutil.move(out / "train", far)
    (out / "train").symlink_to(far)
    before = fingerprint(far)
    with pytest.raises(RecipeError, match="must go"):
        run(path, out, overwrite=True)
    assert fingerprint(far) == before


def test_out_itself_may_be_a_link(tmp_path: Path) -> None:
    path, real = recipe(tmp_path), tmp_path / "disk" / "set"
    real.mkdir(parents=True)
    (tmp_path / "set").symlink_to(real)
    run(path, tmp_path / "set")
    assert all(c.ok for c in verify(real))
    assert (tmp_path / "set").is_symlink()


@pytest.mark.parametrize("name", ["os.rename", "save_manifest", "_take_away"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_build_stopped_while_files_are_moved_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: int
) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    run(path, out)
    canary = plant(out, tmp_path / "outside")
    write_jsonl(tmp_path / "general.jsonl", alpaca(GENERAL, 310))
    calls = 0
    target = f"datamix.pipeline.out_folder.{name}"
    original = os.rename if name == "os.rename" else getattr(out_folder, name)

    def stop(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += name != "os.rename" or "/new/" in str(arguments[0])
        if calls > after:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(target, stop)
        try:
            run(path, out)
        except KeyboardInterrupt:
            assert not (out / "manifest.json").exists() or name == "save_manifest" or after == 0
    check(canary, out, tmp_path / "outside")
    run(path, out)
    check(canary, out, tmp_path / "outside")
    assert [c.detail for c in verify(out) if not c.ok and "README.txt" not in c.detail] == []
    assert not list(out.glob("**/*.yours"))


def test_a_build_refused_by_the_lock_removes_nothing(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    with hold_folder(out):
        (out / "other.txt").write_text("of the build that holds it")
        with pytest.raises(RecipeError, match="process"):
            run(path, out)
        assert (out / "other.txt").exists()
        assert (out / BUILDING / "lock").exists()


def test_a_build_that_fails_before_work_leaves_no_folder_it_made(tmp_path: Path) -> None:
    path, out = recipe(tmp_path, mix={"size": 10**9}), tmp_path / "deep" / "er" / "set"
    with pytest.raises(RecipeError):
        build(Recipe.read(path), Options(out, tmp_path / ".datamix", 1))
    assert not (tmp_path / "deep").exists()


def test_the_cache_may_lie_inside_out(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    options = Options(out, out / ".datamix", 1)
    first = build(Recipe.read(path), options)
    write_jsonl(tmp_path / "general.jsonl", alpaca(GENERAL, 310))
    second = build(Recipe.read(path), options)
    assert first["content_sha256"] != second["content_sha256"]
    assert (out / ".datamix" / "store").is_dir()
    assert all(c.ok for c in verify(out))


@pytest.mark.parametrize(
    ("out", "cache"), [("c", "c"), ("c/set", "c"), ("set", "set/train"), ("set", "set/.building")]
)
def test_out_and_cache_among_each_others_files_are_refused(tmp_path: Path, out: str, cache: str) -> None:
    path = recipe(tmp_path)
    with pytest.raises(RecipeError, match="cache"):
        build(Recipe.read(path), Options(tmp_path / out, tmp_path / cache, 1))
    assert not (tmp_path / out).exists()


def test_a_build_into_the_current_folder_works_and_leaves_its_cache_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path / "project")
    (tmp_path / "runs" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs" / "here")
    for _ in range(2):
        done = datamix("build", path, "-o", ".", "--workers", "1")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / ".datamix").is_dir()
    assert "already built" in done.stdout + done.stderr


def test_the_set_is_never_read_as_its_own_input(tmp_path: Path) -> None:
    path = recipe(tmp_path, sources={"all": {"path": "data/"}}, validation=None)
    write_jsonl(tmp_path / "data" / "general.jsonl", alpaca(GENERAL, 300))
    out = tmp_path / "data" / "set"
    first = run(path, out)
    assert [i["path"] for i in first["inputs"]] == ["data/general.jsonl"]
    write_jsonl(tmp_path / "data" / "general.jsonl", alpaca(GENERAL, 310))
    second = run(path, out)
    assert [i["path"] for i in second["inputs"]] == ["data/general.jsonl"]
    only = recipe(tmp_path / "b", sources={"all": {"path": str(out)}}, validation=None)
    shutil.copytree(tmp_path / "data" / ".datamix", tmp_path / "b" / ".datamix")
    with pytest.raises(RecipeError, match="only files of the set"):
        build(Recipe.read(only), Options(out, tmp_path / "b" / ".datamix", 1, overwrite=True))


def flip(path: Path) -> None:
    """Change one byte in place, size and times as before."""
    stat = path.stat()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_what_verify_finds_broken_is_repaired_by_the_next_build(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    run(path, out)
    whole = fingerprint(out)
    shard = next((out / "train").glob("*.parquet"))
    flip(shard)
    assert datamix("verify", out).returncode == 1
    assert (out / out_folder.FAILED).exists()
    run(path, out)
    repaired = {n: d for n, d in fingerprint(out).items() if not n.endswith(".yours")}
    assert repaired == whole
    assert shard.with_name(f"{shard.name}.yours").exists()
    assert datamix("verify", out).returncode == 0  # what was set aside is no fault of the set
    shard.with_name(f"{shard.name}.yours").unlink()
    assert fingerprint(out) == whole


def test_overwrite_reads_every_file_of_a_set_that_is_already_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    run(path, out)
    whole = fingerprint(out)
    shard = next((out / "train").glob("*.parquet"))
    flip(shard)
    monkeypatch.setattr(
        out_folder, "_state", lambda p: (p.stat().st_size, 0, 0, 0)
    )  # a disk that flipped a bit by itself
    run(path, out, overwrite=True)
    assert fingerprint(out)["train/" + shard.name] == whole["train/" + shard.name]


def test_a_changed_byte_is_noticed_by_a_plain_build_and_a_missing_report_is_made_again(
    tmp_path: Path,
) -> None:
    path, out, screen = recipe(tmp_path), tmp_path / "set", Lines()
    run(path, out)
    whole = fingerprint(out)
    flip(out / "tokenizer" / "tokenizer.json")
    (out / "report.html").unlink()
    run(path, out, screen=screen)
    assert not any("nothing to do" in line for line in screen.lines)
    assert {n: d for n, d in fingerprint(out).items() if not n.endswith(".yours")} == whole


def test_an_export_replaces_only_its_listed_files_and_keeps_rejects(tmp_path: Path) -> None:
    path, out = recipe(tmp_path, write=["parquet"]), tmp_path / "set"
    with (tmp_path / "general.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("not json\n")
    run(path, out)
    cache = tmp_path / ".datamix"
    export(out, [("jsonl", ())], cache, 1)
    (out / "jsonl" / "mine.txt").write_text("mine")
    export(out, [("jsonl", ())], cache, 1)
    assert (out / "jsonl" / "mine.txt").read_text() == "mine"
    (out / "jsonl" / "mine.txt").unlink()
    assert [c.detail for c in verify(out) if not c.ok] == []
    assert any(
        e["path"].startswith("rejects/") for e in json.loads((out / "manifest.json").read_bytes())["outputs"]
    )


def test_an_export_over_files_of_somebody_else_is_refused_with_the_set_whole(tmp_path: Path) -> None:
    path, out = recipe(tmp_path, write=["parquet"]), tmp_path / "set"
    run(path, out)
    (out / "jsonl" / "train").mkdir(parents=True)
    names = {p.name for p in (out / "train").iterdir()}
    (out / "jsonl" / "train" / f"{min(names).split('.')[0]}.jsonl").write_text("mine")
    before = fingerprint(out)
    with pytest.raises(RecipeError, match="must go"):
        export(out, [("jsonl", ())], tmp_path / ".datamix", 1)
    after = {n: d for n, d in fingerprint(out).items() if not n.startswith(BUILDING)}
    assert after == before


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_export_stopped_anywhere_leaves_a_set_that_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    path, out = recipe(tmp_path, write=["parquet"]), tmp_path / "set"
    run(path, out)
    export(out, [("jsonl", ())], tmp_path / ".datamix", 1)
    calls = 0
    original = os.rename

    def stop(source: Any, target: Any) -> None:
        nonlocal calls
        calls += "/new/" in str(source)
        if calls > after:
            raise KeyboardInterrupt
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("datamix.pipeline.out_folder.os.rename", stop)
        with pytest.raises(KeyboardInterrupt):
            export(out, [("jsonl", ())], tmp_path / ".datamix", 1)
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert all((out / e["path"]).is_file() for e in manifest["outputs"])
    export(out, [("jsonl", ())], tmp_path / ".datamix", 1)
    assert [c.detail for c in verify(out) if not c.ok] == []


def test_a_cache_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    options = Options(tmp_path / "set", tmp_path / "notes", 1)
    with pytest.raises(RecipeError, match=r"The cache .*notes is a file\. Name a folder"):
        build(Recipe.read(recipe(tmp_path)), options)
    assert (tmp_path / "notes").read_text() == "mine"


def test_the_manifest_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(f"-> {b}"), replace(a, b)))
    out_folder.save_manifest(tmp_path, {"name": "x"})
    flushed, named, folder = events
    assert Path(flushed).name.startswith("manifest.json.partial")
    assert (named, folder) == (f"-> {tmp_path / 'manifest.json'}", str(tmp_path))


def test_a_manifest_that_cannot_be_read_is_the_machines_failure_and_no_missing_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = recipe(tmp_path), tmp_path / "set"
    run(path, out)
    before, read_bytes = fingerprint(out), Path.read_bytes

    def fail(self: Path) -> bytes:
        if self.name == "manifest.json":
            raise OSError(errno.EIO, "broken", str(self))
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", fail)
    for command in (
        lambda: run(path, out),
        lambda: export(out, [("jsonl", ())], None),
        lambda: prune(tmp_path / ".datamix"),
    ):
        with pytest.raises(MachineError, match=r"manifest\.json cannot be read: Input/output error"):
            command()
    monkeypatch.undo()
    assert fingerprint(out) == before


def test_a_full_disk_at_the_very_end_leaves_no_draft_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target.parent.name == "files":
            raise OSError(errno.ENOSPC, "full", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(MachineError, match="No space left"):
        run(recipe(tmp_path), tmp_path / "set")
    cache = tmp_path / ".datamix"
    assert [*(cache / "files").iterdir(), *(cache / "store/partial").iterdir()] == []


def test_a_limit_that_lets_a_part_of_the_marker_through_does_not_lock_the_user_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, sizes = os.pwrite, [9]

    def write_a_part(handle: int, content: bytes, place: int) -> int:
        if not sizes:
            raise OSError(errno.EFBIG, "too large")
        return pwrite(handle, content[: sizes.pop()], place)

    monkeypatch.setattr(os, "pwrite", write_a_part)
    with pytest.raises(MachineError, match="File too large"), hold_folder(tmp_path / "set"):
        pass
    monkeypatch.undo()
    assert (tmp_path / "set" / BUILDING / "datamix").stat().st_size == 9
    with hold_folder(tmp_path / "set"):
        assert (tmp_path / "set" / BUILDING / "datamix").read_text().startswith("Work in progress")


def test_a_marker_that_cannot_be_opened_under_the_lock_is_an_error_and_no_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_file = [0], os.open

    def fail(path: Any, flags: int, mode: int = 0o777) -> int:
        opened[0] += Path(path).name == "datamix"
        if opened[0] > 1:
            raise OSError(errno.EMFILE, "no more", str(path))
        return open_file(path, flags, mode)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(MachineError, match="Too many open files"), hold_folder(tmp_path / "set"):
        pass


def test_what_a_killed_process_with_the_same_pid_left_of_a_manifest_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / f"manifest.json.partial-{os.getpid()}").write_text('{"name": "ha')
    out_folder.save_manifest(tmp_path, {"name": "x"})
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"name": "x"}
