"""``datamix score`` as a user runs it: files and recipes, an endpoint, what a stopped run keeps, what cannot be scored."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from small import GENERAL, MEDICAL, TOKENIZER, alpaca, recipe, write_jsonl

import datamix
from datamix.commands.cli import cli
from datamix.core.errors import DatamixError
from datamix.scoring import read_scores


def run(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(cli, ["score", *map(str, arguments)])
    if code:
        assert isinstance(done.exception, DatamixError), (done.output, done.exception)
        assert done.exception.exit_code == code
        return str(done.exception)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def logprob(ids: list[int], place: int) -> float:
    """What the fake server gives: a function of a token and the one before it."""
    return -((ids[place] * 7 + ids[place - 1] * 3) % 11) / 4


class Server(ThreadingHTTPServer):
    num_requests = 0
    stop_after: int | None = None  # requests; then it fails for good
    echoes = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.num_requests += 1
        failed = self.server.stop_after is not None and self.server.num_requests > self.server.stop_after
        ids = body["prompt"]
        logprobs = [None, *(logprob(ids, place) for place in range(1, len(ids))), -9.0]
        logprobs = logprobs if self.server.echoes and body["echo"] and body["max_tokens"] == 1 else [-9.0]
        value = {
            "id": "x", "object": "text_completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "text": "", "finish_reason": "length", "logprobs": {
                "token_logprobs": logprobs, "tokens": [], "top_logprobs": None, "text_offset": []}}],
        }  # fmt: skip
        content = json.dumps({"error": {"message": "refused"}} if failed else value).encode()
        self.send_response(400 if failed else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[tuple[Server, str]]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{server.server_port}/v1#m"
        finally:
            server.shutdown()
            thread.join()


def test_the_likelihood_at_an_endpoint_is_that_of_the_trained_tokens_of_each_record(tmp_path: Path) -> None:
    path = recipe(
        tmp_path, clean=None, dedupe=None, validation=None, encode={"max_length": 4096, "pack": "none"}
    )
    with serving() as (_, address):
        text = run(path, "--by", f"nll:{address}", "-o", tmp_path / "s.parquet")
        run(path, "--by", f"ifd:{address}", "-o", tmp_path / "i.parquet")
    assert "general: 300 of 300 records have a score; mean" in text
    out = tmp_path / "out"
    datamix.build(path, out, workers=1)
    rows = {(r["source"], r["records"][0]["record"]): r for r in datamix.open(out)}
    scores, difficulty = (pq.read_table(tmp_path / name).to_pylist() for name in ("s.parquet", "i.parquet"))
    assert len(scores) == len(difficulty) == 500
    seen = 0
    for line, other in zip(scores, difficulty, strict=True):
        assert line["name"] == "nll"
        assert line["file"] == f"{line['source']}.jsonl"
        row = rows.get((line["source"], line["record"]))
        if row is None:  # not needed at the size of the set
            continue
        ids, labels = row["input_ids"].tolist(), row["labels"].tolist()
        given = [-logprob(ids, place) for place in range(1, len(ids)) if labels[place] != -100]
        assert math.isclose(line["score"], sum(given) / len(given), rel_tol=1e-9)
        answer = [token for token, label in zip(ids, labels, strict=True) if label != -100]
        alone = [-logprob(answer, place) for place in range(1, len(answer))]
        assert math.isclose(other["score"], line["score"] / (sum(alone) / len(alone)), rel_tol=1e-9)
        seen += 1
    assert seen > 400


def test_a_run_that_was_stopped_asks_for_nothing_twice(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "s.parquet"
    with serving() as (server, address):
        server.stop_after = 200
        message = run(path, "--by", f"nll:{address}", "-o", out, code=3)
        assert "cannot score a prompt" in message
        assert not out.exists()
        done = 64 * 3  # whole parts
        server.stop_after, server.num_requests = None, 0
        run(path, "--by", f"nll:{address}", "-o", out)
        assert server.num_requests == 500 - done + 1  # and one to see that the server can score
        first = out.read_bytes()
        server.num_requests = 0
        run(path, "--by", f"nll:{address}", "-o", out)
        assert server.num_requests == 0
    run(path, "--by", f"nll:{address}", "-o", out)  # the server is gone
    assert out.read_bytes() == first


def test_a_server_that_gives_no_prompt_logprobs_or_is_not_there_is_told(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    with serving() as (server, address):
        server.echoes = False
        assert "It must take `echo` with `logprobs`" in run(
            path, "--by", f"nll:{address}", "-o", tmp_path / "s.parquet", code=2
        )
        server.stop_after = 0
        assert "cannot score" in run(path, "--by", f"nll:{address}", "-o", tmp_path / "s.parquet", code=3)
    plain = write_jsonl(tmp_path / "plain.jsonl", alpaca(MEDICAL, 20))
    assert "Score a recipe" in run(plain, "--by", f"nll:{address}", "-o", tmp_path / "p.parquet", code=2)


@pytest.mark.parametrize("by", ["dsir", "linear"])
def test_domain_records_planted_in_a_file_score_above_the_others(tmp_path: Path, by: str) -> None:
    if by == "linear":
        pytest.importorskip("sklearn")
    medical, general = alpaca(MEDICAL, 160), alpaca(GENERAL, 300)
    write_jsonl(tmp_path / "domain.jsonl", medical[:100])
    write_jsonl(tmp_path / "other.jsonl", general[:100])
    planted = [r for pair in zip(general[100:160], medical[100:160], strict=True) for r in pair]
    write_jsonl(tmp_path / "web.jsonl", planted)
    target = f"{by}:{tmp_path / 'domain.jsonl'}" + (f",{tmp_path / 'other.jsonl'}" if by == "linear" else "")
    text = run(tmp_path / "web.jsonl", "--by", target, "--name", "med", "-o", tmp_path / "s.parquet")
    assert ("AUC" in text) == (by == "linear")
    assert f"{tmp_path / 'web.jsonl'}: 120 of 120 records have a score" in text.replace("\n", "")
    lines = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert {line["source"] for line in lines} == {""}
    best = sorted(lines, key=lambda line: -line["score"])[:60]
    assert sum(line["record"] % 2 for line in best) >= 57
    first = (tmp_path / "s.parquet").read_bytes()
    run(
        tmp_path / "web.jsonl",
        "--by",
        target,
        "--name",
        "med",
        "-o",
        tmp_path / "s.parquet",
        "--cache",
        tmp_path / "c2",
    )
    assert (tmp_path / "s.parquet").read_bytes() == first


def test_scores_by_id_are_joined_and_records_without_one_have_no_line(tmp_path: Path) -> None:
    records = [{"id": f"a-{i}", **record} for i, record in enumerate(alpaca(MEDICAL, 20))]
    path = write_jsonl(tmp_path / "web.jsonl", records)
    given = write_jsonl(tmp_path / "edu.jsonl", [{"id": f"a-{i}", "score": i / 2} for i in range(5, 30)])
    assert "15 of 20 records have a score" in run(
        path, "--by", f"jsonl:{given}", "--name", "edu", "-o", tmp_path / "s.parquet"
    )
    table = read_scores([tmp_path / "s.parquet"])
    (scored,) = table.files("edu")
    assert scored.record.tolist() == list(range(5, 20))
    assert scored.score.tolist() == [i / 2 for i in range(5, 20)]
    write_jsonl(given, [{"id": "a-1", "score": 1}, {"id": "a-1", "score": 2}])
    assert "another score above" in run(path, "--by", f"jsonl:{given}", "-o", tmp_path / "s.parquet", code=3)
    write_jsonl(given, [{"id": "a-1"}])
    assert "is no score of an id" in run(path, "--by", f"jsonl:{given}", "-o", tmp_path / "s.parquet", code=3)


def test_a_file_that_is_not_ours_is_not_replaced_and_records_that_have_no_likelihood_are_told(
    tmp_path: Path,
) -> None:
    path = write_jsonl(tmp_path / "web.jsonl", alpaca(MEDICAL, 20))
    mine = tmp_path / "mine.parquet"
    mine.write_text("mine")
    assert "exists" in run(path, "--by", f"dsir:{path}", "-o", mine, code=2)
    assert "is the input" in run(path, "--by", f"dsir:{path}", "-o", path, code=2)
    assert mine.read_text() == "mine"
    pages = write_jsonl(tmp_path / "pages.jsonl", [{"text": f"page {i}"} for i in range(20)])
    assert "ifd is of conversations" in run(
        pages, "--by", f"ifd:{TOKENIZER}", "-o", tmp_path / "s.parquet", code=2
    )
    assert "there is no such file" in run(
        path, "--by", "jsonl:none.jsonl", "-o", tmp_path / "s.parquet", code=2
    )
