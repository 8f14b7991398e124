"""transformers' own `Trainer` on our Arrow folder and Parquet: rows in our order, packed documents apart."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]
transformers = pytest.importorskip("transformers", reason="needs tests/trainers/requirements-formats.txt")
pytest.importorskip("torch", reason="needs tests/trainers/requirements-formats.txt")


def loaded(out, container):
    import datasets

    if container == "arrow":
        return datasets.load_from_disk(out / "arrow")["train"]
    return datasets.load_dataset("parquet", data_files=str(out / "train/*.parquet"), split="train")


@pytest.mark.parametrize("container", ["arrow", "parquet"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_reach_the_model_in_order_and_apart(
    make_set, rows, tiny_model, alone_equal, tmp_path, container, attention
):
    out = make_set("sft", "arrow")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model(out), attn_implementation=attention)
    seen = []

    def note(_, __, given, output):
        seen.append({name: value.clone() for name, value in given.items() if hasattr(value, "clone")})
        seen[-1]["logits"] = output.logits.detach().clone()

    model.register_forward_hook(note, with_kwargs=True)
    arguments = transformers.TrainingArguments(
        output_dir=tmp_path, max_steps=2, per_device_train_batch_size=1, use_cpu=True, report_to="none",
        save_strategy="no", train_sampling_strategy="sequential",
    )  # fmt: skip
    transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=loaded(out, container),
        data_collator=transformers.default_data_collator,
    ).train()
    wanted = rows(out)
    for given, row in zip(seen, wanted, strict=False):
        for name in ("input_ids", "labels", "position_ids"):
            assert given[name][0].tolist() == row[name]
        assert given.get("attention_mask") is None
    alone_equal(tiny_model(out), seen[0], [wanted[0]["seq_lengths"]])
