"""User, password and query of a URL stand in nothing that datamix writes or prints."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from small import GENERAL, alpaca, datamix, recipe, write_jsonl

from datamix import Recipe
from datamix.core.errors import DataError, mask_secrets, mask_url

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
    ],
)
def test_a_url_is_masked(url: str, masked: str) -> None:
    assert mask_url(url) == masked
    assert mask_secrets(f"cannot read '{url}', try again") == f"cannot read '{masked}', try again"
    assert masked in str(DataError(f"{url} is gone"))


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
    raw = (tmp_path / "o.removed.parquet").read_bytes()
    assert [s for s in SECRETS if s.encode() in raw] == []


def test_another_password_is_the_same_recipe(tmp_path: Path) -> None:
    shas = set()
    for secret in SECRETS:
        path = recipe(tmp_path, sources={"web": {"path": f"https://u:{secret}@host/a.jsonl?t={secret}"}})
        shas.add(Recipe.read(path).sha256())
    assert len(shas) == 1
