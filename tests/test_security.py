"""What hostile input cannot do: each row of SECURITY.md that no other test holds."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import GENERAL, ROOT, alpaca, fingerprint, recipe, write_jsonl

import datamix as package
from datamix import Recipe, verify
from datamix.commands import cli
from datamix.core.errors import DataError, DatamixError, RecipeError
from datamix.core.hashing import file_sha256
from datamix.jobs.build import build
from datamix.pipeline import store
from datamix.pipeline.built_sets import load
from datamix.pipeline.steps import Options
from datamix.recipe import strict_yaml

SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def built(path: Path, name: str = "set") -> Path:
    build(Recipe.read(path), Options(path.parent / name, path.parent / ".datamix", 1))
    return path.parent / name


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, and a virtual set of the same recipe."""
    folder = tmp_path_factory.mktemp("stranger")
    path = recipe(folder)
    built(path)
    value = json.loads(path.read_text("utf-8")) | {"write": [], "name": "virtual"}
    (folder / "virtual.yaml").write_text(json.dumps(value), encoding="utf-8")
    built(folder / "virtual.yaml", "virtual")
    return folder


@pytest.fixture
def copied(honest: Path, tmp_path: Path) -> Iterator[Path]:
    """The same from a stranger: copied, beside files of the user's own that stay as they are."""
    shutil.copytree(honest, tmp_path / "got", copy_function=shutil.copy)
    own = tmp_path / "own"
    write_jsonl(own / "train" / "secret.jsonl", [{"text": "secret"}])
    shutil.copy(honest / "set" / "train" / "00000.parquet", own / "train" / "secret.parquet")
    before = fingerprint(own)
    yield tmp_path / "got"
    assert fingerprint(own) == before


def changed(out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((out / "manifest.json").read_bytes())
    change(manifest)
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def command(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and messages of a command in this process."""
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages), contextlib.redirect_stdout(messages):
            cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0), messages.getvalue()
    return 0, messages.getvalue()


def refused_by_all(out: Path, honest: Path, word: str) -> None:
    """No command that opens the set reads what it leads to; each says why and ends as expected failures do."""
    before = fingerprint(out)
    for arguments in (
        ["inspect", out],
        ["export", out, "--to", "trl"],
        ["diff", out, honest / "set"],
        ["report", out],
    ):
        code, messages = command(*arguments)
        assert code in (2, 3), (arguments, messages)
        assert word in messages, arguments
    with pytest.raises(DatamixError):
        package.open(out)[0]
    assert not all(check.ok for check in verify(out))
    marks = {".verify-failed"}
    assert {n: d for n, d in fingerprint(out).items() if n not in marks} == before


@pytest.mark.parametrize(
    "path", ["../own/train/secret.parquet", "train/../../own/train/secret.parquet", "/etc/passwd"]
)
def test_a_manifest_that_lists_files_elsewhere_is_refused(copied: Path, honest: Path, path: str) -> None:
    changed(copied / "set", lambda manifest: manifest["outputs"][0].update(path=path))
    refused_by_all(copied / "set", honest, "manifest.json")


def test_a_link_that_leads_out_of_the_set_is_refused_unless_its_content_is_the_listed_one(
    copied: Path, honest: Path
) -> None:
    shard = copied / "set" / "train" / "00000.parquet"
    shutil.move(shard, copied / "blob")
    shard.symlink_to(copied / "blob")  # as snapshots of the Hub are laid out
    assert all(check.ok for check in verify(copied / "set"))
    assert len(package.open(copied / "set")[0]["input_ids"])
    shard.unlink()
    shard.symlink_to(copied.parent / "own" / "train" / "secret.jsonl")
    refused_by_all(copied / "set", honest, "leads out of the set")


def forge_rows(shard: Path, how: str) -> None:
    """Change the rows of a shard, digests and sizes of the manifest included: only their meaning is wrong."""
    table = pq.read_table(shard)
    place = table.column_names.index("records")
    if how == "columns":
        table = table.drop_columns(["source"])
    elif how == "lengths":
        labels = pa.array([[1] for _ in range(len(table))], table.schema.field("labels").type)
        table = table.set_column(table.column_names.index("labels"), "labels", labels)
    else:
        huge = {"file": 2**31 - 1, "record": 2**62, "start": -5, "length": 2**31 - 1}
        records = pa.array([[huge] for _ in range(len(table))], table.schema.field("records").type)
        table = table.set_column(place, "records", records)
    pq.write_table(table, shard)
    entry = {"bytes": shard.stat().st_size, "sha256": file_sha256(shard)}
    changed(
        shard.parent.parent,
        lambda m: [e.update(entry) for e in m["outputs"] if e["path"] == f"train/{shard.name}"] and None,
    )


@pytest.mark.parametrize("how", ["columns", "lengths", "records"])
def test_rows_that_lie_are_told_and_crash_nothing(copied: Path, honest: Path, how: str) -> None:
    out = copied / "set"
    forge_rows(out / "train" / "00000.parquet", how)
    assert not all(check.ok for check in verify(out))
    for arguments in (
        ["inspect", out],
        ["inspect", out, "--row", "1"],
        ["diff", out, honest / "set"],
        ["report", out],
    ):
        code, messages = command(*arguments)
        assert code in (0, 3), messages
        assert "bug in datamix" not in messages


@pytest.mark.parametrize("at", [0.1, 0.5, 0.98])
def test_bytes_of_parquet_that_are_damaged_are_told(copied: Path, at: float) -> None:
    shard = copied / "set" / "train" / "00000.parquet"
    content = bytearray(shard.read_bytes())
    place = int(at * len(content))
    content[place : place + 40] = bytes(40)
    shard.write_bytes(content)
    assert "files" in [check.name for check in verify(copied / "set") if not check.ok]
    assert command("inspect", copied / "set")[0] in (0, 3)


def forge_result(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change a result of a cache and seal it again, as somebody who made the cache can."""
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    receipt = json.loads((path.parent / "receipt.json").read_bytes())
    receipt["files"][path.name][:2] = [len(content), store._digest(path)]
    receipt["seal"] = store._seal(receipt["key"], receipt["files"], receipt["counts"])
    (path.parent / "receipt.json").write_text(json.dumps(receipt), encoding="utf-8")


def virtual_key(folder: Path) -> str:
    return str(json.loads((folder / "virtual" / "manifest.json").read_bytes())["key"])


@pytest.mark.parametrize("name", ["order.arrow", "train.arrow", "tokens.arrow"])
def test_a_forged_cache_gives_no_rows_and_no_crash(copied: Path, name: str) -> None:
    cache, key = copied / ".datamix", virtual_key(copied)
    assert load(cache, key) is not None  # a copy is sound as it is
    path = max((cache / "store").rglob(name), key=lambda p: p.stat().st_size)
    content, refused = path.read_bytes(), 0
    for place in range(8, len(content) - 64, max(64, len(content) // 40) & ~7):

        def overwrite(forged: bytearray, at: int = place) -> None:
            forged[:] = content
            forged[at : at + 64] = np.full(8, 2**62 + 2**30, np.int64).tobytes()

        forge_result(path, overwrite)
        if load(cache, key) is None:
            refused += 1
            continue
        rows = package.open(copied / "virtual")  # what is read nevertheless is within the files
        assert rows[0 : len(rows)]
    assert refused
    forge_result(path, lambda forged: forged.__delitem__(slice(-200, None)))
    with pytest.raises(DataError, match="Run the same `datamix build"):
        package.open(copied / "virtual")


def test_a_cache_cannot_name_files_outside_it(copied: Path) -> None:
    path = copied / ".datamix" / "sets" / f"{virtual_key(copied)}.json"
    text = path.read_text("utf-8")
    for forged in (text.replace("@store/", "@store/../../../own/", 1), text.replace("@store/", "/etc/", 1)):
        path.write_text(forged, encoding="utf-8")
        assert load(copied / ".datamix", virtual_key(copied)) is None
    path.write_text(re.sub(r'"num_rows":\d+', '"num_rows":99999999', text), encoding="utf-8")
    assert load(copied / ".datamix", virtual_key(copied)) is None


def test_an_arrow_export_with_forged_offsets_is_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path, write=["arrow"])
    out = built(path)
    file = next((out / "arrow").rglob("*.arrow"))
    batches = list(pa.ipc.open_stream(file.read_bytes()))
    ids, labels = batches[0].column("input_ids"), batches[0].column("labels")
    offsets = np.frombuffer(ids.buffers()[1], np.int32).copy()
    offsets[1] = 2**30
    forged = pa.ListArray.from_buffers(
        ids.type, len(ids), [None, pa.py_buffer(offsets)], children=[ids.values]
    )
    short = pa.ListArray.from_arrays(pa.array(np.zeros(len(labels) + 1, np.int32)), labels.values)
    from datamix.load.stores import ArrowStore

    for name, column in (("input_ids", forged), ("labels", short)):
        number = batches[0].schema.names.index(name)
        batch = batches[0].set_column(number, batches[0].schema.field(number), column)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        rows = ArrowStore([file])
        with pytest.raises(DataError, match=r"damaged|unequal"):
            rows.fill(
                np.zeros((2, 1 << 16), np.int64), ["input_ids", "labels"], np.array([0, 1]), np.array([0, 9])
            )


PICKLE = b"\x80\x04c__builtin__\neval\n(V__import__('pathlib').Path('OWNED').touch()\ntR."


def test_pickles_are_never_opened_and_code_beside_a_tokenizer_never_runs(tmp_path: Path) -> None:
    code = f"import pathlib; pathlib.Path({str(tmp_path / 'OWNED')!r}).touch()\nclass T: pass\n"
    payload = PICKLE.replace(b"OWNED", str(tmp_path / "OWNED").encode())
    path = recipe(tmp_path)
    config = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_bytes())
    config |= {
        "auto_map": {"AutoTokenizer": ["evil.T", None]},
        "tokenizer_class": "T",
        "trust_remote_code": True,
    }
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "tokenizer" / "config.json").write_text(
        json.dumps({"auto_map": {"AutoConfig": "evil.T"}}), encoding="utf-8"
    )
    for name in ("evil.py", "__init__.py", "sitecustomize.py", "conftest.py"):
        (tmp_path / "tokenizer" / name).write_text(code, encoding="utf-8")
    for name in ("tokenizer.pkl", "pytorch_model.bin", "added_tokens.pt"):
        (tmp_path / "tokenizer" / name).write_bytes(payload)
    out = built(path)
    assert sorted(p.name for p in (out / "tokenizer").iterdir() if p.suffix not in (".json", ".jinja")) == []
    for name in ("data.pkl", "data.jsonl", "data.parquet", "data.npy", "data.pt"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(payload)
        assert command("check", tmp_path / "in" / name)[0] in (1, 2, 3)
    assert not (tmp_path / "OWNED").exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\n", "aliases"),
        ("a: !!python/object/apply:os.system [touch OWNED]\n", "tags"),
        ("a: !!timestamp 2001-01-01\n", "tags"),
        ("a: " + "[" * 200 + "]" * 200, "nested|deeper"),
        ("a: " + "x" * 1_100_000, "larger than"),
        ("<<: {a: 1}\nb: 2\n", None),
    ],
)
def test_yaml_makes_nothing_but_plain_values(text: str, word: str | None) -> None:
    if word is None:
        assert strict_yaml.load(text, "r").value == {"<<": {"a": 1}, "b": 2}
        return
    with pytest.raises(RecipeError, match=word):
        strict_yaml.load(text, "r")


@pytest.mark.parametrize("name", ["../up", "/tmp/up", "a/b", "..", "a\x00b", ".building"])
def test_no_name_of_a_recipe_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    path = recipe(tmp_path / "in")
    value = json.loads(path.read_text("utf-8"))
    for change in ({"name": name}, {"sources": {name: value["sources"]["general"]}}, {"write": [name]}):
        options = Options(tmp_path / "in" / "set", tmp_path / "in" / ".datamix", 1)
        with pytest.raises(DatamixError):
            build(Recipe.of(value | change, tmp_path / "in"), options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("text", ["{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__.os }}", "{% include '/etc/passwd' %}",
                                  "{{ messages.__class__ }}", "{{ ''|attr('__class__') }}", "{{ '{0.__class__}'.format(1) }}"])  # fmt: skip
def test_a_template_reaches_nothing_but_its_values(text: str) -> None:
    from datamix.tokenize.chat_template import ChatTemplate, TemplateFailure

    try:
        written = ChatTemplate(text, (), {}).render([{"role": "user", "content": "a"}], None, {}, False)
    except (TemplateFailure, RecipeError):
        return
    assert written == ""


@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="needs chromium: scripts are tried in a real browser"
)
def test_no_script_of_a_record_or_name_runs_in_the_report(tmp_path: Path) -> None:
    attack = "<script>document.title='OWNED'</script><img src=x onerror=\"document.title='OWNED'\"><svg/onload=document.title='OWNED'>"
    attack += "'\"></title></style></script><script>document.title='OWNED'</script> javascript:document.title='OWNED' {{7*7}}"
    rows = [
        {"instruction": f"{attack} {q['instruction']}", "input": attack, "output": f"{attack}{q['output']}"}
        for q in alpaca(GENERAL, 40)
    ]
    path = recipe(tmp_path)
    write_jsonl(tmp_path / "<img src=x onerror=document.title='OWNED'>.jsonl", rows)
    value = json.loads(path.read_text("utf-8"))
    value["sources"]["general"]["path"] = "<img*.jsonl"
    value["sources"]["general"]["license"] = attack
    path.write_text(json.dumps(value), encoding="utf-8")
    out = built(path)
    assert "OWNED" in (out / "report.html").read_text("utf-8")  # as text
    for file in (out / "report.html",):
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                   "--virtual-time-budget=3000", "--dump-dom", file.as_uri()]  # fmt: skip
        page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        title = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
        assert title is not None
        assert "OWNED" not in title[1]


BLOCKED = """
import os, sys
def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr") or (
        event in ("socket.connect", "socket.sendto", "socket.bind") and isinstance(arguments[1], tuple)
    ):
        with open(os.environ["TOUCHED"], "a") as file:
            print(event, arguments[1:], file=file)
        raise PermissionError("the network is blocked")
sys.addaudithook(refuse)
"""


def test_nothing_asks_the_network_where_no_address_is_named(tmp_path: Path) -> None:
    path = recipe(tmp_path / "work")
    (tmp_path / "sitecustomize.py").write_text(BLOCKED, encoding="utf-8")
    touched = tmp_path / "touched"
    paths = os.pathsep.join([str(tmp_path), str(ROOT), *filter(None, sys.path)])
    environment = {
        "PYTHONPATH": paths,
        "TOUCHED": str(touched),
        "HF_HUB_OFFLINE": "",
        "HF_HUB_DISABLE_TELEMETRY": "",
    }
    out = tmp_path / "work" / "out"
    work = tmp_path / "work"
    commands = [
        ["init", work / "general.jsonl", "-o", work / "new.yaml"],
        ["plan", path],
        ["build", path, "-o", out, "--workers", "2"],
        ["verify", out, "--inputs"],
        ["export", out, "--to", "trl"],
        ["report", out],
    ]
    script = "import sys, json\nfrom datamix.commands import cli\nif __name__ == '__main__':\n"
    script += "    [cli.main(arguments) for arguments in json.loads(sys.argv[1])]\n"
    (tmp_path / "all.py").write_text(script, encoding="utf-8")
    arguments = [sys.executable, str(tmp_path / "all.py"), json.dumps(commands, default=str)]
    whole = {**os.environ, **environment}
    run = subprocess.run(arguments, env=whole, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert not touched.exists(), touched.read_text()
    probe = subprocess.run([sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 9))"],
                           env={**os.environ, **environment}, capture_output=True, text=True, check=False)  # fmt: skip
    assert "blocked" in probe.stderr, "the test cannot fail"


@pytest.mark.parametrize("suffix", ["xz", "bz2"])
def test_other_compressions_are_streams_too(tmp_path: Path, suffix: str) -> None:
    import bz2
    import lzma

    compress = {"xz": lzma.compress, "bz2": bz2.compress}[suffix]
    path = tmp_path / f"bomb.jsonl.{suffix}"
    path.write_bytes(compress(b'{"text": "' + bytes(70 << 20) + b'"}\n{"text": "a"}\n'))
    assert path.stat().st_size < 1 << 20
    code, messages = command("check", path)
    assert "too_long" in messages
    assert code == 1


def test_a_gzip_of_gzips_is_data_and_not_unpacked_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.compress(b'{"text": "a"}\n')))
    assert command("check", path)[0] in (1, 3)


def test_every_test_that_security_md_names_exists() -> None:
    named = re.findall(r"`(test_\w+)`", SECURITY)
    assert len(named) > 25
    texts = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in named if f"def {name}(" not in texts] == []


def test_the_licences_of_the_lock_are_listed() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    rows = dict(re.findall(r"^\| ([a-z0-9-]+) \| ([^|]+?) \|$", SECURITY, re.MULTILINE))
    assert locked == set(rows) - {"package", "---"}
    for name, listed in rows.items():
        try:
            about = metadata(name)
        except PackageNotFoundError:
            continue
        expression = about.get("License-Expression")
        if expression is not None:
            assert listed == expression, name
