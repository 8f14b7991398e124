"""The manifest against its own recipe: what the recipe asks is derived here by rules written a second time.

Nothing of the build's translation is used: weights, groups, stages, replay and sizes are worked out from the recipe's plain
values and from what the manifest says each source holds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.audit.fates import RECORD_FATES, Inputs, gives_several, live_records
from datamix.audit.findings import Check, Findings, close, first_line
from datamix.core.errors import DatamixError
from datamix.core.hashing import digest
from datamix.recipe import Recipe

Weights = dict[str, float]
_NAMED = ("eos_token", "pad_token")
_MAIN = {"name": "main", "share": 1.0, "size": None, "weights": None}  # of a recipe without stages


def check_claims(out: Path, manifest: dict[str, Any]) -> list[Check]:
    """The manifest against its recipe; that alone is reported where it is none that a build resolved."""
    try:
        resolved = Recipe.model_validate(manifest["recipe"]).published()
    except (ValueError, DatamixError) as error:
        return [Check("recipe", False, f"the recipe in the manifest is none: {first_line(error)}")]
    lacking = [key for key in resolved if key not in manifest["recipe"]]
    if lacking:
        return [Check("recipe", False, f"the recipe in the manifest lacks {', '.join(lacking)}")]
    return [check_recipe(out, manifest), check_weights(manifest)]


def check_recipe(out: Path, manifest: dict[str, Any]) -> Check:
    """Name, kind, seed, fingerprint, unit, packing, formats and named tokens are those of the recipe and the tokenizer."""
    findings, recipe = Findings("recipe"), manifest["recipe"]
    sources, packing, tokenizer = manifest["sources"], manifest["packing"], manifest["tokenizer"]
    findings.expect("recipe_sha256", manifest["recipe_sha256"], digest(recipe))
    for key in ("name", "kind", "seed"):
        findings.expect(key, manifest[key], recipe[key])
    findings.expect("the mixture's unit", manifest["mixture"]["unit"], recipe["mix"]["unit"])
    findings.expect("the packing strategy", packing["strategy"], recipe["encode"]["pack"])
    findings.expect("packing's max_length", packing["max_length"], recipe["encode"]["max_length"])
    findings.expect("tokenizer.name", tokenizer["name"], recipe["tokenizer"])
    written = {entry["format"] for entry in manifest["outputs"]}
    for name in recipe["write"]:
        name = name if isinstance(name, str) else name.get("name", next(iter(name)))
        if name not in written and packing["rows"]:
            findings.add(f"the recipe writes {name}, and no file of it is listed")
    findings.expect("virtual", manifest.get("virtual", False), not recipe["write"])
    for source in (e["source"] for e in manifest["inputs"] if e["source"] not in sources):
        findings.add(f"an input belongs to {source}, which is no source")
    for source in sorted(set(recipe["sources"]) - set(sources)):
        findings.add(f"source {source} of the recipe is not in the manifest")
    allowed = [text.casefold() for text in (recipe.get("licenses") or {}).get("allow", [])]
    for name, source in recipe["sources"].items() if allowed else ():
        if (source.get("license") or "").casefold() not in allowed:
            findings.add(f"source {name} has a licence that licenses.allow does not allow")
    for name, source in sources.items():
        _check_fates(findings, recipe, name, source, gives_several(manifest, source))
    for key, token_id in _named_ids(out / "tokenizer").items():
        findings.expect(f"tokenizer.{key}_id", tokenizer[f"{key}_id"], token_id)
    return findings.check(
        "fingerprint, seed, unit, packing, formats and named tokens as the recipe and the tokenizer say"
    )


def _check_fates(
    findings: Findings, recipe: dict[str, Any], name: str, source: dict[str, Any], several: bool
) -> None:
    """Nothing was cleaned, removed or held out that the recipe has no step for; as many held out as it says."""
    removed, records, rule = source.get("removed_by", {}), source["records"], recipe["validation"]
    for reasons, key in (
        (("exact", "near"), "dedupe"),
        (("contaminated",), "decontaminate"),
        (("leaked",), "validation"),
        (("excluded",), "exclude"),
    ):
        count = sum(removed.get(reason, 0) for reason in reasons)
        if count and not recipe.get(key):
            text = f"{name}: {count:,} records are {' or '.join(reasons)}, and the recipe has no {key}"
            findings.add(text)
    keep = recipe["sources"].get(name, {}).get("keep")
    if records["cleaned"] and not recipe["clean"] and not keep:
        count = records["cleaned"]
        findings.add(f"{name}: {count:,} records were cleaned away, and the recipe cleans nothing")
    held_out = records["validation"]
    if rule is None:
        what = f"{name}: records of a validation that the recipe does not ask for"
        findings.expect(what, held_out, 0)
    elif not (
        rule["path"] or rule.get("group_by") or several
    ):  # no file of its own, nor records that stay together
        live = held_out + removed.get("leaked", 0) + live_records(source)
        asked = rule["records"] if rule["records"] is not None else round((rule["share"] or 0.0) * live)
        expected = min(max(1, asked), live - 1) if live > 1 else 0
        if abs(held_out - expected) > 1:
            text = f"{held_out:,} records are held out, the recipe asks for {expected:,} of {live:,}"
            findings.add(f"{name}: {text}")


def check_excluded(manifest: dict[str, Any], inputs: Inputs, fate: NDArray[np.uint8]) -> Check:
    """No record that ``recipe.exclude`` names is in train/ or validation/; ``fate`` is what the files say of each record."""
    findings, recipe = Findings("excluded"), manifest["recipe"]
    excluded = np.zeros(len(fate), bool)
    numbers: dict[tuple[str, str], list[int]] = {}  # of input files, by what an entry may name
    for number, file in enumerate(manifest["inputs"]):
        license_ = recipe["sources"].get(file["source"], {}).get("license")
        names = [("file", file["path"]), ("sha256", file["sha256"])]
        names += [("license", license_.casefold())] if license_ else []
        for name in names:
            numbers.setdefault(name, []).append(number)
    for entry in recipe["exclude"]:
        key = next(name for name in ("file", "sha256", "license") if name in entry)
        value = entry[key].casefold() if key == "license" else entry[key]
        for number in numbers.get((key, value), ()):
            start, stop = inputs.base[number], inputs.base[number + 1]
            if "record" in entry:
                is_of_source = entry["source"] == manifest["inputs"][number]["source"]
                start = start + entry["record"] if is_of_source else stop
                stop = min(stop, start + 1)
            excluded[start:stop] = True
    emitted = excluded & np.isin(fate, [RECORD_FATES.index(name) for name in ("used", "validation")])
    text = "is excluded by the recipe and is in the set"
    findings.add_first(np.flatnonzero(emitted), lambda number: f"{inputs.record(number)} {text}")
    left = excluded & np.isin(fate, [RECORD_FATES.index(name) for name in ("dropped", "unused")])
    text = "is excluded by the recipe, and removed/ says otherwise"
    findings.add_first(np.flatnonzero(left), lambda number: f"{inputs.record(number)} {text}")
    num, count = int(excluded.sum()), len(recipe["exclude"])
    return findings.check(f"{num:,} records of {count:,} entries: none of them in train/ or validation/")


def _named_ids(folder: Path) -> dict[str, int | None]:
    """Ids of EOS and PAD by the files beside the rows; none where these cannot be read, which another check reports."""
    try:
        spec = json.loads((folder / "tokenizer.json").read_bytes())
        vocab = spec["model"].get("vocab") or {}
        ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: n for n, entry in enumerate(vocab)}
        ids |= {token["content"]: token["id"] for token in spec.get("added_tokens") or []}
        named: dict[str, int | None] = dict.fromkeys(_NAMED)
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            values = json.loads((folder / file).read_bytes()) if (folder / file).is_file() else {}
            for key in _NAMED:
                token = values.get(key)
                text = token.get("content") if isinstance(token, dict) else token
                if isinstance(text, str):
                    named[key] = ids.get(text)
        return named
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def check_weights(manifest: dict[str, Any]) -> Check:
    """Stages, weights and sizes of the mixture follow from the recipe and from what the sources hold."""
    findings, mixture, recipe = Findings("mixture"), manifest["mixture"], manifest["recipe"]
    sizes = {n: float(manifest["sources"][n]["available"][mixture["unit"]]) for n in recipe["sources"]}
    gone = [n for n in sizes if not sizes[n] and manifest["sources"][n]["removed_by"].get("excluded")]
    sizes = {n: size for n, size in sizes.items() if n not in gone}
    whole, reached = _whole(recipe, sizes), mixture["stages"]
    asked: list[
        dict[str, Any]
    ] = []  # of each stage: name, share, size, weights, and those that a ramp begins with
    for number, stage in enumerate(recipe["mix"]["stages"] or [_MAIN]):
        weights = whole if stage["weights"] is None else _resolved(recipe, stage["weights"], sizes)
        weights = weights | dict.fromkeys(gone, 0.0)
        start = asked[-1]["weights"] if stage.get("ramp") is not None and asked else None
        name = stage["name"] or f"stage-{number + 1}"
        asked.append(stage | {"name": name, "weights": weights, "ramp_from": start})
    findings.expect("the stages", [s["name"] for s in reached], [s["name"] for s in asked])
    if findings.num:
        return findings.check()
    # `reweigh` lowers short sources: only the order of their sizes can be derived.
    reweighs = recipe["mix"]["on_short"] == "reweigh"
    total = math.fsum(s["size"] for s in reached)
    all_shares = all(stage["share"] is not None for stage in asked)
    slack = total * (1e-3 if len(asked) > 1 else 1e-6)  # shares as written may miss 1 by a rounding
    for target, stage in zip(asked, reached, strict=True):
        name = f"stage {stage['name']}"
        for key, weights in (("weights", target["weights"]), ("ramp_from", target["ramp_from"])):
            if weights is None and stage.get(key):
                findings.add(f"{name} ramps, the recipe has no ramp there")
            for source, weight in (weights or {}).items() if not reweighs else ():
                share = weight / (math.fsum(weights.values()) or 1.0)
                has = float((stage.get(key) or {}).get(source, 0.0))
                if not close(has, share):
                    findings.add(f"{name}: {key} of {source} is {has:.6g}, the recipe gives {share:.6g}")
        share = stage["size"] / total if total else 0.0
        findings.expect(f"{name}: share", float(stage["share"]), share)
        if all_shares and abs(stage["size"] - target["share"] * total) > slack:
            findings.add(f"{name} has {share:.4%} of the set, the recipe gives {target['share']:.4%}")
    _check_size(findings, manifest, asked, sizes, total)
    note = " (short sources lowered by on_short: reweigh: weights not derived)" if reweighs else ""
    return findings.check(f"stages, weights and size follow from the recipe{note}")


def _whole(recipe: dict[str, Any], sizes: Weights) -> Weights:
    """One weight a source that is left: replay, a rule, given weights and groups, or proportional."""
    mix, sources = recipe["mix"], {n: s for n, s in recipe["sources"].items() if n in sizes}
    if mix["replay"] is not None:
        of, share = mix["replay"]["of"], mix["replay"]["share"]
        old = _members(recipe, of, sizes) if of in recipe["groups"] else [of]
        new = math.fsum(sizes[n] for n in sizes if n not in old)
        inner = _resolved(recipe, {of: 1.0}, sizes)
        return {n: share * inner[n] if n in old else (1 - share) * sizes[n] / new for n in sizes}
    given = {n: s["weight"] for n, s in sources.items() if s["weight"] is not None}
    given |= {n: g["weight"] for n, g in recipe["groups"].items() if g["weight"] is not None}
    rule = mix["weights"]
    if isinstance(rule, dict):
        return {n: (size / max(sizes.values())) ** (1 / rule["temperature"]) for n, size in sizes.items()}
    if rule == "unimax":
        caps = {n: size * sources[n]["max_epochs"] for n, size in sizes.items()}
        budget = float(mix["size"]) if isinstance(mix["size"], int) else math.fsum(sizes.values())
        left, amounts = min(budget, math.fsum(caps.values())), {}
        # An equal share for all but none above its cap: the smallest caps are settled first (Chung et al. 2023).
        for rank, name in enumerate(sorted(caps, key=lambda n: caps[n])):
            amounts[name] = min(caps[name], left / (len(caps) - rank))
            left -= amounts[name]
        return amounts
    return _resolved(recipe, given, sizes) if given and rule is None else dict(sizes)


def _members(recipe: dict[str, Any], group: str, sizes: Weights) -> list[str]:
    return [n for n, s in recipe["sources"].items() if s["group"] == group and n in sizes]


def _resolved(recipe: dict[str, Any], weights: Weights, sizes: Weights) -> Weights:
    """Weights of sources and groups as one weight a source; a group's weight is shared by size or by its sources' weights."""
    result = dict.fromkeys(sizes, 0.0)
    for name, weight in weights.items():
        if name in recipe["groups"]:
            members = _members(recipe, name, sizes)
            by_size = recipe["groups"][name]["within"] == "proportional"
            parts = {n: sizes[n] if by_size else recipe["sources"][n]["weight"] for n in members}
            for member, part in parts.items():
                result[member] = weight * part / math.fsum(parts.values())
        elif name in result and not any(
            name in _members(recipe, g, sizes) and g in weights for g in recipe["groups"]
        ):
            result[name] = weight
    return result


def _check_size(
    findings: Findings, manifest: dict[str, Any], asked: list[dict[str, Any]], sizes: Weights, total: float
) -> None:
    """The planned size and what binds it, where caps are whole epochs and sources do not come and go."""
    mix, sources = manifest["recipe"]["mix"], manifest["recipe"]["sources"]
    size, binding = mix["size"], manifest["mixture"]["binding"]
    must_shrink = manifest["recipe"].get("exclude") and mix["on_short"] == "error"
    if isinstance(size, int) and mix["on_short"] in ("error", "reweigh") and not must_shrink:
        if abs(total - size) > 0.5:
            findings.add(f"the stages add up to {total:,.0f}, the recipe's size is {size:,}")
        if binding is not None:
            findings.add(f"binding is {binding}, though the size was given and met")
    present = [
        [
            n
            for n, weight in stage["weights"].items()
            if weight > 0 or (stage["ramp_from"] or {}).get(n, 0) > 0
        ]
        for stage in asked
    ]
    steady = all(names == present[0] for names in present) and all(stage["size"] is None for stage in asked)
    whole = all(float(s["max_epochs"]).is_integer() for s in sources.values())
    # A sweep that scaled the sources down says so in no field, but names its stage and writes nothing.
    scaled = bool(mix["stages"]) and mix["stages"][0]["name"] == "main" and not manifest["recipe"]["write"]
    derivable = size is None and mix["on_short"] != "reweigh" and manifest["sample"] is None
    if not (steady and whole and derivable) or scaled:
        return
    limits: Weights = {}
    for name in present[0]:
        share = 0.0
        for stage in asked:  # over a ramp the mean of its ends
            for weights in (stage["ramp_from"] or stage["weights"], stage["weights"]):
                share += stage["share"] * weights[name] / math.fsum(weights.values()) / 2
        limits[name] = sizes[name] * sources[name]["max_epochs"] / share
    least = min(limits.values())
    if abs(total - math.floor(least + 1e-6)) > 1:
        allowed = f"the caps of the recipe allow {math.floor(least):,}"
        findings.add(f"the set is planned for {total:,.0f}, {allowed}")
    if binding not in [n for n in limits if limits[n] <= least * (1 + 1e-6)]:
        findings.add(f"binding is {binding}, the caps bind {min(limits, key=limits.__getitem__)}")
