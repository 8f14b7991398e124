"""Forgetting in a small model, measured through datamix: how much replay, of what, and when.

    python examples/forgetting/run.py            about a minute of processor time (extra `torch`)

A model of 0.2 million parameters learns English (the English pages of these docs), then Chinese (the Chinese pages). Sets, weights,
stages and orders are recipes that datamix builds from one preparation; ``datamix.LossCallback`` measures English and Chinese
before and while each run trains. The runs:

- a ladder: 0, 1, 5, 10, 25, 50 % English in every part of training (interleaved); the rung of 10 % three times, with other orders;
- order alone: the same 10 % English all at the end, or all at the start;
- what is replayed: text that the model wrote itself before it learned Chinese (25 %), English with its words in random order (25 %)
  and Python code (25 %), the last two as controls that should not help.

``runs.csv`` joins them for ``datamix recommend``, whose critical share is then trained once more. It leaves ``results.md``, ``plot.svg``
and, for every run, ``losses.jsonl`` below ``--out``. A small model's result: it says nothing about a large one.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datamix
from datamix.core.losses import read_losses

ROOT = Path(__file__).parent.parent.parent
LENGTH, BATCH, TOKENS = 128, 8, 48_000
LADDER = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50)
KEEP = 0.05  # nats of English loss that may be lost


def write_documents(path: Path, texts: list[str]) -> None:
    path.write_text(
        "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8"
    )


def sections(pages: list[Path], split: str) -> list[str]:
    """Parts of pages of at least 200 characters."""
    parts = [
        part.strip() for page in sorted(pages) for part in re.split(split, page.read_text(encoding="utf-8"))
    ]
    return [part for part in parts if len(part) >= 200]


def make_corpora(folder: Path) -> None:
    """English, Chinese, the controls, and a tokenizer of 1,500 tokens trained on all of it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    pages = [p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "reference"]
    chinese = [p for p in pages if p.name.endswith(".zh.md")]
    english = sections([p for p in pages if p not in chinese], r"\n(?=#)")
    rng = random.Random(0)
    shuffled = [" ".join(rng.sample(words := text.split(), len(words))) for text in english]
    code = sections(list((ROOT / "datamix").glob("*/*.py"))[:60], r"\n(?=def |class )")
    corpora = {
        "english": english,
        "chinese": sections(chinese, r"\n(?=#)"),
        "shuffled": shuffled,
        "code": code,
    }
    for name, texts in corpora.items():
        write_documents(folder / f"{name}.jsonl", texts)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        [t for texts in corpora.values() for t in texts],
        vocab_size=1500,
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    tokenizer.save(str(folder / "raw.json"))
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "raw.json"), eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.save_pretrained(folder / "tokenizer")


def build(folder: Path, name: str, weights: dict[str, float], **mix: Any) -> Path:
    """The set of a mixture; a tenth of every source is held out. A source of weight 0 is only measured: a sweep leaves it out."""
    value = {
        "name": name, "kind": "pretrain", "tokenizer": "tokenizer", "seed": 42,
        "sources": {n: {"path": f"{n.split('_')[0]}.jsonl", "weight": w or 0.5, "max_epochs": 8} for n, w in weights.items()},
        "validation": {"share": 0.1}, "encode": {"max_length": LENGTH, "pack": "concat"},
        "mix": {"unit": "tokens", "size": TOKENS, **mix},
    }  # fmt: skip
    made, out = datamix.Recipe.of(value, folder), folder / "sets" / name
    if absent := [n for n, w in weights.items() if not w]:
        (out,) = datamix.sweep(made, f"{absent[0]}=0", out, workers=1, overwrite=True)
        return out
    datamix.build(made, out, workers=1, overwrite=True)
    return out


def new_model(folder: Path) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    vocab_size = len(transformers.AutoTokenizer.from_pretrained(folder / "tokenizer"))
    config = transformers.Qwen2Config(
        vocab_size=vocab_size, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=LENGTH,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config)


def train(model: Any, out: Path, steps: int, learning_rate: float, every: int) -> None:
    """Train from the set at ``out`` in its own order, measuring every source it holds out."""
    import transformers

    class InOrder(transformers.Trainer):
        def get_train_dataloader(self) -> Any:
            return self.train_dataset

    (out / "losses.jsonl").unlink(missing_ok=True)
    arguments = transformers.TrainingArguments(
        output_dir=str(out / "checkpoints"), max_steps=steps, learning_rate=learning_rate, warmup_steps=10,
        lr_scheduler_type="constant_with_warmup", per_device_eval_batch_size=32, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    loader = datamix.open(out).torch(BATCH)
    callback = datamix.LossCallback(out, every=every)
    InOrder(model=model, args=arguments, train_dataset=loader, callbacks=[callback]).train()


def own_texts(folder: Path, model: Any, count: int = 240) -> list[str]:
    """Texts that the model writes by itself, sampled from its own distribution."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(1)
    start = torch.full((count, 1), tokenizer.eos_token_id)
    with torch.no_grad():
        ids = model.generate(
            start, do_sample=True, max_new_tokens=LENGTH - 1, pad_token_id=tokenizer.eos_token_id
        )
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    return [text for text in texts if len(text) >= 50]


def experiments() -> dict[str, tuple[dict[str, float], dict[str, Any]]]:
    """Every run by name: weights, and what else its mixture has."""
    ladder = {
        f"{share:.0%}".replace("%", ""): ({"english": share, "chinese": 1 - share}, {}) for share in LADDER
    }
    made: dict[str, tuple[dict[str, float], dict[str, Any]]] = {f"ladder-{k}": v for k, v in ladder.items()}
    tenth = {"english": 0.1, "chinese": 0.9}
    for order in (2, 3):  # another name is another order, and the same records are held out
        made[f"ladder-10-order-{order}"] = ({f"english_{order}": 0.1, f"chinese_{order}": 0.9}, {})
    replay = {"name": "replay", "share": 0.1, "weights": {"english": 1.0, "chinese": 0.0}}
    domain = {"name": "domain", "share": 0.9, "weights": {"english": 0.0, "chinese": 1.0}}
    made["replay-last"] = (tenth, {"stages": [domain, replay]})
    made["replay-first"] = (tenth, {"stages": [replay, domain]})
    for other in ("self", "shuffled", "code"):
        made[f"replay-{other}"] = ({other: 0.25, "english": 0.0, "chinese": 0.75}, {})
    return made


def last_losses(out: Path) -> dict[str, float]:
    curves = read_losses(out / "losses.jsonl")
    return {
        str(source).split("_")[0]: losses[-1].loss
        for (source, split), losses in curves.items()
        if split == "validation" and source
    }


def run_one(folder: Path, name: str, weights: dict[str, float], mix: dict[str, Any]) -> dict[str, float]:
    import transformers

    out = build(folder, name, weights, **mix)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    train(model, out, len(datamix.open(out).torch(BATCH)), 2e-3, 20)
    losses = last_losses(out)
    print(f"{name:18} english {losses['english']:.3f}   chinese {losses['chinese']:.3f}", flush=True)
    return losses


def recommend(
    folder: Path, base: dict[str, float], results: dict[str, dict[str, float]]
) -> dict[str, Any] | None:
    """What ``datamix recommend`` says of the ladder; None where this datamix does not have it."""
    with (folder / "runs.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["run", "weight:english", "weight:chinese", "loss:english", "loss:chinese"])
        rows.writerow(["base", "", "", base["english"], base["chinese"]])
        for name, losses in results.items():
            if name.startswith("ladder"):
                share = next(iter(experiments()[name][0].values()))
                rows.writerow([name, share, 1 - share, losses["english"], losses["chinese"]])
    keep = f"english <= base + {KEEP}"
    command = ["recommend", folder / "runs.csv", "--keep", keep, "--share", "english", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "datamix", *map(str, command)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print("datamix recommend:", done.stderr.strip(), flush=True)
        return None
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def write_plot(folder: Path, base: dict[str, float], results: dict[str, dict[str, float]]) -> None:
    """English and Chinese loss over the share of English, as SVG; single points beside the ladder."""
    left, top, width, height = 60, 30, 460, 260
    everything = [v for losses in results.values() for v in (losses["english"], losses["chinese"])] + [
        base["english"]
    ]
    low, high = min(everything) - 0.05, max(everything) + 0.05

    def place(share: float, loss: float) -> tuple[float, float]:
        return left + width * (share / 0.5) ** 0.5, top + height * (high - loss) / (high - low)

    colours, parts = {"english": "#1f6f78", "chinese": "#b86e0f"}, []
    for source, colour in colours.items():
        points = [place(share, results[f"ladder-{share:.0%}".replace("%", "")][source]) for share in LADDER]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        x, y = points[-1]
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{source}</text>')
    x, y = place(0.0, base["english"])
    parts.append(
        f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#1f6f78" stroke-dasharray="4 4"/>'
    )
    parts.append(f'<text x="{left + 4}" y="{y - 5:.1f}" fill="#1f6f78">english before</text>')
    for name, mark in (("replay-last", "last"), ("replay-first", "first"), ("replay-self", "self-generated"),
                       ("replay-shuffled", "shuffled words"), ("replay-code", "code")):  # fmt: skip
        share = 0.1 if mark in ("last", "first") else 0.25
        x, y = place(share, results[name]["english"])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="none" stroke="#777"/>')
        parts.append(f'<text x="{x + 7:.1f}" y="{y + 4:.1f}" fill="#777">{mark}</text>')
    for share in LADDER:
        x, _ = place(share, low)
        parts.append(
            f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle" fill="#777">{share:.0%}</text>'
        )
    for n in range(5):
        loss = low + (high - low) * n / 4
        _, y = place(0, loss)
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#777">{loss:.2f}</text>')
    parts.append(
        f'<text x="{left}" y="16" fill="#777">validation loss, nats a token, over the share of English tokens</text>'
    )
    body = "\n".join(parts)
    (folder / "plot.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 330" font-family="sans-serif" font-size="12">\n{body}\n</svg>\n',
        encoding="utf-8",
    )


def write_results(
    folder: Path,
    base: dict[str, float],
    results: dict[str, dict[str, float]],
    told: dict[str, Any] | None,
    used: float,
) -> None:
    lines = ["| run | English | change | Chinese |", "| --- | ---: | ---: | ---: |",
             f"| before | {base['english']:.3f} | | {base['chinese']:.3f} |"]  # fmt: skip
    for name, losses in results.items():
        change = losses["english"] - base["english"]
        lines.append(f"| {name} | {losses['english']:.3f} | {change:+.3f} | {losses['chinese']:.3f} |")
    lines += ["", f"Processor time: {used:.0f} s."]
    if told is not None:
        lines += [
            "",
            "```json",
            json.dumps({k: told[k] for k in ("verdict", "because", "critical")}, indent=1),
            "```",
        ]
    (folder / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("forgetting"))
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)  # of so small a model more threads wait for each other
    make_corpora(folder)
    model = new_model(folder)
    before = build(folder, "before", {"english": 1.0, "chinese": 0.0}, size=5 * TOKENS)
    train(model, before, len(datamix.open(before).torch(BATCH)), 4e-3, 100)
    model.save_pretrained(folder / "base")
    base = last_losses(before)
    print(f"{'before':18} english {base['english']:.3f}   chinese {base['chinese']:.3f}", flush=True)
    write_documents(folder / "self.jsonl", own_texts(folder, model))
    results = {name: run_one(folder, name, *run) for name, run in experiments().items()}
    told = recommend(folder, base, results)
    critical = (told or {}).get("critical") or {}
    if isinstance(share := critical.get("share"), float) and 0 < share < 1:
        results[f"check-{share:.3f}"] = run_one(folder, "check", {"english": share, "chinese": 1 - share}, {})
    write_plot(folder, base, results)
    write_results(folder, base, results, told, time.process_time())
    print((folder / "results.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
