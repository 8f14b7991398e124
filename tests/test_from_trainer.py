"""Configurations of other tools to recipes: the same data sets, weights with their unit, lengths, and notes on the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from small import GENERAL, MEDICAL, TOKENIZER, alpaca, datamix, write_jsonl

from datamix.core.errors import RecipeError
from datamix.jobs.from_trainer import recipe_of


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "data" / "general.jsonl", alpaca(GENERAL, 60))
    write_jsonl(tmp_path / "data" / "医疗.jsonl", alpaca(MEDICAL, 20))
    write_jsonl(tmp_path / "data" / "pairs.jsonl", [{"prompt": "q", "chosen": "good", "rejected": "bad"}] * 4)
    write_jsonl(tmp_path / "data" / "web.jsonl", [{"content": f"page {i}"} for i in range(9)])
    (tmp_path / "tok").symlink_to(TOKENIZER)
    return tmp_path


def imported(home: Path, name: str, text: str, *more: str) -> tuple[dict[str, Any], str]:
    (home / name).write_text(text, encoding="utf-8")
    written, notes = recipe_of([str(home / name), *more], str(home))
    assert all(note in written for note in notes)
    return yaml.safe_load(written), written


def paths(recipe: dict[str, Any]) -> list[str]:
    return [source["path"] for source in recipe["sources"].values()]


def test_axolotl(home: Path) -> None:
    recipe, text = imported(home, "axolotl.yaml", """
base_model: tok
datasets:
  - {path: data/general.jsonl, type: alpaca}
  - path: tatsu-lab/alpaca
    type: alpaca
    split: train[:10%]
  - {path: json, data_files: [data/医疗.jsonl], ds_type: json, type: {field_instruction: q, field_output: output}}
val_set_size: 0.05
sequence_len: 512
sample_packing: true
train_on_inputs: true
seed: 7
learning_rate: 0.0002
""")  # fmt: skip
    assert (recipe["kind"], recipe["seed"], recipe["tokenizer"]) == ("sft", 7, "tok")
    assert paths(recipe) == ["data/general.jsonl", "hf://datasets/tatsu-lab/alpaca", "data/医疗.jsonl"]
    assert recipe["sources"]["医疗"]["columns"] == {"instruction": "q"}
    assert recipe["encode"] == {"loss_on": "all", "max_length": 512, "pack": "best_fit"}
    assert recipe["validation"] == {"share": 0.05}
    assert "split=train[:10%] of tatsu-lab/alpaca has no equal" in text
    assert "stays with the trainer: learning_rate" in text


def test_axolotl_preference_and_pretraining(home: Path) -> None:
    recipe, _ = imported(
        home,
        "dpo.yaml",
        "base_model: tok\nrl: dpo\nsequence_len: 99\ndatasets: [{path: data/pairs.jsonl, type: chatml.argilla}]\n",
    )
    assert recipe["kind"] == "preference"
    recipe, _ = imported(
        home,
        "pt.yaml",
        "base_model: tok\nsequence_len: 99\npretraining_dataset: [{path: data/web.jsonl, field: content}]\n",
    )
    assert recipe["kind"] == "pretrain"
    assert recipe["sources"]["web"]["columns"] == {"text": "content"}


LF = """
model_name_or_path: tok
stage: sft
dataset: general,medical
dataset_dir: data
template: qwen
cutoff_len: 256
mix_strategy: {strategy}
interleave_probs: 0.7,0.3
max_samples: 50
val_size: 0.1
neat_packing: true
mask_history: true
"""


def catalogue(home: Path) -> None:
    entries = {
        "general": {"file_name": "general.jsonl"},
        "medical": {"file_name": "医疗.jsonl", "num_samples": 15},
        "far": {"hf_hub_url": "A/B", "num_samples": 9},
        "pairs": {
            "file_name": "pairs.jsonl",
            "ranking": True,
            "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        },
    }
    (home / "data" / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")


def test_llamafactory(home: Path) -> None:
    catalogue(home)
    recipe, text = imported(home, "lf.yaml", LF.format(strategy="interleave_under"))
    assert recipe["sources"]["general"] == {
        "path": "data/general.jsonl",
        "format": "alpaca",
        "max_records": 50,
        "weight": 0.7,
    }
    assert recipe["sources"]["medical"] == {
        "path": "data/医疗.jsonl",
        "format": "alpaca",
        "max_records": 15,
        "weight": 0.3,
    }
    assert recipe["mix"] == {"unit": "records"}
    assert recipe["encode"] == {"loss_on": "last_assistant", "max_length": 256, "pack": "best_fit"}
    assert recipe["validation"] == {"share": 0.1}
    assert "template=qwen" in text
    over, _ = imported(
        home, "over.yaml", LF.format(strategy="interleave_over").replace("max_samples: 50\n", "")
    )
    assert over["sources"]["general"]["max_epochs"] == pytest.approx(1, abs=0.01)
    assert over["sources"]["medical"]["max_epochs"] == pytest.approx(60 / 0.7 * 0.3 / 20, abs=0.02)
    dpo, _ = imported(
        home,
        "dpo.yaml",
        "model_name_or_path: tok\nstage: dpo\ndataset: pairs,far\ncutoff_len: 64\n",
        str(home / "data" / "dataset_info.json"),
    )
    assert dpo["kind"] == "preference"
    assert dpo["sources"]["far"] == {"path": "hf://datasets/A/B", "format": "alpaca", "max_records": 9}
    absent, text = imported(
        home, "absent.yaml", "stage: pt\ndataset: nowhere\ncutoff_len: 64\ndataset_dir: other\n"
    )
    assert "dataset_info.json was not found" in text
    assert absent["kind"] == "pretrain"


def test_ms_swift_as_a_shell_script_and_as_yaml(home: Path) -> None:
    recipe, text = imported(home, "swift.sh", """#!/bin/bash
# train
MODEL=tok
CUDA_VISIBLE_DEVICES=0 \\
swift sft \\
    --model $MODEL \\
    --dataset 'AI-ModelScope/alpaca-gpt4-data-zh#500' data/general.jsonl#30 hf::tatsu-lab/alpaca \\
    --max_length 2048 --packing true --split_dataset_ratio 0.01 --system '你是医生' \\
    --truncation_strategy delete --learning_rate 1e-4
""")  # fmt: skip
    assert paths(recipe) == [
        "AI-ModelScope/alpaca-gpt4-data-zh",
        "data/general.jsonl",
        "hf://datasets/tatsu-lab/alpaca",
    ]
    assert [source.get("max_records") for source in recipe["sources"].values()] == [500, 30, None]
    assert {source["system"] for source in recipe["sources"].values()} == {"你是医生"}
    assert (recipe["tokenizer"], recipe["encode"]) == ("tok", {"max_length": 2048, "pack": "best_fit"})
    assert "is on ModelScope: download it" in text
    assert "truncation_strategy=delete" in text
    rlhf, _ = imported(
        home, "swift.yaml", "rlhf_type: dpo\nmodel: tok\ndataset: [data/pairs.jsonl]\nmax_length: 64\n"
    )
    assert (rlhf["kind"], paths(rlhf)) == ("preference", ["data/pairs.jsonl"])
    mixed, _ = imported(
        home,
        "mix.sh",
        "swift pt --model tok --dataset data/general.jsonl data/web.jsonl --interleave_prob 0.2 0.8 --max_length 64",
    )
    assert (mixed["kind"], mixed["mix"]) == ("pretrain", {"unit": "records"})
    assert [source["weight"] for source in mixed["sources"].values()] == [0.2, 0.8]
    assert mixed["sources"]["web"]["columns"] == {"text": "content"}


def test_trl(home: Path) -> None:
    recipe, text = imported(home, "trl.yaml", """
model_name_or_path: tok
datasets:
  - path: data/general.jsonl
  - path: stanfordnlp/imdb
    name: plain_text
  - path: json
    data_files: data/医疗.jsonl
max_length: 300
packing: true
seed: 3
""")  # fmt: skip
    assert paths(recipe) == ["data/general.jsonl", "hf://datasets/stanfordnlp/imdb", "data/医疗.jsonl"]
    assert recipe["encode"] == {"max_length": 300, "pack": "best_fit"}
    assert "name=plain_text of stanfordnlp/imdb has no equal" in text
    assert "weight" not in text
    dpo, _ = imported(
        home,
        "dpo.sh",
        "trl dpo --model_name_or_path tok --dataset_name trl-lib/ultrafeedback_binarized --max_length 64",
    )
    assert (dpo["kind"], paths(dpo)) == ("preference", ["hf://datasets/trl-lib/ultrafeedback_binarized"])
    grpo, _ = imported(
        home, "grpo.yaml", "model_name_or_path: tok\ndataset_name: a/b\nreward_funcs: [accuracy]\n"
    )
    assert grpo["kind"] == "prompt"


def test_open_instruct(home: Path) -> None:
    recipe, text = imported(home, "tulu.yaml", """
model_name_or_path: tok
max_seq_length: 4096
dataset_mixer_list: [data/general.jsonl, 0.5, allenai/tulu-3-sft, 1.0, data/医疗.jsonl, 7, allenai/other, 0.2]
""")  # fmt: skip
    assert [source.get("max_records") for source in recipe["sources"].values()] == [30, None, 7, None]
    assert "allenai/other: 0.2 of its rows: set max_records" in text
    shell, _ = imported(
        home,
        "tulu.sh",
        "accelerate launch open_instruct/finetune.py --model_name_or_path tok --max_seq_length 64 --dataset_mixer_list data/general.jsonl 1.0 data/医疗.jsonl 0.5",
    )
    assert [source.get("max_records") for source in shell["sources"].values()] == [None, 10]
    older, _ = imported(home, "older.yaml", "tokenizer_name: tok\ndataset_mixer: {data/general.jsonl: 1.0}\n")
    assert paths(older) == ["data/general.jsonl"]


def test_a_megatron_blend(home: Path) -> None:
    write_jsonl(home / "corpus" / "zh.jsonl", [{"text": "春"}])
    recipe, text = imported(home, "pretrain.sh", """
DATA="--data-path 0.3 corpus/zh_text_document 0.7 corpus/en_text_document"
torchrun pretrain_gpt.py --seq-length 2048 --tokenizer-model tok --split 99,1,0 --data-path 0.3 corpus/zh_text_document 0.7 corpus/en_text_document
""")  # fmt: skip
    assert recipe["kind"] == "pretrain"
    assert {name: source["weight"] for name, source in recipe["sources"].items()} == {"zh": 0.3, "en": 0.7}
    assert paths(recipe) == ["corpus/zh.jsonl", "corpus/en.jsonl"]
    assert recipe["mix"] == {"unit": "tokens"}
    assert recipe["validation"] == {"share": 0.01}
    assert "corpus/en.jsonl does not exist here" in text
    blend, _ = imported(home, "blend.txt", "30 corpus/zh_text_document 70 corpus/en_text_document\n")
    assert [source["weight"] for source in blend["sources"].values()] == [30, 70]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("trl.py", "from trl import SFTTrainer", "is a Python script"),
        ("odd.yaml", "learning_rate: 1\n", "is the configuration of no tool that is known"),
        ("bad.yaml", "a: [1\n", "is no YAML, JSON or shell script"),
    ],
)
def test_what_is_no_configuration_is_reported(home: Path, name: str, text: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        imported(home, name, text)


def test_the_recipe_that_is_written_builds_what_the_trainer_would_read(home: Path) -> None:
    catalogue(home)
    (home / "lf.yaml").write_text(
        LF.format(strategy="interleave_under").replace("val_size: 0.1\n", ""), encoding="utf-8"
    )
    done = datamix(
        "init", "--from", home / "lf.yaml", home / "data" / "dataset_info.json", "-o", home / "r.yaml"
    )
    assert done.returncode == 0, done.stderr
    assert "Next: datamix plan" in done.stdout
    built = datamix("build", home / "r.yaml", "-o", home / "out")
    assert built.returncode == 0, built.stderr
    sources = json.loads((home / "out" / "manifest.json").read_text(encoding="utf-8"))["sources"]
    assert sources["medical"]["share"]["asked"] == pytest.approx(0.3)
    assert datamix("init", "--from", home / "lf.yaml", "-o", home / "r.yaml").returncode == 2
    assert datamix("init").returncode == 2
