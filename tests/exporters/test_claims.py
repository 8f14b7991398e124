"""What a format claims of ratio, order and isolation, recounted from what its files yield to a reader, for drawn sets.

Each reader below goes the way of the format's own program, from the files alone: rows as lists of documents (pieces). A
claim of *ratio* is that every piece is there as often as in the set, of *order* that tokens come in our order, of
*isolation* that every piece can be told from its neighbours.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import tempfile
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from datamix.exporters import EXPORT_FORMATS, keeps, needs_records, open_sink

EOS = 2


def cut(ids, lengths):
    ends = np.cumsum([0, *lengths]).tolist()
    return [list(map(int, ids[a:b])) for a, b in pairwise(ends)]


def by_positions(ids, positions):
    starts = [i for i, p in enumerate(positions) if p == 0]
    return cut(ids, np.diff([*starts, len(ids)]))


def table_rows(tables):
    """Rows with the lengths of their documents, or one document a row."""
    for table in tables:
        for row in table.to_pylist():
            ids = row["input_ids"]
            yield cut(ids, row["seq_lengths"]) if row.get("seq_lengths") is not None else [ids]


def parquet_rows(folder):
    return list(table_rows(pq.read_table(p) for p in sorted(folder.glob("train/*.parquet"))))


def jsonl_rows(folder):
    lines = [
        json.loads(line)
        for p in sorted(folder.glob("train/*.jsonl"))
        for line in p.read_text("utf-8").splitlines()
    ]
    return [cut(r["input_ids"], r.get("seq_lengths") or [len(r["input_ids"])]) for r in lines]


def arrow_rows(folder, below="train"):
    state = json.loads((folder / below / "state.json").read_text())
    paths = [folder / below / entry["filename"] for entry in state["_data_files"]]
    rows = []
    for path in paths:
        for row in pa.ipc.open_stream(pa.memory_map(str(path))).read_all().to_pylist():
            mask = row.get("attention_mask")
            if row.get("seq_lengths") is not None:
                rows.append(cut(row["input_ids"], row["seq_lengths"]))
            elif mask is not None and max(mask, default=0) > 1:  # LLaMA-Factory counts documents in the mask
                counts = Counter(number for number in mask if number)
                rows.append(cut(row["input_ids"], [counts[n] for n in sorted(counts)]))
            else:
                rows.append([[i for i, seen in zip(row["input_ids"], mask or [], strict=False) if seen]])
    return rows


def safetensors_rows(folder):
    from safetensors.numpy import load_file

    rows = []
    for path in sorted(folder.glob("train/*.safetensors")):
        tensors = load_file(path)
        for i, length in enumerate(tensors["lengths"]):
            ids = tensors["input_ids"][i][:length]
            positions = tensors["position_ids"][i][:length] if "position_ids" in tensors else range(length)
            rows.append(by_positions(ids, positions))
    return rows


def npy_rows(folder):
    rows = []
    for path in sorted(folder.glob("train/*.input_ids.npy")):
        ids, ends, borders = (
            np.load(str(path).replace("input_ids", n)) for n in ("input_ids", "rows", "documents")
        )
        for a, b in pairwise(ends.tolist()):
            inside = borders[(borders >= a) & (borders <= b)]
            rows.append(cut(ids[a:b], np.diff(inside)))
    return rows


def megatron_rows(folder):
    """Every document of the blend's datasets, apart where one ends with the end token."""
    words = json.loads((folder / "blend.json").read_text())["train"] or []
    rows = []
    for prefix in words[1::2]:
        index = (folder / f"{prefix}.idx").read_bytes()
        count = int.from_bytes(index[18:26], "little")
        lengths = np.frombuffer(index, "<i4", count, 34)
        ids = np.fromfile(folder / f"{prefix}.bin", "<u2")
        assert len(ids) == lengths.sum()
        documents = cut(ids, lengths)
        assert all(document[-1] == EOS for document in documents)  # what --reset-attention-mask looks for
        rows += [[document] for document in documents]
    return rows


def mds_rows(folder):
    index = json.loads((folder / "train/index.json").read_text())
    rows = []
    for shard in index["shards"]:
        content = (folder / "train" / shard["raw_data"]["basename"]).read_bytes()
        names, count = shard["column_names"], shard["samples"]
        offsets = np.frombuffer(content, "<u4", count + 1, 4)
        for a, b in pairwise(offsets.tolist()):
            sample, sizes = content[a:b], np.frombuffer(content, "<u4", len(names), a)
            parts = cut(range(len(sample)), [4 * len(names), *sizes])[1:]
            columns = {n: bytes(sample[i] for i in p) for n, p in zip(names, parts, strict=True)}

            def array(name, columns=columns):
                width = 1 << (columns[name][0] & 3)
                return np.frombuffer(columns[name][1 + width :], "<i4")

            lengths = array("seq_lengths") if "seq_lengths" in columns else [len(array("input_ids"))]
            rows.append(cut(array("input_ids"), lengths))
    return rows


def litdata_rows(folder):
    index = json.loads((folder / "train/index.json").read_text())
    names = json.loads(json.loads(index["config"]["data_spec"])[1]["context"])
    rows = []
    for chunk in index["chunks"]:
        content = (folder / "train" / chunk["filename"]).read_bytes()
        offsets = np.frombuffer(content, "<u4", chunk["chunk_size"] + 1, 4)
        for a, b in pairwise(offsets.tolist()):
            sizes = np.frombuffer(content, "<u4", len(names), a)
            ends = a + 4 * len(names) + np.cumsum([0, *sizes])
            columns = {n: content[s:e] for n, (s, e) in zip(names, pairwise(ends.tolist()), strict=True)}
            assert ends[-1] == b
            ids = np.frombuffer(columns["input_ids"], "<i4")
            lengths = np.frombuffer(columns.get("seq_lengths", b""), "<i4")
            rows.append(cut(ids, lengths if "seq_lengths" in columns else [len(ids)]))
    return rows


def datatrove_rows(folder):
    rows = []
    for path in sorted(folder.glob("train/*.ds")):
        ends = np.fromfile(f"{path}.index", "<u8")
        rows += [[document] for document in cut(np.fromfile(path, "<u2"), np.diff([0, *ends.tolist()]))]
    return rows


def olmo_rows(folder):
    rows = []
    for path in sorted(folder.glob("train/token_ids_part_*.npy")):
        ids = np.fromfile(path, "<u2")
        lines = csv.reader(io.StringIO(gzip.decompress(path.with_suffix(".csv.gz").read_bytes()).decode()))
        rows += [[ids[int(start) : int(end)].tolist()] for start, end, *_ in lines]
    return rows


def torchtitan_rows(folder):
    rows = []
    for path in sorted(folder.glob("train/*.tokens.bin")):
        offsets = np.fromfile(str(path).replace("tokens", "offsets"), "<u8")
        rows += [[row] for row in cut(np.fromfile(path, "<u4"), np.diff(offsets.astype(np.int64)))]
    return rows


def webdataset_rows(folder):
    rows = {}
    for path in sorted(folder.glob("train/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, column = member.name.partition(".")
                if column.endswith(".npy"):
                    content = tar.extractfile(member)
                    rows.setdefault(key, {})[column[:-4]] = np.load(io.BytesIO(content.read()))
    return [cut(r["input_ids"], r.get("seq_lengths", [len(r["input_ids"])])) for r in rows.values()]


def text_rows(folder):
    """Texts of a folder, in order of the names: each is a piece, spelled as its ids."""
    texts = []
    for path in sorted(folder.rglob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        texts += [line.get("text") or line["messages"][0]["content"] for line in lines]
    for path in sorted(folder.glob("shard_*.parquet")):
        texts += pq.read_table(path)["text"].to_pylist()
    return [[list(map(int, text.split()))] for text in texts]


def both(folder):
    """LLaMA-Factory's tokens; its texts must hold the same pieces."""
    rows = arrow_rows(folder, "tokenized/train")
    assert sorted(chain(*text_rows(folder / "text"))) == sorted(map(list, chain(*rows)))
    return rows


READERS = {
    "parquet": parquet_rows,
    "arrow": arrow_rows,
    "jsonl": jsonl_rows,
    "safetensors": safetensors_rows,
    "npy": npy_rows,
    "megatron": megatron_rows,
    "mds": mds_rows,
    "litdata": litdata_rows,
    "datatrove": datatrove_rows,
    "olmo-core": olmo_rows,
    "torchtitan": torchtitan_rows,
    "webdataset": webdataset_rows,
    "nanochat": text_rows,
    "llamafactory": both,
    "trl": parquet_rows,
    "axolotl": parquet_rows,
    "ms-swift": text_rows,
    "torchtune": parquet_rows,
    "open-instruct": arrow_rows,
    "medicalgpt": text_rows,
}
NO_LANGUAGE = {"verl", "openrlhf", "openai"}  # prompts and conversations, compared in test_text_folders


class Spelled:
    """Pieces as the numbers of their tokens: what a text format writes can be told from the set."""

    def __init__(self, rows):
        self.pieces = {
            (p["file"], p["record"], p["start"]): ids
            for row in rows
            for p, ids in zip(
                row["records"], cut(row["input_ids"], [p["length"] for p in row["records"]]), strict=True
            )
        }

    def piece_texts(self, files, records, starts, lengths):
        keys = zip(files.tolist(), records.tolist(), starts.tolist(), strict=True)
        return [" ".join(map(str, self.pieces[key])) for key in keys]


@st.composite
def sets(draw):
    """Rows of pieces: whole documents, and documents cut over rows, whose pieces need not be all there."""
    packed = draw(st.booleans())
    rows, record = [], 0
    for _ in range(draw(st.integers(1, 9))):
        pieces = []
        for _ in range(draw(st.integers(1, 4)) if packed else 1):
            length, start = draw(st.integers(1, 5)), draw(st.sampled_from([0, 0, 3, 8]))
            ends = draw(st.booleans())
            ids = [3 + (37 * record + 5 * i) % 900 for i in range(length)]
            pieces.append((record, start, [*ids[:-1], EOS] if ends else ids))
            record += 1
        source = draw(st.sampled_from(["general", "medical"]))
        rows.append((source, pieces))
    return packed, rows


def as_rows(info, rows):
    made = []
    for source, pieces in rows:
        ids = [i for _, _, piece in pieces for i in piece]
        lengths = [len(piece) for _, _, piece in pieces]
        row = {
            "source": source,
            "stage": "train",
            "records": [
                {"file": int(source == "medical"), "record": r, "start": s, "length": len(p)}
                for r, s, p in pieces
            ],
            "input_ids": ids,
            "labels": ids,
            "attention_mask": [1] * len(ids),
            "position_ids": [p for length in lengths for p in range(length)],
            "seq_lengths": lengths,
        }
        made.append({name: value for name, value in row.items() if name in info.schema.names})
    return made


def ended(piece):
    return piece if piece[-1] == EOS else [*piece, EOS]


@pytest.mark.parametrize("name", [n for n in EXPORT_FORMATS if n not in NO_LANGUAGE])
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawn=sets(), shards=st.integers(1, 3))
def test_what_a_format_claims_is_what_its_reader_finds(make_info, name, drawn, shards):
    packed, rows = drawn
    info = make_info("pretrain", packed=packed, max_length=24)
    values = as_rows(info, rows)
    batch = pa.RecordBatch.from_pylist(values, schema=info.schema)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts = Spelled(values) if needs_records(name) else None
        sink = open_sink(name, (), info, "train", texts) if texts else open_sink(name, (), info, "train")
        size = -(-len(batch) // shards)
        written = [sink.write([batch.slice(i * size, size)], i, folder) for i in range(shards)]
        sink.finish(written, folder)
        claims = keeps(name, (), info, [n for names in written for n in names])
        read = READERS[name](folder)
    expected = [[piece for _, _, piece in pieces] for _, pieces in rows]
    pieces, tokens = list(chain(*expected)), [i for row in expected for piece in row for i in piece]
    if name == "megatron":  # it ends every piece
        pieces = [ended(piece) for piece in pieces]
    event(f"claims {', '.join(claims)}")
    if "ratio" in claims and "isolation" in claims:
        assert sorted(chain(*read)) == sorted(pieces)
    elif "ratio" in claims:
        assert Counter(i for row in read for piece in row for i in piece) == Counter(chain(*pieces))
    if "order" in claims:
        assert [i for row in read for piece in row for i in piece] == tokens
        if "isolation" in claims:
            assert list(chain(*read)) == pieces
