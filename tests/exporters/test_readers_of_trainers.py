"""Token files through the readers of OLMo-core, torchtune, datatrove: every token (tests/trainers/requirements-formats.txt)."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from datamix.exporters import command, open_sink

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]


def write(name, info, rows, folder, shards=2):
    """Shards of a set, and what the format says that reads them."""
    sink = open_sink(name, (), info, "train")
    size = -(-len(rows) // shards)
    sink.finish([sink.write([rows.slice(i * size, size)], i, folder) for i in range(shards)], folder)
    return command(name, (), info)


def documents(rows):
    """Ids and labels of every document, in order."""
    for row in rows.to_pylist():
        start = 0
        for piece in row["records"]:
            stop = start + piece["length"]
            yield row["input_ids"][start:stop], row["labels"][start:stop]
            start = stop


@pytest.mark.parametrize("vocab_size", [1000, 151_665])
def test_datatrove_cuts_windows_and_finds_documents(make_info, make_rows, tmp_path, monkeypatch, vocab_size):
    reader = pytest.importorskip("datatrove.utils.dataset")
    info = make_info("sft", packed=True, vocab_size=vocab_size)
    rows = make_rows(info, 40)
    line = write("datatrove", info, rows, tmp_path, shards=1).replace('"train"', f'"{tmp_path / "train"}"')
    dataset = eval(line.removeprefix("datatrove.utils.dataset."), vars(reader))
    ids, positions = [], []
    for document, _ in documents(rows):
        ids += document
        positions += range(len(document))
    window = info.max_length + 1
    assert len(dataset) == len(ids) // window
    for i in range(len(dataset)):
        here = slice(i * window, (i + 1) * window)
        assert dataset[i]["input_ids"].tolist() == ids[here]
        first = positions[here.start]  # a window that begins inside a document counts from there
        head = next((n for n, p in enumerate(positions[here]) if p == 0), window)
        wanted = [p - first if n < head else p for n, p in enumerate(positions[here])]
        assert dataset[i]["positions"].tolist() == wanted


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_olmo_core_gets_every_document_with_our_borders(make_info, make_rows, tmp_path, monkeypatch, kind):
    reader = pytest.importorskip("olmo_core.data")
    info = make_info(kind, packed=True)
    rows = make_rows(info, 40)
    line = write("olmo-core", info, rows, tmp_path)
    monkeypatch.chdir(tmp_path)
    dataset = eval(line, vars(reader)).build()
    dataset.prepare()
    found = []
    for item in (dataset[i] for i in range(len(dataset))):
        ends = np.cumsum(item["doc_lens"])
        for start, stop in zip([0, *ends[:-1]], ends, strict=True):
            found.append((item["input_ids"][start:stop].tolist(), item["label_mask"][start:stop].tolist()))
    found = [(ids, mask) for ids, mask in found if set(ids) != {info.pad_token_id}]
    wanted = [
        (ids, [label != -100 for label in labels] if kind == "sft" else [True] * len(ids))
        for ids, labels in documents(rows)
    ]
    assert sorted(found) == sorted(wanted)


def test_olmo_core_reads_unpacked_rows_as_windows(make_info, make_rows, tmp_path, monkeypatch):
    reader = pytest.importorskip("olmo_core.data")
    info = make_info("pretrain")
    rows = make_rows(info, 40)
    line = write("olmo-core", info, rows, tmp_path, shards=1)
    monkeypatch.chdir(tmp_path)
    dataset = eval(line, vars(reader)).build()
    dataset.prepare()
    ids = [token for document, _ in documents(rows) for token in document]
    read = [token for i in range(len(dataset)) for token in dataset[i]["input_ids"].tolist()]
    assert read == ids[: len(read)]
    assert len(ids) - len(read) < info.max_length


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_torchtune_keeps_order_and_documents_apart(make_info, make_rows, tmp_path, monkeypatch, kind, packed):
    torchtune = pytest.importorskip("torchtune")
    import torch
    from omegaconf import OmegaConf
    from torchtune.data import padded_collate_packed, padded_collate_sft

    info = make_info(kind, packed=packed)
    rows = make_rows(info, 20)
    write("torchtune", info, rows, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "datamix_rows", raising=False)
    settings = OmegaConf.load("dataset.yaml")
    dataset = torchtune.config.instantiate(settings.dataset, None)
    collate = (
        padded_collate_packed
        if settings.dataset.packed
        else functools.partial(padded_collate_sft, padding_idx=0, ignore_idx=-100)
    )
    loader = torch.utils.data.DataLoader(dataset, 2, shuffle=settings.shuffle, collate_fn=collate)
    given = [{name: value[i] for name, value in batch.items()} for batch in loader for i in range(2)]
    model = tiny_model(info.vocab_size).eval()
    for got, row in zip(given, rows.to_pylist(), strict=True):
        length = len(row["input_ids"])
        assert got["tokens"][:length].tolist() == row["input_ids"]
        assert got["labels"][: length - 1].tolist() == row["labels"][1:]
        assert set(got["labels"][length - 1 :].tolist()) <= {-100}
        if packed:
            assert got["input_pos"][:length].tolist() == row["position_ids"]
            inside = {name: got[name][None] for name in ("tokens", "mask", "input_pos")}
            logits = model(**inside)[0]
            start = 0
            for size in row["seq_lengths"]:
                alone = model(got["tokens"][None, start : start + size])[0]
                assert torch.allclose(logits[start : start + size], alone, atol=1e-4)
                start += size


def tiny_model(vocab_size):
    import torch
    from torchtune.models.qwen2 import qwen2

    torch.manual_seed(0)
    return qwen2(
        vocab_size=vocab_size,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        embed_dim=16,
        intermediate_dim=32,
        max_seq_len=64,
    )
