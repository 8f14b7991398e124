"""A tiny model trained by transformers' ``Trainer`` from the loader: stopped, and gone on with at another world size."""

from __future__ import annotations

import pytest

from datamix.load import open_set

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def train(tmp_path):
    """Train for some steps from a loader; return what the model was given."""
    pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
    pytest.importorskip("accelerate", reason="accelerate is not installed here")

    class FromLoader(transformers.Trainer):
        def get_train_dataloader(self):
            return self.train_dataset

    def run(loader, max_steps):
        seen: list[dict] = []
        model = transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(
                vocab_size=5000,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
            )
        )
        model.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=max_steps,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        FromLoader(model=model, args=arguments, train_dataset=loader).train()
        return seen

    return run


def test_a_run_that_goes_on_at_another_world_size_trains_exactly_the_rows_left(make_set, train):
    ts = open_set(make_set(40, packed=True, form="arrow"))
    seen: list[dict] = []
    states = []
    for rank in range(2):
        loader = ts.torch(4, rank=rank, world_size=2)
        seen += train(loader, 3)
        states.append(loader.state_dict())
    assert states[0] == states[1]
    assert states[0]["rows"] == 24
    for rank in range(4):
        loader = ts.torch(2, rank=rank, world_size=4)
        loader.load_state_dict(states[0])
        seen += train(loader, 2)
    firsts = [int(token) - 1000 for given in seen for token in given["input_ids"][:, 0]]
    assert sorted(firsts) == list(range(40))
    trained = sum(int((given["labels"] != -100).sum()) for given in seen)
    assert trained == sum(int((row["labels"] != -100).sum()) for row in ts)
