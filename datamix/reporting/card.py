"""``README.md``: a dataset card from the manifest, with the header that the Hugging Face Hub reads.

Sources with licence, share and size, what was done to them, and how to load the rows. A function of the manifest alone; no
output but the rows is in it, so that further exports leave it true.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from datamix.reporting.words import percent, unit_words

# Licence ids that the Hub knows; any other is "other" there, with its name beside it.
_HUB_LICENSES = (
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause",
    "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0",
    "lgpl", "lgpl-2.1", "lgpl-3.0", "mpl-2.0", "odc-by", "odbl", "pddl", "gfdl", "artistic-2.0", "isc", "unlicense", "wtfpl", "zlib",
)  # fmt: skip
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
          (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"))  # fmt: skip
_STEPS = ("read", "rejected", "cleaned", "removed", "dropped", "validation", "used", "unused")


def licenses(manifest: dict[str, Any]) -> dict[str, list[str]]:
    """Licences of what is in the set, as the recipe gives them, each with its sources; "" for sources without one."""
    by_license: dict[str, list[str]] = {}
    for name, source in manifest["sources"].items():
        if (
            set(source["removed_by"]) == {"excluded"}
            and not source["emitted"]["rows"] + source["records"]["validation"]
        ):
            continue  # its licence binds nobody who uses the set
        text = manifest["recipe"]["sources"].get(name, {}).get("license") or ""
        by_license.setdefault(text, []).append(name)
    return by_license


def hub_license(text: str | None) -> dict[str, str]:
    """A licence as the header of a card gives it."""
    if text is None:
        return {"license": "unknown"}
    is_known = text.casefold() in _HUB_LICENSES
    return {"license": text.casefold()} if is_known else {"license": "other", "license_name": text}


def render_card(manifest: dict[str, Any]) -> str:
    """The card of a set as Markdown with a YAML header."""
    header = yaml.safe_dump(_header(manifest), allow_unicode=True, sort_keys=False, width=1000)
    return f"---\n{header}---\n\n" + "\n".join(_body(manifest)) + "\n"


def _header(manifest: dict[str, Any]) -> dict[str, Any]:
    num_rows, given = manifest["packing"]["rows"], licenses(manifest)
    known = {text: text.casefold() if text.casefold() in _HUB_LICENSES else "other" for text in given if text}
    ids = sorted({*known.values(), *(["unknown"] if "" in given else [])})
    header: dict[str, Any] = {"pretty_name": manifest["name"], "license": ids[0] if len(ids) == 1 else ids}
    if others := sorted(text for text, hub in known.items() if hub == "other"):
        header["license_name"] = ", ".join(others)
    splits = [("train", not manifest.get("virtual")), ("validation", _held_out(manifest) > 0)]
    files = [{"split": name, "path": f"{name}/*.parquet"} for name, there in splits if there]
    header |= {
        "tags": ["datamix", manifest["kind"]],
        "task_categories": ["text-generation"],
        "size_categories": [next((text for limit, text in _SIZES if num_rows < limit), "n>10B")],
    }
    return header | ({"configs": [{"config_name": "default", "data_files": files}]} if files else {})


def _held_out(manifest: dict[str, Any]) -> int:
    return sum(s["records"]["validation"] for s in manifest["sources"].values())


def _body(manifest: dict[str, Any]) -> Iterator[str]:
    sources, unit, packing = manifest["sources"], manifest["mixture"]["unit"], manifest["packing"]
    total = {
        key: sum(s["emitted"][key] for s in sources.values()) for key in ("records", "tokens", "loss_tokens")
    }
    yield f"# {manifest['name']}\n"
    yield (
        f"A training set of kind `{manifest['kind']}`: {packing['rows']:,} rows, {total['tokens']:,} tokens, of which "
        f"{total['loss_tokens']:,} are trained. Built by datamix {manifest['datamix_version']} with the tokenizer in `tokenizer/`; "
        "`manifest.json` has every number here, `report.html` shows them.\n"
    )
    yield "## Sources\n"
    head = ["source", "group", "license", "records read", "records used", f"asked, % of {unit_words(unit)}", "reached", "tokens", "epochs"]  # fmt: skip
    yield f"| {' | '.join(head)} |\n|{'---|' * len(head)}"
    for name, source in sources.items():
        recipe, records, share = (
            manifest["recipe"]["sources"].get(name, {}),
            source["records"],
            source["share"],
        )
        cells = [name, recipe.get("group") or "", recipe.get("license") or "not given"]
        cells += [
            f"{records['read']:,}",
            f"{records['used']:,}",
            percent(share["asked"]),
            percent(share[unit]),
        ]
        cells += [f"{source['emitted']['tokens']:,}", f"{source['epochs']:.2f}"]
        yield "| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in cells) + " |"
    yield "\n## Processing\n"
    yield from (f"- {line}" for line in _processing(manifest))
    fates = {step: sum(s["records"][step] for s in sources.values()) for step in _STEPS}
    yield f"\nOf {fates['read']:,} records read: " + ", ".join(f"{fates[s]:,} {s}" for s in _STEPS[1:]) + "."
    yield "What is not used is listed with its reason in `rejects/` and `removed/`.\n"
    yield "## Load\n"
    yield "```python\nfrom datasets import load_dataset\n\nrows = load_dataset(\"OWNER/NAME\", split=\"train\")  # in training order: do not shuffle\n```\n"  # fmt: skip
    yield "`input_ids` and `labels` are final: nothing is tokenized or masked again." if manifest["kind"] in ("pretrain", "sft") else "Token ids and text are beside each other in each row."  # fmt: skip
    if manifest["content_sha256"]:
        yield f"`datamix verify` recounts the set from its files; its content is `{manifest['content_sha256']}`."


def _processing(manifest: dict[str, Any]) -> Iterator[str]:
    recipe, packing = manifest["recipe"], manifest["packing"]
    if recipe["clean"]:
        yield "Cleaned by " + ", ".join(f"`{step['name']}`" for step in recipe["clean"]) + "."
    if recipe["dedupe"]:
        near = recipe["dedupe"]["near"]
        exact = "exact duplicates" if recipe["dedupe"]["exact"] else ""
        similar = f"near duplicates (Jaccard ≥ {near['threshold']})" if near else ""
        yield f"Deduplicated {recipe['dedupe']['scope']} sources: {' and '.join(filter(None, (exact, similar)))}."
    if recipe["decontaminate"]:
        yield f"Decontaminated against {len(recipe['decontaminate']['against'])} evaluation sets by {recipe['decontaminate']['ngram']}-grams."
    if excluded := sum(s["removed_by"].get("excluded", 0) for s in manifest["sources"].values()):
        yield f"{excluded:,} records are excluded by name, file or licence."
    if held_out := _held_out(manifest):
        yield f"{held_out:,} records are held out in `validation/`."
    length = f", rows of at most {packing['max_length']:,} tokens" if packing["max_length"] else ""
    full = f", {percent(packing['fill'], 1)} full" if packing["fill"] is not None else ""
    yield f"Packing `{packing['strategy']}`{length}{full}; longer records: `{recipe['encode']['overlong']}`."
    stages = ", ".join(f"{s['name']} {percent(s['share'], 1)}" for s in manifest["mixture"]["stages"])
    yield f"Mixed in {unit_words(manifest['mixture']['unit'])} with seed {manifest['seed']}; stages: {stages}."
