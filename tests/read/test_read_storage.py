"""Files elsewhere: the same rows through fsspec, and failures that name the address without its secrets."""

import gzip
import hashlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import rows_of

from datamix.core.errors import DataError, RecipeError
from datamix.read import cut, file_state, find, read, sha256_of, sniff

LINES = b"".join(b'{"i":%d}\n' % i for i in range(500))


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/corpus/a.jsonl", LINES)
    filesystem.pipe("/corpus/b.jsonl.gz", gzip.compress(LINES))
    filesystem.pipe("/corpus/sub/c.csv", b"q,a\n1,2\n")
    filesystem.pipe("/corpus/.hidden", b"")
    table = pa.table({"i": list(range(500))})
    with filesystem.open("/corpus/sub/d.parquet", "wb") as stream:
        pq.write_table(table, stream, row_group_size=100)
    with (
        filesystem.open("/corpus/sub/e.arrow", "wb") as stream,
        pa.ipc.new_file(stream, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=100)
    yield filesystem
    filesystem.rm("/corpus", recursive=True)


def test_every_container_is_read_through_fsspec(memory: fsspec.AbstractFileSystem) -> None:
    paths = find(["memory://corpus"], "anywhere")
    assert [path.rsplit("corpus/", 1)[1] for path in paths] == [
        "a.jsonl",
        "b.jsonl.gz",
        "sub/c.csv",
        "sub/d.parquet",
        "sub/e.arrow",
    ]
    for path in paths:
        values = rows_of(path).values
        assert values == ([{"q": "1", "a": "2"}] if path.endswith("csv") else [{"i": i} for i in range(500)])
    assert find(["memory://corpus/*.jsonl*"], "") == paths[:2]
    assert memory.exists("/corpus/.hidden")


def test_slices_of_a_remote_file_are_its_records(memory: fsspec.AbstractFileSystem) -> None:
    path = find(["memory://corpus/a.jsonl"], "")[0]
    pieces = cut(path, sha256_of(path), sniff(path), 1000)
    assert len(pieces) > 3
    assert [v["i"] for piece in pieces for rows in read(piece) for v in rows.values] == list(range(500))
    assert memory.info("/corpus/a.jsonl")["size"] == len(LINES)


def test_remote_state_changes_with_the_content(memory: fsspec.AbstractFileSystem) -> None:
    before = file_state("memory://corpus/a.jsonl")
    assert before == file_state("memory://corpus/a.jsonl")
    assert before[0] == len(LINES)
    memory.pipe("/corpus/a.jsonl", LINES + b"\n")
    assert file_state("memory://corpus/a.jsonl") != before


@pytest.mark.usefixtures("memory")
def test_what_is_not_there_is_said() -> None:
    with pytest.raises(RecipeError, match="memory://corpus/x"):
        find(["memory://corpus/x*.jsonl"], "")
    with pytest.raises(DataError, match="no such file"):
        sniff("memory://corpus/nothing.jsonl")


def test_secrets_of_an_address_are_not_told() -> None:
    with pytest.raises((DataError, RecipeError)) as caught:
        sniff("unknownstore://user:secret@host/file.jsonl?token=hidden")
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_local_state_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(LINES)
    stat = os.stat(path)
    assert file_state(str(path)) == (len(LINES), stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    assert sha256_of(str(path)) == hashlib.sha256(LINES).hexdigest()
    with pytest.raises(DataError, match="no such file"):
        file_state(str(tmp_path / "b"))
    with pytest.raises(DataError, match="folder"):
        sha256_of(str(tmp_path))


def test_local_files_do_not_touch_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    monkeypatch.setattr(fsspec.core, "url_to_fs", None)
    path = find(["a.jsonl"], str(tmp_path))[0]
    assert len(rows_of(path).values) == 500
    assert sha256_of(path)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_file_behind_http_is_read(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http through aiohttp")
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("a.jsonl", "b.jsonl.gz"):
            url = f"http://127.0.0.1:{server.server_port}/{name}"
            assert find([url], "") == [url]
            assert [v["i"] for v in rows_of(url).values] == list(range(500))
            assert sha256_of(url) == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        with pytest.raises(RecipeError, match="no such file"):
            find([f"http://127.0.0.1:{server.server_port}/nothing.jsonl"], "")
        server.shutdown()
