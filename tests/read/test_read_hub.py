"""``hf://`` addresses, read from a small Hub on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LINES = b"".join(b'{"i":%d}\n' % i for i in range(500))
FILES = {"data/a.jsonl": LINES, "data/b.jsonl": b'{"i":1}\n', "README.md": b"# A dataset card"}

SCRIPT = """
import json
from datamix.core.errors import RecipeError
from datamix.read import cut, file_state, find, read, sha256_of, sniff
told = {}
for url in ("data/*.jsonl", "data/a.jsonl", "", "data/c.jsonl"):
    try:
        told[url] = find([f"hf://datasets/owner/name@main/{url}".rstrip("/")], "")
    except RecipeError as error:
        told[url] = str(error)
path = told["data/a.jsonl"][0]
pieces = cut(path, sha256_of(path), sniff(path), 1000)
told["values"] = [value["i"] for piece in pieces for rows in read(piece) for value in rows.values]
told["sha256"] = sha256_of(path)
told["state"] = file_state(path)
print(json.dumps(told))
"""


class Hub(BaseHTTPRequestHandler):
    """The four answers of the Hub's API that reading needs."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if "/tree/main" in path:
            self.reply(
                json.dumps(listing(path.partition("/tree/main")[2].strip("/"), "recursive=true" in query))
            )
        elif path.startswith("/api/datasets/owner/name"):
            self.reply(json.dumps({"id": "owner/name", "sha": "a" * 40, "siblings": []}))
        elif (name := path.partition("/resolve/main/")[2]) in FILES:
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            whole = FILES[name]
            part = whole[int(first) : int(last) + 1 if last else None]
            self.reply(part, f"bytes {first}-{int(first) + len(part) - 1}/{len(whole)}")
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.reply("[]")

    def reply(self, body: str | bytes, content_range: str | None = None) -> None:
        content = body.encode() if isinstance(body, str) else body
        self.send_response(206 if content_range else 200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(content)


def listing(folder: str, recursive: bool) -> list[dict[str, object]]:
    inside = {name: content for name, content in FILES.items() if name.startswith(folder)}
    files = [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for name, content in inside.items()
        if recursive or "/" not in name.removeprefix(folder).strip("/")
    ]
    if folder:
        return files
    return [{"type": "directory", "path": "data", "oid": "d" * 40, "size": 0}, *files]


def test_a_dataset_on_the_hub_is_listed_and_read(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
        }
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=os.environ | here, capture_output=True, text=True, check=False
        )
        server.shutdown()
    assert done.stderr == ""
    told = json.loads(done.stdout)
    both = [f"hf://datasets/owner/name@main/data/{name}.jsonl" for name in "ab"]
    assert told["data/*.jsonl"] == told[""] == both
    assert told["data/a.jsonl"] == both[:1]
    assert "nearest name is" in told["data/c.jsonl"]
    assert told["values"] == list(range(500))
    assert told["sha256"] == hashlib.sha256(LINES).hexdigest()
    assert told["state"][0] == len(LINES)
    assert told["state"][1] > 0
