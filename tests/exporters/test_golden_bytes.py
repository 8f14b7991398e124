"""Each binary format, byte for byte, by hand: one row of three documents' worth of bytes that a person can follow."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pytest
import zstandard

from datamix.core.errors import DataError, RecipeError
from datamix.exporters import keeps, open_sink


@pytest.fixture
def two_rows(make_info):
    """Two packed rows: documents [10, 11, 2] + [12, 2] of medical, [13, 2] of general; sft labels mask the first."""

    def make(kind="pretrain", **changes):
        info = make_info(kind, packed=True, max_length=6, **changes)
        rows = pa.RecordBatch.from_pylist(
            [
                {
                    "source": "medical",
                    "stage": "train",
                    "records": [
                        {"file": 1, "record": 0, "start": 0, "length": 3},
                        {"file": 1, "record": 4, "start": 0, "length": 2},
                    ],
                    "input_ids": [10, 11, 2, 12, 2],
                    "labels": [-100, 11, 2, -100, 2],
                    "position_ids": [0, 1, 2, 0, 1],
                    "seq_lengths": [3, 2],
                },
                {
                    "source": "general",
                    "stage": "train",
                    "records": [{"file": 0, "record": 7, "start": 0, "length": 2}],
                    "input_ids": [13, 2],
                    "labels": [-100, 2],
                    "position_ids": [0, 1],
                    "seq_lengths": [2],
                },
            ],
            schema=info.schema,
        )
        return info, rows

    return make


def write(name, info, rows, folder, *options, split="train"):
    sink = open_sink(name, options, info, split)
    names = sink.write([rows], 0, folder)
    sink.finish([names], folder)
    return names


def test_megatron_documents(two_rows, tmp_path):
    info, rows = two_rows()
    names = write("megatron", info, rows, tmp_path)
    *names, counts = names
    assert names == [f"train/{s}-00000.{e}" for s in ("general", "medical") for e in ("bin", "idx")]
    assert json.loads((tmp_path / counts).read_text()) == {"documents": 3, "end_tokens_added": 0}
    assert (tmp_path / "train/medical-00000.bin").read_bytes() == struct.pack("<5H", 10, 11, 2, 12, 2)
    assert (tmp_path / "train/general-00000.bin").read_bytes() == struct.pack("<2H", 13, 2)
    assert (tmp_path / "train/medical-00000.idx").read_bytes() == (
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, 8, 2, 3)
        + struct.pack("<2i", 3, 2)
        + struct.pack("<2q", 0, 6)
        + struct.pack("<3q", 0, 1, 2)
    )
    assert (tmp_path / "train.txt").read_text() == "2 train/general-00000\n5 train/medical-00000\n"
    assert json.loads((tmp_path / "blend.json").read_text()) == {
        "train": ["2", "train/general-00000", "5", "train/medical-00000"],
        "valid": None,
        "test": None,
    }


def test_megatron_blocks_of_a_large_vocabulary_are_int32_in_our_order(two_rows, tmp_path):
    info, rows = two_rows(vocab_size=151_665)
    names = write("megatron", info, rows, tmp_path, ("layout", "blocks"))
    assert names == ["train/rows-00000.bin", "train/rows-00000.idx"]
    assert (tmp_path / names[0]).read_bytes() == struct.pack("<7i", 10, 11, 2, 12, 2, 13, 2)
    index = (tmp_path / names[1]).read_bytes()
    assert index[17] == 4
    assert index[34:] == struct.pack("<2i2q3q", 5, 2, 0, 20, 0, 1, 2)
    assert len(index) == 34 + 12 * 2 + 8 * 3


def test_megatron_ends_each_piece_of_a_cut_document_and_counts_what_it_adds(make_info, tmp_path):
    info = make_info(packed=True, max_length=8)
    row = {
        "source": "general",
        "stage": "train",
        "records": [
            {"file": 0, "record": 0, "start": 4, "length": 3},
            {"file": 0, "record": 1, "start": 0, "length": 2},
            {"file": 0, "record": 2, "start": 0, "length": 1},
        ],
        "input_ids": [10, 11, 12, 13, 2, 14],
        "labels": [-100, 11, 12, -100, 2, -100],
        "position_ids": [0, 1, 2, 0, 1, 0],
        "seq_lengths": [3, 2, 1],
    }
    rows = pa.RecordBatch.from_pylist([row], schema=info.schema)
    write("megatron", info, rows, tmp_path)
    assert (tmp_path / "train/general-00000.bin").read_bytes() == struct.pack(
        "<8H", 10, 11, 12, 2, 13, 2, 14, 2
    )
    index = (tmp_path / "train/general-00000.idx").read_bytes()
    assert index[34:58] == struct.pack("<3i", 4, 2, 2) + struct.pack("<1q", 0) + struct.pack("<1i", 8)
    assert (tmp_path / "train.txt").read_text() == "8 train/general-00000\n"
    assert "2 of 3 are pieces of a cut document" in (tmp_path / "README.md").read_text()
    write("megatron", info, rows, tmp_path / "blocks", ("layout", "blocks"))
    assert (tmp_path / "blocks/train/rows-00000.bin").stat().st_size == 12
    assert keeps("megatron", (), info) == ("ratio", "isolation")
    assert keeps("megatron", (), make_info(eos_token_id=None)) == ("ratio",)


def test_megatron_has_a_blend_for_each_stage(make_info, make_rows, tmp_path):
    info = make_info(stages=("broad", "sharpen"), packed=True)
    write("megatron", info, make_rows(info, 16), tmp_path)
    sink = open_sink("megatron", (), info, "validation/medical")
    sink.finish([sink.write([make_rows(info, 4)], 0, tmp_path)], tmp_path)
    broad = (tmp_path / "stage-broad.txt").read_text().split()
    sharpen = (tmp_path / "stage-sharpen.txt").read_text().split()
    assert broad[1::2] == [f"train/{s}-00000-s0-broad" for s in ("general", "medical")]
    whole = json.loads((tmp_path / "blend.json").read_text())
    assert sorted(whole["train"]) == sorted(broad + sharpen)
    assert whole["valid"][1::2] == [f"validation_medical/{s}-00000" for s in ("general", "medical")]
    tokens = sum(len(row["input_ids"]) for row in make_rows(info, 16).to_pylist())
    assert sum(map(int, whole["train"][::2])) == tokens


def test_datatrove(two_rows, tmp_path):
    info, rows = two_rows("sft")
    names = write("datatrove", info, rows, tmp_path)
    assert sorted(names) == [f"train/00000.ds{s}" for s in ("", ".index", ".loss", ".metadata")]
    assert (tmp_path / "train/00000.ds").read_bytes() == struct.pack("<7H", 10, 11, 2, 12, 2, 13, 2)
    assert (tmp_path / "train/00000.ds.index").read_bytes() == struct.pack("<3Q", 3, 5, 7)
    assert (tmp_path / "train/00000.ds.loss").read_bytes() == bytes([0, 1, 1, 0, 1, 0, 1])
    assert (tmp_path / "train/00000.ds.metadata").read_text() == "tokenizer|2\n7\n7.00 T"


def test_olmo(two_rows, tmp_path):
    info, rows = two_rows("sft", vocab_size=200)
    write("olmo-core", info, rows, tmp_path)
    assert (tmp_path / "train/token_ids_part_00000.npy").read_bytes() == bytes([10, 11, 2, 12, 2, 13, 2])
    assert (tmp_path / "train/labels_mask_part_00000.npy").read_bytes() == bytes([0, 1, 1, 0, 1, 0, 1])
    borders = gzip.decompress((tmp_path / "train/token_ids_part_00000.csv.gz").read_bytes()).decode()
    assert borders == "0,3,1:0,medical,1\n3,5,1:4,medical,5\n5,7,0:7,general,8\n"
    assert json.loads((tmp_path / "dtype.json").read_text())["dtype"] == "uint8"


def test_torchtitan(two_rows, tmp_path):
    info, rows = two_rows()
    write("torchtitan", info, rows, tmp_path)
    assert (tmp_path / "train/00000.tokens.bin").read_bytes() == struct.pack("<7I", 10, 11, 2, 12, 2, 13, 2)
    assert (tmp_path / "train/00000.offsets.bin").read_bytes() == struct.pack("<3Q", 0, 5, 7)


def test_npy(two_rows, tmp_path):
    info, rows = two_rows("sft")
    write("npy", info, rows, tmp_path)
    parts = {
        n: np.load(tmp_path / f"train/00000.{n}.npy", mmap_mode="r")
        for n in ("input_ids", "loss_mask", "rows", "documents")
    }
    assert parts["input_ids"].dtype == np.uint16
    assert parts["input_ids"].tolist() == [10, 11, 2, 12, 2, 13, 2]
    assert parts["loss_mask"].tolist() == [0, 1, 1, 0, 1, 0, 1]
    assert parts["rows"].tolist() == [0, 5, 7]
    assert parts["documents"].tolist() == [0, 3, 5, 7]
    header = (tmp_path / "train/00000.input_ids.npy").read_bytes()[:128]
    assert header.startswith(
        b"\x93NUMPY\x01\x00v\x00{'descr': '<u2', 'fortran_order': False, 'shape': (7,), }"
    )


def test_mds(make_info, tmp_path):
    info = make_info(packed=True)
    rows = pa.RecordBatch.from_pylist(
        [
            {
                "source": "医",
                "stage": "s",
                "records": [],
                "input_ids": [7, 8],
                "labels": [7, -100],
                "position_ids": [0, 1],
                "seq_lengths": [2],
            }
        ],
        schema=info.schema,
    )
    (name,) = write("mds", info, rows, tmp_path)
    config = {
        "column_encodings": ["ndarray:int32"] * 3 + ["json", "ndarray:int32", "str", "str"],
        "column_names": ["input_ids", "labels", "position_ids", "records", "seq_lengths", "source", "stage"],
        "column_sizes": [None] * 7,
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": 1 << 26,
    }
    text = json.dumps(config, sort_keys=True).encode()
    array = bytes([4, 2])  # one dimension, its length in a byte
    sample = struct.pack("<7I", 10, 10, 10, 2, 6, 3, 1) + b"".join(
        (
            array + struct.pack("<2i", 7, 8),
            array + struct.pack("<2i", 7, -100),
            array + struct.pack("<2i", 0, 1),
            b"[]",
            bytes([4, 1]) + struct.pack("<i", 2),
            "医".encode(),
            b"s",
        )
    )
    head = struct.pack("<III", 1, 12 + len(text), 12 + len(text) + len(sample))
    assert (tmp_path / name).read_bytes() == head + text + sample
    index = json.loads((tmp_path / "train/index.json").read_text())
    raw = {"basename": "00000-000.mds", "bytes": len(head + text + sample), "hashes": {}}
    assert index == {
        "version": 2,
        "shards": [config | {"raw_data": raw, "samples": 1, "version": 2, "zip_data": None}],
    }


def test_mds_compressed_holds_the_same_bytes(two_rows, tmp_path):
    info, rows = two_rows()
    (plain,) = write("mds", info, rows, tmp_path / "plain")
    (packed,) = write("mds", info, rows, tmp_path / "packed", ("compression", "zstd"))
    assert packed == "train/00000-000.mds.zstd"
    raw = zstandard.decompress((tmp_path / "packed" / packed).read_bytes())
    entry = json.loads((tmp_path / "packed/train/index.json").read_text())["shards"][0]
    assert entry["raw_data"]["bytes"] == len(raw)
    assert entry["samples"] == 2
    assert raw.replace(b'"zstd:3"', b"null")[-80:] == (tmp_path / "plain" / plain).read_bytes()[-80:]


def test_litdata_rows(make_info, tmp_path):
    info = make_info("pretrain")
    row = {
        "source": "医",
        "stage": "s",
        "records": [],
        "input_ids": [7, 8],
        "labels": [7, 8],
        "attention_mask": [1, 1],
    }
    (name,) = write("litdata", info, pa.RecordBatch.from_pylist([row], schema=info.schema), tmp_path)
    item = struct.pack("<6I", 3, 1, 2, 8, 8, 2) + "医s[]".encode() + struct.pack("<2i2i2b", 7, 8, 7, 8, 1, 1)
    assert (tmp_path / name).read_bytes() == struct.pack("<3I", 1, 12, 12 + len(item)) + item
    index = json.loads((tmp_path / "train/index.json").read_text())
    assert index["chunks"] == [
        {"chunk_bytes": 12 + len(item), "chunk_size": 1, "dim": None, "filename": "chunk-00000-000.bin"}
    ]
    assert index["config"]["data_format"] == ["str"] * 3 + ["no_header_tensor:16"] * 2 + [
        "no_header_tensor:12"
    ]


def test_litdata_tokens(two_rows, tmp_path):
    info, rows = two_rows()
    (name,) = write("litdata", info, rows, tmp_path, ("layout", "tokens"))
    assert (tmp_path / name).read_bytes() == struct.pack("<4I7H", 2, 16, 26, 30, 10, 11, 2, 12, 2, 13, 2)
    index = json.loads((tmp_path / "train/index.json").read_text())
    assert index["chunks"][0]["dim"] == 7
    assert index["config"]["data_format"] == ["no_header_tensor:20"]


def test_safetensors(two_rows, tmp_path):
    info, rows = two_rows("sft")
    (name,) = write("safetensors", info, rows, tmp_path)
    content = (tmp_path / name).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert header["input_ids"] == {"dtype": "I32", "shape": [2, 6], "data_offsets": [0, 48]}
    assert header["lengths"] == {"dtype": "I32", "shape": [2], "data_offsets": [144, 152]}
    assert size % 8 == 0
    assert content[8 + size :] == struct.pack("<12i", 10, 11, 2, 12, 2, 0, 13, 2, 0, 0, 0, 0) + struct.pack(
        "<12i", -100, 11, 2, -100, 2, -100, -100, 2, -100, -100, -100, -100
    ) + struct.pack("<12i", 0, 1, 2, 0, 1, 0, 0, 1, 0, 1, 2, 3) + struct.pack("<2i", 5, 2)


def test_webdataset(two_rows, tmp_path):
    info, rows = two_rows("sft")
    (name,) = write("webdataset", info, rows, tmp_path)
    with tarfile.open(tmp_path / name) as tar:
        members = tar.getmembers()
        assert [m.name for m in members][:3] == [
            f"00000-00000000.{c}.npy" for c in ("input_ids", "labels", "position_ids")
        ]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
            (0, 0, 0, "", "", 0o644)
        }
        stored = tar.extractfile("00000-00000001.input_ids.npy").read()
        assert np.load(io.BytesIO(stored)).tolist() == [13, 2]
        assert json.loads(tar.extractfile("00000-00000000.json").read())["records"][1]["record"] == 4
        contents = [(m, tar.extractfile(m).read()) for m in members]
    again = io.BytesIO()
    with tarfile.open(fileobj=again, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in contents:
            plain = tarfile.TarInfo(member.name)
            plain.size = len(content)
            tar.addfile(plain, io.BytesIO(content))
    assert (tmp_path / name).read_bytes() == again.getvalue()


TOKEN_FORMATS = ("megatron", "datatrove", "olmo-core", "npy", "litdata", "torchtitan")


@pytest.mark.parametrize("name", TOKEN_FORMATS)
def test_an_id_that_does_not_fit_the_vocabularys_dtype_is_refused(make_info, tmp_path, name):
    info = make_info("pretrain", vocab_size=200 if name == "olmo-core" else 1000)
    row = {
        "source": "general",
        "stage": "train",
        "records": [{"file": 0, "record": 0, "start": 0, "length": 1}],
    }
    row |= {"input_ids": [70_000 if name != "torchtitan" else -3], "labels": [2], "attention_mask": [1]}
    rows = pa.RecordBatch.from_pylist([row], schema=info.schema)
    options = (("layout", "tokens"),) if name == "litdata" else ()
    with pytest.raises(DataError, match="does not fit"):
        open_sink(name, options, info, "train").write([rows], 0, tmp_path)


@pytest.mark.parametrize("name", ["mds", "litdata", "safetensors"])
def test_files_are_cut_by_size_and_rows_stay_in_order(make_info, make_rows, tmp_path, name):
    info = make_info("sft")
    rows = make_rows(info, 50)
    names = write(name, info, rows, tmp_path, ("shard_bytes", 2000))
    assert len(names) > 3
    assert names == sorted(names)
    whole = write(name, info, rows, tmp_path / "whole")
    assert len(whole) == 1


@pytest.mark.parametrize("size", [0, 1 << 32])
def test_a_shard_size_that_offsets_cannot_hold_is_refused(make_info, size):
    with pytest.raises(RecipeError, match="32 bits"):
        open_sink("mds", (("shard_bytes", size),), make_info(), "train")


@pytest.mark.parametrize("name", [*TOKEN_FORMATS, "safetensors", "webdataset", "mds"])
def test_bytes_do_not_depend_on_how_rows_come_cut_nor_on_the_run(
    make_info, make_rows, bytes_below, tmp_path, name
):
    info = make_info("pretrain", stages=("a", "b"))
    rows = make_rows(info, 17)
    seen = []
    for number, cut in enumerate((17, 5, 1)):
        sink = open_sink(name, (), info, "train")
        batches = [rows.slice(i, cut) for i in range(0, 17, cut)]
        sink.finish([sink.write(batches, 0, tmp_path / str(number))], tmp_path / str(number))
        seen.append(bytes_below(tmp_path / str(number)))
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("name", [*TOKEN_FORMATS, "safetensors", "webdataset", "mds"])
def test_an_empty_shard_does_not_stop_a_format(make_info, tmp_path, name):
    info = make_info("pretrain")
    sink = open_sink(name, (), info, "train")
    sink.finish([sink.write([], 0, tmp_path)], tmp_path)
