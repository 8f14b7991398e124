"""User, password and query of a URL stand in nothing that datamix writes or prints."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from small import GENERAL, MEDICAL, alpaca, datamix, recipe, write_jsonl

from datamix import Recipe
from datamix.core.errors import DataError, RecipeError, mask_secrets, mask_url
from datamix.read import find
from datamix.read.storage import sha256_of

SECRETS = ("hunter2", "s3cr3t-t0ken")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("https://user:hunter2@host.example/a/b.jsonl", "https://***@host.example/a/b.jsonl"),
        ("https://user:p@ss@host/a", "https://***@host/a"),
        ("https://host/a?X-Amz-Signature=abc&b=c", "https://host/a?***"),
        ("https://host/a#token=abc", "https://host/a#***"),
        ("https://host/a?x=1#y", "https://host/a?***"),
        ("s3://key:secret@bucket/a.parquet", "s3://***@bucket/a.parquet"),
        ("hf://datasets/owner/name@main/a.jsonl", "hf://datasets/owner/name@main/a.jsonl"),
        ("zip://a.csv::https://u:p@h/x.zip?sig=1", "zip://a.csv::https://***@h/x.zip?***"),
        ("data/a?b@c.jsonl", "data/a?b@c.jsonl"),
        ("ftp://u@h", "ftp://***@h"),
        ("https://host/a#token=abc?x=1", "https://host/a#***"),
        ("https://u:pa?ss@host/a", "https://***@host/a"),
        ("https://u:pa#ss@host/a?x=1", "https://***@host/a?***"),
        ("s3://key:se/cr+et@bucket/a", "s3://***@bucket/a"),
        ("https://host/a?from=https://x::y&token=abc", "https://host/a?***"),
        ("https://u:pa'ss@host/a", "https://***@host/a"),
        ("https://host:80/@user/a", "https://host:80/@user/a"),
        ("s3://bucket/year=202?/month=1/part-??.jsonl", "s3://bucket/year=202?/month=1/part-??.jsonl"),
        ("s3://bucket/a?versionId=abc", "s3://bucket/a?***"),
    ],
)
def test_a_url_is_masked(url: str, masked: str) -> None:
    assert mask_url(url) == mask_url(masked) == masked
    assert mask_secrets(f"cannot read '{url}', try again") == f"cannot read '{masked}', try again"
    assert str(DataError(f"See {url}, then {url}.")) == f"See {masked}, then {masked}."


def test_a_storage_that_quotes_parts_of_a_url_quotes_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "s3://key:hunter2@bucket/a.jsonl?sig=s3cr3t%2Dt0ken"

    def refuse(_: str) -> None:
        raise OSError("no bucket 'key:hunter2@bucket', signature s3cr3t-t0ken")

    monkeypatch.setattr("datamix.read.storage.filesystem_of", refuse)
    with pytest.raises(DataError, match="no bucket") as raised:
        sha256_of(url)
    check_clean(str(raised.value), "".join(traceback.format_exception(raised.value)))


def test_a_file_that_is_not_there_names_its_neighbours_without_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Store(MemoryFileSystem):  # type: ignore[misc] - fsspec has no types
        """Keeps user and password in its paths, as storages do that do not know them."""

        protocol = "memory"
        store: ClassVar[dict[str, Any]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]

    store = Store()
    store.pipe("/key:hunter2@bucket/file.jsonl", b"{}")
    monkeypatch.setattr(
        "datamix.read.listing.filesystem_of", lambda url: (store, "/" + url.removeprefix("memory://"))
    )
    with pytest.raises(RecipeError, match=r"file\.jsonl") as raised:
        find(["memory://key:hunter2@bucket/fil.jsonl"], ".")
    check_clean(str(raised.value))


def test_a_wrong_option_is_quoted_without_secrets() -> None:
    done = datamix("init", "data", "--kind", "https://user:hunter2@host/a?token=s3cr3t-t0ken")
    assert done.returncode == 2
    check_clean(done.stdout, done.stderr)
    done = datamix("verify", "https://user:hunter2@host/a?token=s3cr3t-t0ken")
    assert done.returncode == 2
    check_clean(done.stdout, done.stderr)


def test_globs_that_differ_are_different_recipes(tmp_path: Path) -> None:
    shas = set()
    for glob in ("s3://bucket/part-?.jsonl", "s3://bucket/part-??.jsonl", "s3://bucket/part-?.json"):
        shas.add(Recipe.read(recipe(tmp_path, sources={"web": {"path": glob}})).sha256())
    assert len(shas) == 3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="fsspec reads http through aiohttp")
    folder = tmp_path / "served"
    write_jsonl(folder / "a.jsonl", alpaca(GENERAL, 60))
    (folder / "bad.jsonl").write_text("not json\n" * 5)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://user:hunter2@127.0.0.1:{http.server_port}/NAME?token=s3cr3t-t0ken"
        http.shutdown()


def check_clean(*texts: str) -> None:
    for text in texts:
        assert [s for s in SECRETS if s in text] == [], text


def check_folder(*folders: Path) -> None:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                raw = path.read_bytes()
                raw += repr(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else b""
                assert [s for s in SECRETS if s.encode() in raw] == [], path


@pytest.mark.parametrize("name", ["a.jsonl", "nothing.jsonl", "bad.jsonl"])
def test_a_build_from_a_url_with_secrets_writes_and_prints_none(
    tmp_path: Path, server: str, name: str
) -> None:
    path = recipe(
        tmp_path / "p", sources={"web": {"path": server.replace("NAME", name)}}, validation=None, dedupe=None
    )
    out = tmp_path / "out" / "set"
    for words in (
        ["plan", path, "-o", out],
        ["build", path, "-o", out, "--workers", "1"],
        ["build", path, "-o", out, "--workers", "1", "--debug"],
    ):
        done = datamix(*words)
        check_clean(done.stdout, done.stderr)
        assert (done.returncode == 0) == (name == "a.jsonl"), done.stderr
    if name == "a.jsonl":
        check_folder(tmp_path / "out")
        assert datamix("verify", out).returncode == 0


def test_a_refused_connection_names_no_secret(tmp_path: Path) -> None:
    url = "http://user:hunter2@127.0.0.1:9/a.jsonl?token=s3cr3t-t0ken"
    for words in (
        ["check", url],
        ["convert", url, tmp_path / "o.jsonl", "--to", "messages"],
        ["dedupe", url, "-o", tmp_path / "o.jsonl"],
        ["init", url, "-o", tmp_path / "r.yaml"],
    ):
        done = datamix(*words)
        check_clean(done.stdout, done.stderr)
        assert done.returncode in (1, 2, 3)


def test_deduplication_of_a_url_leaves_an_audit_without_secrets(tmp_path: Path, server: str) -> None:
    (tmp_path / "served" / "a.jsonl").write_bytes((tmp_path / "served" / "a.jsonl").read_bytes() * 2)
    done = datamix(
        "dedupe", server.replace("NAME", "a.jsonl"), "-o", tmp_path / "o" / "..", "-o", tmp_path / "o.jsonl"
    )
    assert done.returncode == 0, done.stderr
    check_clean(done.stdout, done.stderr)
    audit = pq.read_table(tmp_path / "o.removed.parquet").to_pylist()
    assert len(audit) == 60
    check_clean(repr(audit))


def test_another_password_is_the_same_recipe(tmp_path: Path) -> None:
    shas = set()
    for secret in SECRETS:
        path = recipe(tmp_path, sources={"web": {"path": f"https://u:{secret}@host/a.jsonl?t={secret}"}})
        shas.add(Recipe.read(path).sha256())
    assert len(shas) == 1


def test_references_and_validation_from_urls_leave_no_secrets(tmp_path: Path, server: str) -> None:
    write_jsonl(tmp_path / "served" / "b.jsonl", alpaca(MEDICAL, 60))
    url, other = server.replace("NAME", "a.jsonl"), server.replace("NAME", "b.jsonl")
    path = recipe(
        tmp_path / "p",
        validation={"path": other},
        dedupe={"exact": True, "against": [other]},
        decontaminate={"against": [{"path": url}], "ngram": 13},
    )
    out = tmp_path / "out" / "set"
    for words in (
        ["plan", path, "-o", out, "--json"],
        ["build", path, "-o", out, "--workers", "1"],
        ["verify", out],
    ):
        done = datamix(*words)
        assert done.returncode == 0, done.stderr
        check_clean(done.stdout, done.stderr)
    check_folder(tmp_path / "out")


def test_a_first_recipe_holds_the_url_as_it_was_typed_and_prints_none(tmp_path: Path, server: str) -> None:
    url = server.replace("NAME", "a.jsonl")
    done = datamix("init", url, "-o", tmp_path / "r.yaml")
    assert done.returncode == 0, done.stderr
    check_clean(done.stdout, done.stderr)
    text = (tmp_path / "r.yaml").read_text(encoding="utf-8")
    assert url in text
    assert text.count("hunter2") == 1
