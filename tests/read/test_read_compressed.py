"""Compressed files: cut ones are never taken for whole ones, and nothing is ever held whole."""

import bz2
import gzip
import lzma
import random
import subprocess
import sys
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from reading import rows_of

from datamix.core.errors import DataError
from datamix.read import decompress, expansion

LINES = b"".join(b'{"i":%d,"text":"%d apples"}\n' % (i, i * 7919) for i in range(3000))
COMPRESSORS = {
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "lz4": lz4.frame.compress,
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999, -1])
def test_a_cut_archive_is_an_error_wherever_it_was_cut(suffix: str, share: float, tmp_path: Path) -> None:
    whole = COMPRESSORS[suffix](LINES)
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(whole[:-1] if share < 0 else whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match="truncated") as caught:
        rows_of(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [*COMPRESSORS, ""])
def test_what_a_stored_byte_unpacks_to_is_measured(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the measured head ends inside the stream."""
    noise = random.Random(0).randbytes(1_200_000)
    text = b"".join(noise[i : i + 100].hex().encode() for i in range(0, len(noise), 100))
    whole = COMPRESSORS.get(suffix, bytes)(text)
    (tmp_path / "a").write_bytes(whole)
    compression = {"gz": "gzip", "zst": "zstd", "": None}.get(suffix, suffix)
    for measured in (8 << 20, 1 << 20):
        monkeypatch.setattr(decompress, "_MEASURED_BYTES", measured)
        assert expansion(str(tmp_path / "a"), compression) == pytest.approx(len(text) / len(whole), rel=0.15)


def test_a_zst_cut_at_a_block_that_ends_on_a_line_is_an_error(tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor().compressobj()
    half = LINES[: LINES.index(b"\n", len(LINES) // 2) + 1]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(compressor.compress(half) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    with pytest.raises(DataError, match="truncated"):
        rows_of(path)


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_files_of_several_members_are_read_to_their_end(suffix: str, tmp_path: Path) -> None:
    compress = COMPRESSORS[suffix]
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(compress(LINES[:1000]) + compress(b"") + compress(LINES[1000:]))
    assert len(rows_of(path).values) == 3000


def test_xz_with_padding_and_zst_with_a_skippable_frame_are_read(tmp_path: Path) -> None:
    padded = tmp_path / "a.jsonl.xz"
    padded.write_bytes(lzma.compress(LINES[:1000]) + bytes(8) + lzma.compress(LINES[1000:]) + bytes(4))
    assert len(rows_of(padded).values) == 3000
    skipped = tmp_path / "a.jsonl.zst"
    skipped.write_bytes(b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + COMPRESSORS["zst"](LINES))
    assert len(rows_of(skipped).values) == 3000


def test_a_damaged_archive_says_so(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(LINES))
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged|truncated"):
        rows_of(path)


READ_AND_MEASURE = """
import resource, sys
from datamix.core.contracts import Slice
from datamix.read import read
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reasons, values = [], []
for rows in read(Slice(sys.argv[1], "", "jsonl", sys.argv[2])):
    reasons += [reject.reason for reject in rows.rejects]
    values += rows.values
print(reasons, values, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize(("suffix", "compression"), [("gz", "gzip"), ("zst", "zstd")])
def test_a_decompression_bomb_is_read_as_a_stream(suffix: str, compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb.jsonl.{suffix}"
    compress = COMPRESSORS[suffix]
    zeros = compress(bytes(4 << 20)) * 75
    path.write_bytes(compress(b'{"a":0}\n') + zeros + compress(b'\n{"a":1}\n'))
    assert path.stat().st_size < 1 << 20
    done = subprocess.run(
        [sys.executable, "-c", READ_AND_MEASURE, str(path), compression],
        capture_output=True,
        text=True,
        check=True,
    )
    told, _, mebibytes = done.stdout.rpartition(" ")
    assert told == "['too_long'] [{'a': 0}, {'a': 1}]"
    assert int(mebibytes) < 240
