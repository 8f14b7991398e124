"""Each format through its own reader: every token compared (environment: tests/trainers/requirements-formats.txt)."""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import sys
import types

import numpy as np
import pyarrow as pa
import pytest

from datamix.exporters import open_sink

pytestmark = pytest.mark.trainers


def reader(name: str):
    """The reader's module; a reason to skip where its environment is not this one."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported here ({error}); see tests/trainers/requirements-formats.txt")


@pytest.fixture
def streaming(monkeypatch):
    """MosaicML Streaming without torchvision, which it imports for images alone and which must match torch's build."""
    reader("transformers")  # looks for torchvision when it is first imported
    for name, wanted in (
        ("torchvision", ()),
        ("torchvision.datasets", ("VisionDataset",)),
        ("torchvision.transforms", ()),
        ("torchvision.transforms.functional", ("to_tensor",)),
    ):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        for attribute in wanted:
            setattr(module, attribute, type(attribute, (), {}))
        monkeypatch.setitem(sys.modules, name, module)
    return reader("streaming")


def write(name, info, rows, folder, *options, split="train", shards=3):
    sink = open_sink(name, options, info, split)
    size = -(-len(rows) // shards)
    names = [sink.write([rows.slice(i * size, size)], i, folder) for i in range(shards)]
    sink.finish(names, folder)
    return names


def documents(rows: pa.RecordBatch, source: str | None = None) -> list[list[int]]:
    found = []
    for row in rows.to_pylist():
        start = 0
        for piece in row["records"]:
            if source in (None, row["source"]):
                found.append(row["input_ids"][start : start + piece["length"]])
            start += piece["length"]
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("vocab_size", [1000, 151_665])
def test_megatron_reads_every_document(make_info, make_rows, tmp_path, vocab_size):
    indexed = reader("megatron.core.datasets.indexed_dataset")
    info = make_info(packed=True, vocab_size=vocab_size)
    rows = make_rows(info, 60)
    write("megatron", info, rows, tmp_path)
    for source in info.sources:
        read = [
            np.asarray(document).tolist()
            for i in range(3)
            for document in indexed.IndexedDataset(str(tmp_path / f"train/{source}-{i:05d}"))
        ]
        assert read == documents(rows, source)


@pytest.mark.filterwarnings("ignore")
def test_megatrons_blend_draws_sources_by_our_ratio(make_info, make_rows, tmp_path, monkeypatch):
    builder = reader("megatron.core.datasets.blended_megatron_dataset_builder")
    gpt = reader("megatron.core.datasets.gpt_dataset")
    utils = reader("megatron.core.datasets.utils")
    distributed = reader("torch.distributed")
    info = make_info(packed=True, vocab_size=1000)
    rows = make_rows(info, 4000)
    write("megatron", info, rows, tmp_path, shards=1)
    monkeypatch.chdir(tmp_path)
    blend = json.loads((tmp_path / "blend.json").read_text())

    tokenizer = types.SimpleNamespace(
        vocab_size=1000,
        eod=2,
        pad=2,
        bos=None,
        eos=2,
        unique_identifiers={"class": "T"},
        special_tokens_dict={},
    )
    if not distributed.is_initialized():
        store = distributed.HashStore()
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    length = 32
    num_samples = sum(map(int, blend["train"][::2])) // length - 4
    config = gpt.GPTDatasetConfig(
        random_seed=1,
        sequence_length=length,
        blend_per_split=[utils.get_blend_from_list(blend["train"]), None, None],
        path_to_cache=str(tmp_path / "cache"),
        tokenizer=tokenizer,
        reset_position_ids=True,
        reset_attention_mask=True,
        eod_mask_loss=True,
        create_attention_mask=True,
    )
    made, _, _ = builder.BlendedMegatronDatasetBuilder(
        gpt.GPTDataset, [num_samples, 0, 0], lambda: True, config
    ).build()
    drawn = np.bincount(made.dataset_index[:num_samples], minlength=2) / num_samples
    emitted = np.array([int(w) for w in blend["train"][::2]], float)
    assert np.abs(drawn - emitted / emitted.sum()).max() < 2 / num_samples
    sample = made[0]
    firsts = np.flatnonzero(sample["tokens"][:-1].numpy() == 2) + 1  # behind an end of document
    assert len(firsts)
    for first in firsts:
        assert sample["position_ids"][first] == 0
        assert sample["attention_mask"][0, first:, :first].all()  # True: hidden
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["pretrain", "sft", "preference", "prompt"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_streaming_reads_every_row_in_order(make_info, make_rows, tmp_path, streaming, kind, compression):
    info = make_info(kind, packed=kind == "sft")
    rows = make_rows(info, 40)
    write("mds", info, rows, tmp_path, ("shard_bytes", 3000), ("compression", compression))
    streaming.base.util.clean_stale_shared_memory()
    read = streaming.StreamingDataset(local=str(tmp_path), split="train", shuffle=False, batch_size=1)
    got = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in read]
    assert got == rows.to_pylist()
    del read
    streaming.base.util.clean_stale_shared_memory()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["pretrain", "sft", "preference", "prompt"])
def test_litdata_reads_every_row_in_order(make_info, make_rows, tmp_path, kind):
    litdata = reader("litdata")
    info = make_info(kind, packed=kind == "sft")
    rows = make_rows(info, 40)
    write("litdata", info, rows, tmp_path, ("shard_bytes", 3000))
    read = litdata.StreamingDataset(str(tmp_path / "train"), shuffle=False)
    assert len(read) == 40
    for got, want in zip((read[i] for i in range(40)), rows.to_pylist(), strict=True):
        assert list(got) == list(want)
        for name, value in want.items():
            if name in ("source", "stage"):
                assert got[name] == value
            elif isinstance(got[name], str):
                assert json.loads(got[name]) == value
            else:
                assert got[name].tolist() == value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("vocab_size", [1000, 151_665])
def test_litdatas_token_loader_cuts_our_blocks(make_info, tmp_path, vocab_size):
    litdata = reader("litdata")
    info = make_info("pretrain", max_length=8, vocab_size=vocab_size)
    ids = np.arange(3, 3 + 8 * 12).reshape(12, 8).tolist()
    rows = pa.RecordBatch.from_pylist(
        [
            {
                "source": "general",
                "stage": "train",
                "records": [{"file": 0, "record": i, "start": 0, "length": 8}],
                "input_ids": row,
                "labels": row,
                "attention_mask": [1] * 8,
            }
            for i, row in enumerate(ids)
        ],
        schema=info.schema,
    )
    write("litdata", info, rows, tmp_path, ("layout", "tokens"))
    loader = litdata.TokensLoader(block_size=8)
    read = litdata.StreamingDataset(str(tmp_path / "train"), item_loader=loader, shuffle=False)
    assert [read[i].tolist() for i in range(len(read))] == ids


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_every_row_in_order(make_info, make_rows, tmp_path):
    webdataset = reader("webdataset")
    info = make_info("sft", packed=True)
    rows = make_rows(info, 20)
    names = write("webdataset", info, rows, tmp_path)
    urls = [str(tmp_path / name) for shard in names for name in shard]
    got = []
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        row = dict(sample["json"])
        row |= {k.removesuffix(".npy"): v.tolist() for k, v in sample.items() if k.endswith(".npy")}
        got.append(row)
    assert got == rows.to_pylist()


def test_safetensors_reads_padded_rows(make_info, make_rows, tmp_path):
    numpy_reader = reader("safetensors.numpy")
    info = make_info("sft", packed=True)
    rows = make_rows(info, 20)
    names = write("safetensors", info, rows, tmp_path, ("shard_bytes", 1000))
    want = iter(rows.to_pylist())
    for name in (name for shard in names for name in shard):
        tensors = numpy_reader.load_file(tmp_path / name)
        for i, length in enumerate(tensors["lengths"].tolist()):
            row = next(want)
            for column in ("input_ids", "labels", "position_ids"):
                assert tensors[column][i, :length].tolist() == row[column]
            assert set(tensors["labels"][i, length:].tolist()) <= {-100}
    assert next(want, None) is None
