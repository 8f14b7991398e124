"""The report page and the card of a folder that ``datamix synth`` wrote: functions of its manifest and a few records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from datamix.reporting.card import hub_license
from datamix.reporting.charts import BarRow, Bars, Cell, Section, Table
from datamix.reporting.page import render_page
from datamix.reporting.verdicts import Verdict
from datamix.reporting.words import Words, percent

_SHOWN = 10
_SHOWN_CHARS = 1500


def synth_summary(manifest: dict[str, Any], out: Path) -> str:
    """The closing lines of the command."""
    counts, spent = manifest["records"], manifest["spent"]
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    price = f", {spent['money']:.2f}" if spent["money"] is not None else ""
    lines = [f"{counts['written']:,} records in {out}/records, of {counts['asked']:,} asked for."]
    if manifest["removed_by"]:
        lines.append(
            "Removed: " + ", ".join(f"{name} {count:,}" for name, count in manifest["removed_by"].items())
        )
    if gate := manifest.get("gate"):
        lines.append("Rewrites: " + ", ".join(f"{name} {count:,}" for name, count in gate.items()))
    lines.append(f"Spent over all runs: {spent['requests']:,} requests, {tokens:,} tokens{price}.")
    if not manifest["complete"]:
        lines.append(
            f"Not complete: {manifest['why'] or 'the sources give no more.'} Run the same command again to go on."
        )
    lines.append(f"Page: {out}/report.html. As a source of a recipe: path: {out}/")
    return "\n".join(lines)


def render_synth_report(manifest: dict[str, Any], records: Sequence[dict[str, Any]]) -> str:
    """One page that opens offline."""
    say, counts, spent = Words(), manifest["records"], manifest["spent"]
    facts = [
        ("synth", manifest["synth"]),
        ("records", f"{counts['written']:,}"),
        ("model", manifest["model"]["name"]),
        ("license", manifest["model"]["license"] or "not given"),
        ("requests", f"{spent['requests']:,}"),
        ("tokens", f"{spent['prompt_tokens'] + spent['completion_tokens']:,}"),
        ("price", f"{spent['money']:.2f}" if spent["money"] is not None else ""),
        ("seed", str(manifest["seed"])),
    ]
    sections = [_removed_section(manifest), _cost_section(manifest), _model_section(manifest)]
    if records:
        sections.append(_record_section(records))
    footer = [f"made by datamix {manifest['datamix_version']}; every answer is stored in answers/."]
    return render_page(manifest["name"], facts, _opening(manifest), sections, footer, say)


def _opening(manifest: dict[str, Any]) -> list[Verdict]:
    counts, lines = manifest["records"], []
    asked = counts["asked"]
    if manifest["complete"]:
        lines.append(
            Verdict("good", f"{counts['written']:,} records, of {asked:,} that the model was asked for.")
        )
    else:
        lines.append(
            Verdict(
                "look",
                f"Not complete: {counts['written']:,} records, of {asked:,} asked for. {manifest['why']}",
            )
        )
    if removed := counts["removed"]:
        lines.append(
            Verdict(
                "good",
                f"{removed:,} were removed ({percent(removed / max(1, asked), 1)}), each with its reason.",
            )
        )
    if gate := manifest.get("gate"):
        total = sum(gate.values())
        share = percent(gate.get("taken", 0) / max(1, total), 1)
        lines.append(
            Verdict(
                "good", f"{share} of {total:,} rewrites passed the gate; elsewhere the original answer stays."
            )
        )
    return lines + [Verdict("look", note) for note in manifest["host"]]


def _removed_section(manifest: dict[str, Any]) -> Section:
    asked = max(1, manifest["records"]["asked"])
    reasons = {"written": manifest["records"]["written"], **manifest["removed_by"]}
    rows = [
        BarRow(name, [Cell(f"{count:,}", [(1 if name == "written" else 4, 100 * count / asked)])])
        for name, count in sorted(reasons.items(), key=lambda pair: (pair[0] != "written", -pair[1], pair[0]))
    ]  # fmt: skip
    tables = []
    if gate := manifest.get("gate"):
        tables = [Table(["gate", "answers"], [[name, f"{count:,}"] for name, count in gate.items()])]
    return Section(
        "records", "Records", "What was asked for: written, or removed and why. Texts are in removed/.",
        bars=[Bars("Records", ["records"], rows)], tables=tables,
    )  # fmt: skip


def _cost_section(manifest: dict[str, Any]) -> Section:
    spent = manifest["spent"]
    rows = [
        ["requests", f"{spent['requests']:,}"],
        ["of them without a known answer", f"{spent['unanswered']:,}"],
        ["prompt tokens", f"{spent['prompt_tokens']:,}"],
        ["completion tokens", f"{spent['completion_tokens']:,}"],
    ]
    if spent["money"] is not None:
        rows.append(["price", f"{spent['money']:.4f}"])
    lead = "Over all runs of this folder. A request without a known answer counts at the most that it may have cost."
    return Section("cost", "Cost", lead, tables=[Table(["", ""], rows)])


def _model_section(manifest: dict[str, Any]) -> Section:
    model = manifest["model"]
    rows = [["model", model["name"]], ["license", model["license"] or "not given"]]
    if model["chat_template_sha256"]:
        rows.append(["chat template sha256", model["chat_template_sha256"][:16]])
    for name, tokens in manifest["recipe"]["sampling"].items():
        words = f"temperature {tokens['temperature']:g}, top_p {tokens['top_p']:g}, at most {tokens['max_tokens']:,} tokens"
        rows.append([f"sampling of {name}", words])
    rows += [["system text", system["text"]] for system in manifest["recipe"]["systems"]]
    if manifest["prompt"]:
        rows.append(["beginning of the prompt", manifest["prompt"]])
    return Section(
        "model",
        "Model and prompts",
        "Where the texts come from.",
        tables=[Table(["", ""], rows, words=(0, 1))],
    )


def _record_section(records: Sequence[dict[str, Any]]) -> Section:
    rows = []
    for record in records[:: max(1, len(records) // _SHOWN)][:_SHOWN]:
        turns = record.get("messages") or [*record["prompt"], *record["chosen"]]
        text = "\n\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in turns)
        rows.append(
            [record["meta"]["id"], text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + " ..."]
        )
    return Section("rows", "A few records", "", tables=[Table(["id", "text"], rows, words=(0, 1))])


def render_synth_card(manifest: dict[str, Any]) -> str:
    """``README.md`` of the folder, with the header that the Hub reads."""
    counts, model, spent = manifest["records"], manifest["model"], manifest["spent"]
    header: dict[str, Any] = {"pretty_name": manifest["name"], **hub_license(model["license"])}
    header |= {"tags": ["datamix", "synthetic", manifest["synth"]], "task_categories": ["text-generation"]}
    header["configs"] = [
        {"config_name": "default", "data_files": [{"split": "train", "path": "records/*.jsonl"}]}
    ]
    lines = [
        "---", yaml.safe_dump(header, allow_unicode=True, sort_keys=False, width=1000).rstrip(), "---", "",
        f"# {manifest['name']}", "",
        f"{counts['written']:,} records that `{model['name']}` wrote (`synth: {manifest['synth']}`), licence of the model's output: "
        f"{model['license'] or 'not given'}. Made by datamix {manifest['datamix_version']} with {spent['requests']:,} requests and "
        f"{spent['prompt_tokens'] + spent['completion_tokens']:,} tokens. The text is synthetic: it may be wrong.", "",
        "| removed because of | records |", "|---|---|",
        *(f"| {name} | {count:,} |" for name, count in manifest["removed_by"].items()), "",
        "`records/*.jsonl` holds the records, `removed/` what the filters took away, `answers/` every stored answer, `manifest.json` "
        "every number.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
