"""Paths of a recipe become the same files in the same order everywhere."""

import glob
import os
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from datamix.core.errors import DataError, RecipeError
from datamix.read import file_state, find, sha256_of, sniff
from datamix.read.listing import _expanded


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.jsonl",
        "a.jsonl",
        "Z.jsonl",
        "中文.jsonl",
        "sub/c.jsonl",
        "sub/deep/d.json",
        "notes.txt",
    ):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    for hidden in (".hidden.jsonl", ".git/x.jsonl"):
        (tmp_path / "data" / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / hidden).write_text("{}")
    return tmp_path


def names(paths: list[str], tree: Path) -> list[str]:
    found = find(paths, str(tree))
    assert all(Path(path).is_absolute() for path in found)
    return [str(Path(path).relative_to(tree / "data")) for path in found]


def test_globs_folders_and_files_in_byte_order_without_duplicates(tree: Path) -> None:
    assert names(["data/*.jsonl"], tree) == ["Z.jsonl", "a.jsonl", "b.jsonl", "中文.jsonl"]
    assert names(["data/**/*.jsonl"], tree) == ["Z.jsonl", "a.jsonl", "b.jsonl", "sub/c.jsonl", "中文.jsonl"]
    everything = [
        "Z.jsonl",
        "a.jsonl",
        "b.jsonl",
        "notes.txt",
        "sub/c.jsonl",
        "sub/deep/d.json",
        "中文.jsonl",
    ]
    assert names(["data"], tree) == names(["data/"], tree) == names(["data/**"], tree) == everything
    assert names(["data/b.jsonl", "data/./a.jsonl", "data/*.jsonl", str(tree / "data")], tree) == everything
    assert names(["data/.hidden.jsonl"], tree) == [".hidden.jsonl"]


def test_names_with_glob_characters_are_taken_as_they_stand(tree: Path) -> None:
    (tree / "data" / "part[1].jsonl").write_text("{}")
    assert names(["data/part[1].jsonl"], tree) == ["part[1].jsonl"]


def test_links_are_followed_and_circles_end(tree: Path) -> None:
    (tree / "data" / "sub" / "up").symlink_to(tree / "data")
    (tree / "data" / "link.jsonl").symlink_to(tree / "data" / "a.jsonl")
    assert "link.jsonl" in names(["data"], tree)
    assert len(names(["data"], tree)) == 8


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("data/c.jsonl", r"nearest name is '.*data/[ab].jsonl'"),
        ("dat/*.jsonl", r"matches no file; the nearest name is '.*data'"),
        ("data/*.parquet", r"matches no file; .* holds"),
        ("data/s*", r"matches folders only.*'data/s\*/\*\*'"),
        ("empty", "holds no files"),
        ("nowhere/at/all.json", "no such file or folder"),
    ],
)
def test_what_matches_nothing_is_a_recipe_error_with_the_nearest_name(
    path: str, said: str, tree: Path
) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(RecipeError, match=said) as caught:
        find([path], str(tree))
    assert repr(path) in str(caught.value)


def test_what_is_not_data_is_left_out_of_data_folders_only(tmp_path: Path) -> None:
    for name in ("README.md", "LICENSE", "dataset_info.json", "state.json", "train.jsonl"):
        (tmp_path / name).write_text("{}")
    assert [Path(p).name for p in find(["."], str(tmp_path))] == ["train.jsonl"]
    assert [Path(p).name for p in find(["README.md"], str(tmp_path))] == ["README.md"]
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "README.md").write_text("#")
    (docs / "guide.md").write_text("#")
    assert [Path(p).name for p in find(["docs"], str(tmp_path))] == ["README.md", "guide.md"]


def test_a_saved_dataset_is_read_by_split(tmp_path: Path) -> None:
    for split in ("test", "train"):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        (folder / "dataset_info.json").write_text("{}")
        table = pa.table({"a": [1]})
        with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as writer:
            writer.write_table(table)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(RecipeError, match=r"several splits \(test, train\)"):
        find(["saved"], str(tmp_path))
    assert [Path(p).name for p in find(["saved/train"], str(tmp_path))] == ["data-00000-of-00001.arrow"]


@pytest.mark.parametrize(
    "pattern", ["/**" * 30, "/**" * 30 + "/*.jsonl", "/**/*" * 4 + "/**", "/**/[ab]/**/a.jsonl"]
)
def test_many_double_stars_and_links_in_circles_end(pattern: str, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"abababab")
    deep.mkdir(parents=True)
    (deep / "a.jsonl").write_text("{}\n")
    for name in ("one", "two", "three"):
        (deep / name).symlink_to(tmp_path)
        (tmp_path / "a" / name).symlink_to(tmp_path / "a")
    assert find(["." + pattern], str(tmp_path)) == [str(deep / "a.jsonl")]


@given(
    files=st.sets(st.lists(st.sampled_from(["a", "b", ".h"]), max_size=3).map(tuple), min_size=1, max_size=6),
    parts=st.lists(
        st.sampled_from(["**", "*", "a", "[ab]", "?.json", "x.json", "*.json"]), min_size=1, max_size=4
    ),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_double_stars_match_what_glob_matches(
    files: set[tuple[str, ...]], parts: list[str], tmp_path: Path
) -> None:
    # of a file, glob takes `x.json/**` for the file
    assume(("x.json", "**") not in pairwise(parts))
    with TemporaryDirectory(dir=tmp_path) as folder:
        for path in files:
            Path(folder, *path).mkdir(parents=True, exist_ok=True)
            Path(folder, *path, "x.json").touch()
        whole = os.path.join(folder, "**", *parts)
        expected = {os.path.normpath(m) for m in glob.glob(whole, recursive=True) if not os.path.isdir(m)}
        try:
            assert set(find([whole], folder)) == expected
        except RecipeError:
            assert not expected


@pytest.mark.parametrize("command", ["find", "folder"])
def test_what_is_no_file_is_refused_where_it_is_named_and_skipped_in_a_folder(
    command: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    os.mkfifo(tmp_path / "pipe.jsonl")
    if command == "folder":
        assert find(["."], str(tmp_path)) == [str(tmp_path / "a.jsonl")]
        assert find(["*.jsonl"], str(tmp_path)) == [str(tmp_path / "a.jsonl")]
        return
    with pytest.raises(RecipeError, match="is a pipe or a device, not a file"):
        find(["pipe.jsonl"], str(tmp_path))
    for read in (sniff, sha256_of, file_state):
        with pytest.raises(DataError, match="is a pipe or a device, not a file"):
            read(str(tmp_path / "pipe.jsonl"))


@pytest.mark.parametrize(
    "pattern", ["*/x.jsonl", "*/*", "a*/[xy].jsonl", "?/x.jsonl", ".h*/x.jsonl", "*", "a/x.jsonl/*"]
)
def test_one_star_matches_what_glob_matches(pattern: str, tmp_path: Path) -> None:
    for name in ("a/x.jsonl", "a/y.jsonl", "b/x.jsonl", ".hidden/x.jsonl", "a/.x.jsonl", "top.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    full = str(tmp_path / pattern)
    assert sorted(_expanded(full)) == sorted(glob.glob(full))


def test_a_folder_that_a_glob_cannot_list_is_an_error_and_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "x.jsonl").write_text("{}")
    scandir = os.scandir

    def fail(path: str) -> object:
        if path == str(tmp_path / "b"):
            raise OSError(5, "Input/output error", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(DataError, match=r"/b: could not be read"):
        find(["*/*/x.jsonl"], str(tmp_path))
