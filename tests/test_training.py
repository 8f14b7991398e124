"""A tiny model trained by transformers' ``Trainer`` from a built set: stopped, and gone on with at another world size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small import recipe

import datamix

pytest.importorskip("torch", reason="torch is not installed (extra `torch`; `make test-torch` has it)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
pytest.importorskip("accelerate", reason="accelerate is not installed here (`make test-torch` has it)")

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS, STEPS = 160, 5
Seen = list[tuple[tuple[int, ...], int]]  # (tokens, number of trained labels) of each row


def model(vocab_size: int) -> Any:
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


def train(loader: Any, max_steps: int, vocab_size: int, folder: Path) -> Seen:
    """Train some steps from a loader; return the rows that the model was given, without their padding."""

    class FromLoader(transformers.Trainer):
        def get_train_dataloader(self) -> Any:
            return self.train_dataset

    seen: Seen = []

    def watch(_model: Any, _args: Any, given: dict[str, Any]) -> None:
        for ids, labels, mask in zip(
            given["input_ids"], given["labels"], given["attention_mask"], strict=True
        ):
            seen.append((tuple(ids[mask == 1].tolist()), int((labels != -100).sum())))

    trained = model(vocab_size)
    trained.register_forward_pre_hook(watch, with_kwargs=True)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    result = FromLoader(model=trained, args=arguments, train_dataset=loader).train()
    assert 0 < result.training_loss < 100
    return seen


@pytest.mark.parametrize("write", [[], ["parquet"]], ids=["virtual", "parquet"])
def test_a_run_stopped_and_resumed_at_another_world_size_trains_every_row_once(
    tmp_path: Path, write: list[str]
) -> None:
    path = recipe(
        tmp_path,
        encode={"max_length": 128, "pack": "none"},
        mix={"unit": "records", "size": ROWS},
        write=write,
    )
    manifest = datamix.build(path, tmp_path / "set", cache=tmp_path / "cache", workers=1)
    rows = datamix.open(tmp_path / "set", cache=tmp_path / "cache")
    vocab_size = manifest["tokenizer"]["vocab_size"]
    seen: Seen = []
    states = []
    for rank in range(2):
        loader = rows.torch(4, rank=rank, world_size=2)
        seen += train(loader, STEPS, vocab_size, tmp_path)
        states.append(loader.state_dict())
    assert states[0] == states[1]
    assert states[0]["rows"] == len(seen) == 2 * 4 * STEPS
    for rank in range(4):
        loader = rows.torch(2, rank=rank, world_size=4)
        loader.load_state_dict(states[0])
        seen += train(loader, (ROWS - states[0]["rows"]) // 8, vocab_size, tmp_path)
    there = [tuple(row["input_ids"].tolist()) for row in rows]
    assert Counter(ids for ids, _ in seen) == Counter(there)
    source_of = {ids: rows.source_of(place) for place, ids in enumerate(there)}
    for name, source in manifest["sources"].items():
        own = [(len(ids), trained) for ids, trained in seen if source_of[ids] == name]
        emitted = source["emitted"]
        assert len(own) == emitted["rows"]
        assert sum(length for length, _ in own) == emitted["tokens"]
        assert sum(trained for _, trained in own) == emitted["loss_tokens"]
