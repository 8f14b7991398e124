"""``datamix synth`` from the outside, against a host in this process: what is bought, what is written, what is refused."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake_host import FakeHost, every
from small import TOKENIZER, alpaca, datamix, write_jsonl
from tokenizers import Tokenizer

import datamix as package
from datamix.core.errors import DataError, DatamixError, MachineError, RecipeError
from datamix.jobs.synth import synthesize
from datamix.pipeline.progress import Screen
from datamix.read import find
from datamix.recipe.synth_recipe import SynthRecipe
from datamix.synthesis.calls import Item
from datamix.synthesis.forecast import beginning, forecast

_TOKENIZER = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))


def count(text: str) -> int:
    return len(_TOKENIZER.encode(text, add_special_tokens=False).ids)


def decode(ids: list[int]) -> str:
    return str(_TOKENIZER.decode(ids, skip_special_tokens=False))


def fake(**options: Any) -> FakeHost:
    return FakeHost(**{"count": count, "decode": decode, "slots": 16, **options})


def magpie(host: FakeHost, **changes: Any) -> SynthRecipe:
    value: dict[str, Any] = {
        "name": "replay",
        "synth": "magpie",
        "tokenizer": str(TOKENIZER),
        "endpoint": {"base_url": host.url, "model": host.name},
        "size": 30,
        "license": "Apache-2.0",
    }
    return SynthRecipe.of({**value, **changes})


def rows(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted((out / "records").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def content(out: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and "answers" not in p.parts
    }


class Heard(Screen):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_finished_job_buys_nothing_a_larger_size_the_difference_and_other_filters_nothing(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    with fake().running() as host:
        first = synthesize(magpie(host), out)
        before, num_requests = content(out), host.num_requests
        assert synthesize(magpie(host), out) == first
        assert content(out) == before
        assert host.num_requests == num_requests
        synthesize(magpie(host, size=40), out)
        bought = host.num_requests - num_requests
        synthesize(magpie(host, size=40, filters={"min_chars": 3, "near": 0.9, "refusals": True}), out)
        synthesize(magpie(host, size=25), out)
        assert host.num_requests == num_requests + bought
    assert first["complete"]
    assert first["records"]["written"] == 30
    assert 20 <= bought <= 24  # two a record, and the check that it is the same model
    assert len(rows(out)) == 25
    shutil.rmtree(out / "records")
    synthesize(magpie(host, size=30), out)  # the host is gone: stored answers are enough
    assert content(out)["records/00000.jsonl"] == before["records/00000.jsonl"]


def test_records_are_a_source_and_everything_else_of_the_folder_is_not(tmp_path: Path) -> None:
    with fake().running() as host:
        synthesize(magpie(host, filters={"near": 0.7}), tmp_path / "replay")
    records = rows(tmp_path / "replay")
    assert all([m["role"] for m in r["messages"]] == ["user", "assistant"] for r in records)
    assert [list(r["meta"]) for r in records] == [["id", "prompt_id", "model"]] * 30
    assert len({r["meta"]["id"] for r in records}) == 30
    write_jsonl(tmp_path / "domain.jsonl", alpaca(["问题"], 60))
    shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    recipe = {
        "name": "mixed", "kind": "sft", "tokenizer": "tokenizer",
        "sources": {"replay": {"path": "replay/", "license": "Apache-2.0"}, "domain": {"path": "domain.jsonl"}},
        "encode": {"max_length": 256},
        "mix": {"unit": "records", "size": 40, "replay": {"of": "replay", "share": 0.25}},
    }  # fmt: skip
    built = package.build(package.Recipe.of(recipe, tmp_path), tmp_path / "out")
    assert built["sources"]["replay"]["records"]["read"] == 30
    assert built["sources"]["replay"]["emitted"]["records"] == 10
    assert [i["path"] for i in built["inputs"] if i["source"] == "replay"] == ["replay/records/00000.jsonl"]


def test_the_manifest_tells_model_template_sampling_price_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with fake(fault=every(9, "500")).running() as host:
        endpoint = {"base_url": host.url, "model": host.name, "api_key_env": "MY_KEY"}
        budget = {"tokens": "1M", "price": {"prompt": 0.15, "completion": 0.6}}
        manifest = synthesize(magpie(host, endpoint=endpoint, budget=budget), tmp_path / "out")
        assert host.keys == {"Bearer sk-very-secret"}
    assert manifest["model"]["license"] == "Apache-2.0"
    assert manifest["model"]["chat_template_sha256"]
    assert manifest["recipe"]["sampling"]["answer"]["temperature"] == 0
    assert manifest["prompt"].endswith("user\n")
    assert manifest["spent"]["requests"] == host.num_requests
    assert manifest["spent"]["unanswered"] > 0
    tokens = manifest["spent"]["prompt_tokens"] * 0.15 + manifest["spent"]["completion_tokens"] * 0.6
    assert manifest["spent"]["money"] == pytest.approx(tokens / 1e6)
    everything = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"very-secret" not in everything
    assert host.url.encode() not in everything
    assert str(tmp_path).encode() not in everything


def test_the_key_can_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-from-file\n")
    with fake().running() as host:
        value = magpie(host, size=2).model_dump()
        value["endpoint"] |= {"api_key_file": "key"}
        synthesize(SynthRecipe.of(value, tmp_path), tmp_path / "out")
        assert host.keys == {"Bearer sk-from-file"}
        value["endpoint"] |= {"api_key_file": "none"}
        with pytest.raises(RecipeError, match="api_key_file"):
            synthesize(SynthRecipe.of(value, tmp_path), tmp_path / "other")


def test_a_budget_that_is_reached_ends_well_and_more_of_it_goes_on(tmp_path: Path) -> None:
    with fake().running() as host:
        first = synthesize(magpie(host, budget={"requests": 31}), tmp_path)
        assert host.num_requests <= 31
        assert (first["complete"], first["why"]) == (False, "The budget is reached.")
        assert 0 < first["records"]["written"] < 30
        second = synthesize(magpie(host, budget={"requests": 100}), tmp_path)
    assert second["complete"]
    assert (
        max(Counter((str(b.get("prompt")), b["seed"]) for b in host.asked if b["max_tokens"] > 16).values())
        == 1
    )


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    with fake(seconds=30.0).running() as host:
        recipe.write_text(json.dumps(magpie(host).model_dump(mode="json")))
        command = [
            sys.executable,
            "-m",
            "datamix",
            "synth",
            str(recipe),
            "-o",
            str(tmp_path / "out"),
            "--quiet",
        ]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
            while not host.num_requests:
                assert first.poll() is None
                time.sleep(0.01)
            with pytest.raises(RecipeError, match=f"process {first.pid}"):
                synthesize(magpie(host), tmp_path / "out")
            first.send_signal(signal.SIGTERM)
            assert first.wait(20) == 143
            second = subprocess.Popen([*command, "--debug"], stderr=subprocess.DEVNULL)
            asked = host.num_requests
            while host.num_requests == asked:
                assert second.poll() is None
                time.sleep(0.01)
            second.kill()
            second.wait()
    with fake().running() as host:
        assert synthesize(magpie(host), tmp_path / "out")["complete"]


def test_an_interrupted_folder_is_no_corpus_and_goes_on(tmp_path: Path) -> None:
    with fake(fault=lambda n, body: "500" if n > 30 else None).running() as host, pytest.raises(MachineError):
        synthesize(
            magpie(host, endpoint={"base_url": host.url, "model": host.name, "max_in_flight": 1}),
            tmp_path / "out",
        )
    with pytest.raises(RecipeError, match="written no records there yet"):
        find(["out"], str(tmp_path))
    with fake().running() as host:
        assert synthesize(magpie(host), tmp_path / "out")["complete"]


HOSTS: dict[str, tuple[dict[str, Any], str]] = {
    "templating": ({"templates": True, "takes_ids": False}, "applies a chat template"),
    "second bos": ({"adds_bos": True}, "second BOS"),
    "ignores stops": ({"ignores_stops": True}, "ignores `stop`"),
    "strict": ({"strict": True}, "refuses parameters"),
    "without usage": ({"with_usage": False}, "does not say how many tokens"),
}


@pytest.mark.parametrize("name", HOSTS)
def test_the_checks_find_what_a_host_does_to_prompts(tmp_path: Path, name: str) -> None:
    options, said = HOSTS[name]
    screen = Heard()

    def reply(body: dict[str, Any], prompt: str) -> str:
        return (
            "9 10 11 12 13 14 15 16<|im_end|>\n<|im_start|>assistant\nleak"
            if body["max_tokens"] == 16
            else f"Question {body['seed']}?"
        )

    with fake(reply=reply, **options).running() as host:
        if name == "templating":
            with pytest.raises(RecipeError, match=said):
                synthesize(magpie(host), tmp_path, screen)
            assert all(b["max_tokens"] <= 16 for b in host.asked)  # nothing was bought
            return
        manifest = synthesize(magpie(host), tmp_path, screen)
    assert any(said in line for line in manifest["host"])
    assert any(said in line for line in screen.lines)
    prompts = [b["prompt"] for b in host.asked if b["max_tokens"] > 16]
    assert all(isinstance(p, list) == (name == "second bos") for p in prompts)
    if name == "strict":
        assert all("skip_special_tokens" not in b for b in host.asked)


def test_what_follows_a_stop_that_a_host_ignores_is_cut(tmp_path: Path) -> None:
    def reply(body: dict[str, Any], prompt: str) -> str:
        return f"Text {body['seed']}\nmore<|im_end|>\n<|im_start|>assistant\nleak"

    with fake(reply=reply, ignores_stops=True).running() as host:
        synthesize(magpie(host, size=5), tmp_path)
    assert all(
        "leak" not in m["content"] and "\nmore" in m["content"] for r in rows(tmp_path) for m in r["messages"]
    )


def test_another_model_under_the_same_name_is_found_before_anything_is_bought(tmp_path: Path) -> None:
    with fake().running() as host:
        synthesize(magpie(host, size=10), tmp_path)
    before = content(tmp_path)
    with fake(salt="another").running() as host:
        with pytest.raises(RecipeError, match="another model answers under this name"):
            synthesize(magpie(host, size=20), tmp_path)
        assert host.num_requests <= 3
    assert content(tmp_path) == before


def test_a_host_that_repeats_itself_is_stopped_with_the_reason(tmp_path: Path) -> None:
    with fake(repeats=True).running() as host, pytest.raises(DataError, match="duplicate"):
        synthesize(magpie(host, size=140), tmp_path)
    assert host.num_requests < 300
    assert len(rows(tmp_path)) == 1
    removed = pq.read_table(tmp_path / "removed" / "removed.parquet").to_pylist()
    assert {r["reason"] for r in removed} == {"duplicate"}
    assert {r["kept"] for r in removed} == {rows(tmp_path)[0]["meta"]["id"]}


def test_filters_name_their_reasons_and_evaluation_items_do_not_stay(tmp_path: Path) -> None:
    item = "Which river flows through the old town of Basel and then on towards the North Sea in Holland?"
    write_jsonl(tmp_path / "evals.jsonl", [{"prompt": item}])
    texts = [
        "Tell me {seed} facts",
        "写一首关于数字 {seed} 的诗",
        item,
        "Tell me about the sea near the town {seed}",
        "x",
    ]

    def reply(body: dict[str, Any], prompt: str) -> str:
        if prompt.endswith("assistant\n"):
            return "I'm sorry, but I can't help with that." if body["seed"] % 4 == 0 else "Here you are."
        return texts[body["seed"] % 5].format(seed=body["seed"])

    filters = {"near": 0.5, "refusals": True, "min_chars": 2, "against": ["evals.jsonl"]}
    with fake(reply=reply).running() as host:
        value = magpie(host, filters=filters, systems=[{"text": "ask", "language": "en"}]).model_dump()
        manifest = synthesize(SynthRecipe.of(value, tmp_path), tmp_path / "out")
    assert set(manifest["removed_by"]) >= {"contaminated", "refusal", "min_chars", "language"}
    asked = [r["messages"][0]["content"] for r in rows(tmp_path / "out")]
    assert item not in asked
    assert not any("诗" in text for text in asked)
    assert manifest["records"]["asked"] == manifest["records"]["written"] + manifest["records"]["removed"]


def kind(host: FakeHost, tmp_path: Path, synth: str, **changes: Any) -> SynthRecipe:
    write_jsonl(tmp_path / "data.jsonl", alpaca(["问题", "A question"], 24))
    value: dict[str, Any] = {
        "name": synth.replace("_", "-"),
        "synth": synth,
        "endpoint": {"base_url": host.url, "model": host.name},
        "sources": {"domain": {"path": "data.jsonl"}},
    }
    return SynthRecipe.of({**value, **changes}, tmp_path)


def test_sdft_writes_every_record_in_order_and_joins_by_id(tmp_path: Path) -> None:
    def rewritten(body: dict[str, Any], prompt: str) -> str:
        content = json.loads(prompt)[-1]["content"]
        given = content.split("### ")[2].split("\n", 1)[1].strip()
        return "参考答案：" + given if given.startswith("回答 3:") else given.replace("回答", "答复")

    with fake(reply=lambda b, p: "1 2" if b["max_tokens"] == 16 else rewritten(b, p)).running() as host:
        manifest = synthesize(kind(host, tmp_path, "sdft"), tmp_path / "out")
        bought = host.num_requests
        synthesize(kind(host, tmp_path, "sdft"), tmp_path / "out")
        assert host.num_requests == bought
    written = rows(tmp_path / "out")
    assert [r["meta"]["prompt_id"] for r in written] == [f"domain:0:{n}" for n in range(24)]
    told = [r["messages"][-1]["content"] for r in written]
    assert [t.split(" ")[1].rstrip(":") for t in told] == [str(n) for n in range(24)]
    assert told[3].startswith("回答 3:")
    assert all(t.startswith("答复") for n, t in enumerate(told) if n != 3)
    assert manifest["gate"] == {"phrase": 1, "taken": 23}


def test_a_record_that_is_added_to_the_source_costs_itself_alone(tmp_path: Path) -> None:
    with fake().running() as host:
        recipe = kind(host, tmp_path, "answers")
        synthesize(recipe, tmp_path / "out")
        bought = host.num_requests
        write_jsonl(
            tmp_path / "data.jsonl",
            [{"instruction": "New?", "output": "x"}, *alpaca(["问题", "A question"], 24)],
        )
        manifest = synthesize(recipe, tmp_path / "out")
    assert host.num_requests - bought == 2  # it, and the check that the model is the same
    assert manifest["records"]["written"] == 25


def test_answers_as_pairs_are_a_preference_source(tmp_path: Path) -> None:
    hot = {"answer": {"temperature": 0.8}}
    with fake().running() as host:
        recipe = kind(
            host, tmp_path, "answers", sampling=hot, answers={"n": 3, "best": "likelihood", "pairs": True}
        )
        manifest = synthesize(recipe, tmp_path / "out")
    written = rows(tmp_path / "out")
    assert manifest["records"]["written"] == len(written) > 15
    assert all(
        set(r) == {"prompt", "chosen", "rejected", "margin", "meta"} and r["margin"] > 0 for r in written
    )
    shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    pairs = {
        "name": "p",
        "kind": "preference",
        "tokenizer": "tokenizer",
        "sources": {"a": {"path": "out/"}},
        "encode": {"max_length": 512},
    }
    assert package.build(package.Recipe.of(pairs, tmp_path), tmp_path / "set")["sources"]["a"]["records"][
        "used"
    ] == len(written)
    with fake(with_logprobs=False).running() as host:
        manifest = synthesize(
            kind(
                host, tmp_path, "answers", sampling=hot, answers={"n": 2, "best": "likelihood", "pairs": True}
            ),
            tmp_path / "b",
        )
    assert manifest["removed_by"] == {"no_difference": 24}


REPLIES: dict[str, Callable[[dict[str, Any], str], str]] = {
    "ssr": lambda b, p: f" question {b['seed']}\nOutput: 1" if p.endswith("Input:") else " answer",
    "self_instruct": lambda b, p: f"List {b['seed']} things about {b['seed'] % 97}" if "- " in p else "Done.",
    "qa": lambda b, p: (
        f"Who is {b['seed']}?\nWhere is {b['seed']}?" if "Write 3" in p or "写出 3" in p else "There."
    ),
}


@pytest.mark.parametrize("synth", REPLIES)
def test_the_other_kinds_reach_their_size_and_pay_once(tmp_path: Path, synth: str) -> None:
    with fake(reply=REPLIES[synth]).running() as host:
        write_jsonl(tmp_path / "docs.jsonl", [{"text": f"Document {n}. " * 20} for n in range(12)])
        size = {} if synth == "qa" else {"size": 70}
        sources = {"sources": {"d": {"path": "docs.jsonl"}}} if synth == "qa" else {}
        recipe = kind(host, tmp_path, synth, **size, **sources)
        manifest = synthesize(recipe, tmp_path / "out")
        bought = host.num_requests
        assert synthesize(recipe, tmp_path / "out") == manifest
        assert host.num_requests == bought
    assert manifest["complete"]
    assert manifest["records"]["written"] == (24 if synth == "qa" else 70)
    paths = {b.get("prompt") is not None for b in host.asked}
    assert paths == {synth == "ssr"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer": None}, "tokenizer: is missing"),
        ({"size": None}, "size: is missing"),
        ({"synth": "sdft"}, "sources: is missing"),
        ({"synth": "magpy"}, "synth: is 'magpy'"),
        ({"endpoint": {"base_url": "localhost", "model": "m"}}, "endpoint.base_url"),
        ({"endpoint": {"base_url": "http://a/v1", "model": "m", "api_key": "sk-1"}}, "endpoint.api_key: is not a key here"),
        ({"budget": {"money": 3}}, "money needs price"),
        ({"answers": {"n": 3}}, "answers: is of `synth: answers`"),
        ({"filters": {"near": 3}}, "filters.near"),
        ({"kind": "sft"}, "kind: is not a key here"),
        ({"synth": "answers", "sources": {"a": {"path": "x"}}, "systems": [{"text": "x"}]}, "systems: steers"),
        ({"synth": "answers", "sources": {"a": {"path": "x"}}, "answers": {"n": 2}}, "all 2 answers of a prompt would be the same"),
    ],
)  # fmt: skip
def test_mistakes_in_the_recipe_are_named(changes: dict[str, Any], said: str) -> None:
    value = magpie(FakeHost(url="http://127.0.0.1:9/v1")).model_dump()
    with pytest.raises(RecipeError, match=said):
        SynthRecipe.of({**value, **changes})


def test_a_synth_recipe_is_not_built_and_a_folder_of_another_kind_not_taken(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(magpie(FakeHost(url="http://127.0.0.1:9/v1")).model_dump(mode="json")))
    done = datamix("build", recipe)
    assert done.returncode == 2
    assert "datamix synth" in done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    done = datamix("synth", recipe, "-o", tmp_path / "mine")
    assert done.returncode == 2
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_changed_record_file_is_set_aside_and_notes_stay(tmp_path: Path) -> None:
    screen = Heard()
    with fake().running() as host:
        synthesize(magpie(host, size=5), tmp_path)
        (tmp_path / "records" / "00000.jsonl").write_text("mine\n")
        (tmp_path / "notes.txt").write_text("mine")
        synthesize(magpie(host, size=6), tmp_path, screen)
    assert (tmp_path / "records" / "00000.jsonl.yours").read_text() == "mine\n"
    assert (tmp_path / "notes.txt").exists()
    assert len(rows(tmp_path)) == 6
    assert any("was changed" in line for line in screen.lines)


def test_after_two_hundred_requests_the_price_at_the_end_is_shown_once(tmp_path: Path) -> None:
    screen = Heard()
    price = {"price": {"prompt": 1000.0, "completion": 2000.0}}
    with fake().running() as host:
        manifest = synthesize(magpie(host, size=160, budget=price), tmp_path, screen)
    (line,) = [line for line in screen.lines if "in the end" in line]
    requests = int(line.split("about ")[1].split(" ")[0].replace(",", ""))
    money = float(line.split("tokens, ")[2].split(" ")[0])
    assert requests / manifest["spent"]["requests"] == pytest.approx(1, abs=0.15)
    assert money / manifest["spent"]["money"] == pytest.approx(1, abs=0.15)


def test_a_forecast_from_two_hundred_requests_is_near_the_end() -> None:
    generator = random.Random(7)
    items = [Item(str(n), n, "", 1.0, None) for n in range(5000)]
    done = {i.index: (2, generator.randint(20, 60), round(generator.lognormvariate(4.5, 0.4))) for i in items}
    total = sum(cost[1] + cost[2] for cost in done.values())
    errors = []
    for start in range(0, 4900, 100):
        known = items[start : start + 100]
        seen = forecast(known, done, 80, 3920)
        assert seen is not None
        errors.append(abs((seen.prompt_tokens + seen.completion_tokens) / total - 1))
    assert sorted(errors)[len(errors) // 2] < 0.03
    assert sum(e < 0.05 for e in errors) / len(errors) > 0.85
    short_first = {i.index: done[i.index] for i in items if done[i.index][2] < 80}
    assert len(beginning(items, short_first)) < 20  # what ended first is no sample


def test_errors_are_of_datamix_whatever_the_host_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamix.jobs.synth._CHECK_PAUSES", (0.01, 0.01))
    for fault in ("401", "404", "no json"):
        with fake(fault=every(1, fault)).running() as host, pytest.raises(DatamixError):
            synthesize(magpie(host), tmp_path / fault.replace(" ", ""))
