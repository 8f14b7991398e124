from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from oracle import corpus, jaccard, stored, text_batch

from datamix.core.errors import DataError
from datamix.dedup import DedupeSpec, NearSpec, Signed, decide
from datamix.dedup.exchange import from_datasketch, minhash_values, to_datasketch, to_datasketch_lsh

NEAR = NearSpec()


@pytest.mark.parametrize("chinese", [False, True])
def test_datasketch_estimates_the_true_jaccard_from_our_values(chinese):
    texts = corpus(4, 140, chinese=chinese)
    sketches = to_datasketch(minhash_values(pa.array(texts), NearSpec(num_perm=512, bands=128, rows=4)))
    errors = [
        sketches[i].jaccard(sketches[j]) - jaccard(texts[i], texts[j])
        for i in range(len(texts))
        for j in range(i + 1, len(texts))
        if jaccard(texts[i], texts[j]) > 0.1
    ]
    assert len(errors) > 50
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.03


def test_a_datasketch_index_of_our_signatures_finds_near_texts():
    text = " ".join(f"w{i}" for i in range(90))
    values = minhash_values(pa.array([text, "something else entirely here", text + " end"]), NEAR)
    index = pickle.loads(pickle.dumps(to_datasketch_lsh(values[:2], ["old", "other"], NEAR)))
    assert index.query(to_datasketch(values)[2]) == ["old"]


def test_new_text_is_deduplicated_against_a_kept_index_without_the_old_text(tmp_path: Path):
    spec = DedupeSpec(near=NEAR)
    text = " ".join(f"w{i}" for i in range(90))
    kept = pickle.loads(pickle.dumps(to_datasketch(minhash_values(pa.array([text, "", "unlike"]), NEAR))))
    path = tmp_path / "kept.arrow"
    batch = from_datasketch(kept, NEAR)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    old = Signed("old", (str(path),), (), "text", rank=0, removable=False)
    new = stored(tmp_path / "new", text_batch([text + " end", "new words here", ""]), spec)
    decided = decide([new, old], spec)[0]
    assert decided.fate.tolist() == [2, 0, 0]
    assert (decided.kept_source[0], decided.kept_record[0]) == (1, 0)


def test_signatures_of_foreign_permutations_are_refused():
    with pytest.raises(DataError, match="permutations differ"):
        from_datasketch([MinHash(num_perm=108)], NEAR)
