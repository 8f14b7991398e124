"""TRL trains from our folder: the ids, labels and positions that reach the model are those we wrote, in our order."""

from __future__ import annotations

import pytest
import yaml

from datamix.exporters import open_sink

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

trl = pytest.importorskip(
    "trl", reason="trl is not installed here; see tests/trainers/requirements-formats.txt"
)


@pytest.fixture
def tokenizer():
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<eos>", *(chr(0x4E00 + i) for i in range(997))]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    template = "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=template
    )


@pytest.fixture
def tiny():
    import torch
    from transformers import Qwen2Config

    torch.manual_seed(0)
    return Qwen2Config(
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=2,
    )


@pytest.fixture
def folder(make_info, make_rows, tmp_path, monkeypatch):
    """A TRL folder of eight rows, and its config as keyword arguments."""

    def make(trainer, **changes):
        info = make_info(**changes)
        rows = make_rows(info, 8)
        sink = open_sink("trl", (), info, "train")
        sink.finish([sink.write([rows], 0, tmp_path)], tmp_path)
        monkeypatch.chdir(tmp_path)
        config = yaml.safe_load((tmp_path / f"{trainer}.yaml").read_text())
        (source,) = config.pop("datasets")
        return rows.to_pylist(), source, config

    return make


def load(source):
    from datasets import load_dataset

    return load_dataset(source["path"], data_files=source["data_files"], split="train")


def arguments(config):
    return config | {
        "use_cpu": True,
        "bf16": False,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def watched(model, seen):
    """Note what the model is given."""
    model.register_forward_pre_hook(
        lambda _, __, given: seen.append({k: v.clone() for k, v in given.items() if hasattr(v, "clone")}),
        with_kwargs=True,
    )
    return model


@pytest.mark.parametrize("packed", [False, True])
def test_sft_sees_our_rows_in_our_order(folder, tokenizer, tiny, packed):
    from transformers import AutoModelForCausalLM

    rows, source, config = folder("sft", kind="sft", packed=packed)
    seen: list[dict] = []
    model = watched(AutoModelForCausalLM.from_config(tiny), seen)
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**arguments(config)),
        train_dataset=load(source),
        processing_class=tokenizer,
    )
    trainer.train()
    assert len(seen) == 4
    for step, given in enumerate(seen):
        pair = rows[2 * step : 2 * step + 2]
        if packed:
            assert given["input_ids"][0].tolist() == [t for row in pair for t in row["input_ids"]]
            assert given["labels"][0].tolist() == [t for row in pair for t in row["labels"]]
            assert given["position_ids"][0].tolist() == [t for row in pair for t in row["position_ids"]]
        else:
            for i, row in enumerate(pair):
                length = len(row["input_ids"])
                assert given["input_ids"][i, :length].tolist() == row["input_ids"]
                assert given["labels"][i].tolist()[:length] == row["labels"]
                assert given["attention_mask"][i].sum() == length


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
def test_packed_documents_have_the_logits_they_have_alone(folder, tokenizer, tiny, impl):
    import torch
    from transformers import AutoModelForCausalLM

    rows, source, config = folder("sft", kind="pretrain", packed=True)
    seen: list[dict] = []
    model = AutoModelForCausalLM.from_config(tiny, attn_implementation=impl)
    trainer = trl.SFTTrainer(
        model=watched(model, seen),
        args=trl.SFTConfig(**arguments(config)),
        train_dataset=load(source),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    given = {k: v for k, v in batch.items() if k in ("input_ids", "position_ids", "attention_mask")}
    model.eval()
    with torch.no_grad():
        packed = model(**given).logits[0]
        start = 0
        for row in rows[:2]:
            for length in row["seq_lengths"]:
                alone = model(input_ids=given["input_ids"][:, start : start + length]).logits[0]
                assert torch.allclose(packed[start : start + length], alone, atol=1e-5)
                start += length


def test_reward_sees_prompt_and_completion_ids(folder, tokenizer, tiny):
    from transformers import AutoModelForSequenceClassification

    rows, source, config = folder("reward", kind="preference", max_length=64)
    tiny.num_labels = 1
    seen: list[dict] = []
    trainer = trl.RewardTrainer(
        model=watched(AutoModelForSequenceClassification.from_config(tiny), seen),
        args=trl.RewardConfig(**arguments(config)),
        train_dataset=load(source),
        processing_class=tokenizer,
    )
    trainer.train()
    wanted = [
        [row["prompt_ids"] + row[f"{side}_completion_ids"] for side in ("chosen", "rejected")] for row in rows
    ]
    got = [ids[ids != 0].tolist() for given in seen for ids in given["input_ids"]]
    assert sorted(got) == sorted(ids for pair in wanted for ids in pair)
    assert got[:2] == [wanted[0][0], wanted[1][0]]


@pytest.mark.parametrize("trainer", ["dpo", "kto"])
def test_preference_trainers_train_from_the_text(folder, tokenizer, tiny, trainer):
    from transformers import AutoModelForCausalLM

    _, source, config = folder(trainer, kind="preference", paired=trainer == "dpo", max_length=64)
    home = trl
    if not hasattr(trl, f"{trainer.upper()}Trainer"):
        home = pytest.importorskip(f"trl.experimental.{trainer}", reason=f"this TRL has no {trainer}")
    AutoModelForCausalLM.from_config(tiny).save_pretrained("tiny")  # the reference model is read from there
    made = getattr(home, f"{trainer.upper()}Trainer")(
        model=AutoModelForCausalLM.from_pretrained("tiny"),
        args=getattr(home, f"{trainer.upper()}Config")(**arguments(config)),
        train_dataset=load(source),
        processing_class=tokenizer,
    )
    assert made.train().global_step == 4
