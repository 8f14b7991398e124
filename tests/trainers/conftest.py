"""Sets built from samples/ by the `datamix` of .venv, and trainers run on their folders by the command in each README."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
DATAMIX = ROOT / ".venv/bin/datamix"
Row = dict[str, Any]
KTO = """
name: kto
kind: preference
tokenizer: {tokenizer}
sources:
  liked: {{path: liked.jsonl}}
  disliked: {{path: disliked.jsonl}}
validation: {{records: 2}}
encode: {{max_length: 512}}
"""


def _datamix(*words: object) -> None:
    done = subprocess.run([str(DATAMIX), *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def make_set(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A set of samples/NAME.yaml in one more format: ``make("sft", "trl", "encode.pack=none")`` -> OUT."""
    if not DATAMIX.exists():
        pytest.skip("sets are built by .venv/bin/datamix, which `make test-trainers` makes first")
    home = tmp_path_factory.mktemp("sets")
    recipes = {path.stem: path for path in (ROOT / "samples").glob("*.yaml")}
    recipes["kto"] = _unpaired(home)

    def make(name: str, trainer: str, *changes: str) -> Path:
        out = home / "-".join([name, *(re.sub(r"\W", "_", change) for change in changes)])
        if not out.exists():
            settings = [word for change in changes for word in ("--set", change)]
            _datamix("build", recipes[name], "-o", out, "--cache", home / "cache", *settings)
        if not (out / trainer).exists():
            _datamix("export", out, "--to", trainer, "--cache", home / "cache")
        return out

    return make


def _unpaired(home: Path) -> Path:
    """A recipe of completions with a label: the samples' pairs, each side on its own."""
    pairs = [
        json.loads(line)
        for line in (ROOT / "samples/preference/general_explicit.jsonl").read_text().splitlines()
    ]
    for name, side, label in (("liked", "chosen", True), ("disliked", "rejected", False)):
        lines = [{"prompt": p["prompt"], "completion": p[side], "label": label} for p in pairs]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (home / f"{name}.jsonl").write_text(text)
    path = home / "kto.yaml"
    path.write_text(KTO.format(tokenizer=ROOT / "samples/tokenizer"))
    return path


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[Row]]:
    """The rows of a set in training order, from its own Parquet."""

    def read(out: Path) -> list[Row]:
        found: list[Row] = pq.read_table(out / "train").to_pylist()
        return found

    return read


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A random model of two layers in a folder, with the tokenizer of a set."""
    home = tmp_path_factory.mktemp("models")

    def make(out: Path) -> Path:
        import torch
        from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

        folder = home / out.name
        if not folder.exists():
            torch.manual_seed(0)
            tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
            config = Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                tie_word_embeddings=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            Qwen2ForCausalLM(config).to(torch.float32).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Run a line of a folder's README, MODEL put in, and return what the model was given at each step."""

    def run(folder: Path, model: Path, starts: str, *more: str) -> list[dict[str, Any]]:
        import torch

        (line,) = [words for words in _commands(folder) if words.startswith(starts)]
        written = shlex.split(line.replace("MODEL", str(model)).replace("TEMPLATE", "chatml"))
        words = [name for word in written for name in sorted(glob(word, root_dir=folder)) or [word]]
        seen = tmp_path / "seen.pt"
        for left in ("output", "last_run_prepared"):  # of a run before: a trainer would go on from there
            shutil.rmtree(folder / left, ignore_errors=True)
        env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{HERE / 'watch'}{os.pathsep}{HERE / 'absent'}",
            "WATCH_MODEL": str(seen),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "hub"),
            "CUDA_VISIBLE_DEVICES": "",
            "WANDB_MODE": "disabled",
            "DO_NOT_TRACK": "1",
            "AXOLOTL_DO_NOT_TRACK": "1",
            "ACCELERATE_USE_CPU": "true",
        }
        done = subprocess.run(
            [*words, *more], cwd=folder, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        found: list[dict[str, Any]] = torch.load(seen)
        return found

    return run


def _commands(folder: Path) -> list[str]:
    """The lines of the first block of shell in a README."""
    block = re.search(r"```sh\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert block is not None
    return block[1].strip().splitlines()


@pytest.fixture
def alone_equal() -> Callable[..., None]:
    """Check that a first step gave the documents of its rows the logits that the model gives each of them alone.

    Where a trainer takes its loss without showing logits, the model is asked again, with what it was given.
    """

    def check(model: Path, given: dict[str, Any], lengths: list[list[int]], attention: str = "sdpa") -> None:
        import torch
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained(model, attn_implementation=attention).eval()
        asked = {n: given[n] for n in ("input_ids", "position_ids", "attention_mask") if n in given}
        with torch.no_grad():
            logits = given["logits"] if "logits" in given else loaded(**asked, use_cache=False).logits
            for i, sizes in enumerate(lengths):
                start = 0
                for size in sizes:
                    alone = loaded(input_ids=given["input_ids"][i : i + 1, start : start + size]).logits[0]
                    assert torch.allclose(logits[i, start : start + size], alone, atol=1e-4)
                    start += size

    return check
