"""Domain records planted in a general corpus, found again by their scores: precision and recall on real data, Chinese and English.

    python benchmarks/score.py          ../shared/data; about a minute of processor time

Half of the domain's records are planted in the general corpus, the other half is what the scores are made from; the classifier's
"other" records are general ones that are not in the corpus. ``at the cut``: records above 0 (dsir) or 0.5 (linear); ``best n``: as many
as were planted.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from datamix.jobs.score import score
from datamix.pipeline.steps import Options

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
CORPORA = {
    "English: Rust in Python, Kubernetes and Ethereum": (
        ["pretrain/en_rust_book.jsonl", "pretrain/en_rust_rfcs.jsonl"],
        ["pretrain/en_python_peps.jsonl", "pretrain/en_k8s_enhancements.jsonl", "pretrain/en_ethereum_eips.jsonl"],
    ),
    "Chinese: medical in general conversations": (
        ["sft_domain/shibing624__MedicalGPT/medical_sft_1K_format.jsonl"],
        ["sft_general/shibing624__MedicalGPT/sharegpt_zh_1K_format.jsonl", "sft_general/hiyouga__LLaMA-Factory/alpaca_zh_demo.json"],
    ),
}  # fmt: skip
CUTS = {"dsir": 0.0, "linear": 0.5}


def words(value: object) -> list[str]:
    """Every text in a record."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in words(part)]


def records(paths: list[str]) -> list[str]:
    """The records of some files as plain texts, at most 4,000 characters each."""
    found: list[str] = []
    for path in paths:
        text = (DATA / path).read_text(encoding="utf-8")
        rows = json.loads(text) if path.endswith(".json") else map(json.loads, text.splitlines())
        found += ["\n".join(words(row))[:4000] for row in rows]
    return found


def written(path: Path, texts: list[str]) -> Path:
    path.write_text(
        "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8"
    )
    return path


def main() -> None:
    print(
        "corpus | records, planted | score | precision, recall at the cut | best n | AUC | seconds of processor"
    )
    for title, (domain_paths, general_paths) in CORPORA.items():
        domain, general = records(domain_paths), records(general_paths)
        rng = random.Random(0)
        rng.shuffle(domain)
        rng.shuffle(general)
        half, fifth = len(domain) // 2, len(general) // 5
        planted, corpus = domain[:half], general[fifth:]
        mixed = [*((text, True) for text in planted), *((text, False) for text in corpus)]
        rng.shuffle(mixed)
        truth = np.array([is_planted for _, is_planted in mixed])
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            web = written(place / "web.jsonl", [text for text, _ in mixed])
            good, other = (
                written(place / "good.jsonl", domain[half:]),
                written(place / "other.jsonl", general[:fifth]),
            )
            for name, cut in CUTS.items():
                target = f"{name}:{good}" + (f",{other}" if name == "linear" else "")
                out, start = place / f"{name}.parquet", time.process_time()
                score(str(web), target, out, Options(out, place / ".datamix", 1))
                used = time.process_time() - start
                lines = pq.read_table(out)
                scores = np.full(len(mixed), -np.inf)
                scores[lines["record"].to_numpy()] = lines["score"].to_numpy()
                chosen = scores > cut
                hits = (chosen & truth).sum()
                best = truth[np.argsort(-scores, kind="stable")[: truth.sum()]].mean()
                ranks = np.argsort(np.argsort(scores)) + 1
                pairs = truth.sum() * (~truth).sum()
                auc = (ranks[truth].sum() - truth.sum() * (truth.sum() + 1) / 2) / pairs
                print(
                    f"{title} | {len(mixed):,}, {truth.sum():,} | {name} | {hits / max(1, chosen.sum()):.3f}, {hits / truth.sum():.3f} | "
                    f"{best:.3f} | {auc:.4f} | {used:.1f}"
                )


if __name__ == "__main__":
    main()
