"""The manifest against its own recipe: what the recipe asks is derived here by rules written a second time.

Nothing of the build's translation is used: weights, groups, stages, replay and sizes are worked out from the recipe's plain
values and from what the manifest says each source holds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from datamix.audit.available import gives_several, live_records
from datamix.audit.findings import Check, Findings, close, first_line
from datamix.core.errors import DatamixError
from datamix.core.hashing import digest
from datamix.recipe import Recipe

Weights = dict[str, float]
_NAMED = ("eos_token", "pad_token")


def check_claims(out: Path, manifest: dict[str, Any]) -> list[Check]:
    """The manifest against its recipe."""
    broken = _broken_recipe(manifest)
    return [broken] if broken else [check_recipe(out, manifest), check_weights(manifest)]


def _broken_recipe(manifest: dict[str, Any]) -> Check | None:
    """None where the manifest's recipe is one that a build resolved; else what is wrong with it."""
    try:
        resolved = Recipe.model_validate(manifest["recipe"]).published()
    except (ValueError, DatamixError) as error:
        return Check("recipe", False, f"the recipe in the manifest is none: {first_line(error)}")
    lacking = [key for key in resolved if key not in manifest["recipe"]]
    if lacking:
        return Check("recipe", False, f"the recipe in the manifest lacks {', '.join(lacking)}")
    return None


def check_recipe(out: Path, manifest: dict[str, Any]) -> Check:
    """Name, kind, seed, fingerprint, unit, packing, formats and named tokens are those of the recipe and the tokenizer."""
    found, recipe = Findings("recipe"), manifest["recipe"]
    found.expect("recipe_sha256", manifest["recipe_sha256"], digest(recipe))
    for key in ("name", "kind", "seed"):
        found.expect(key, manifest[key], recipe[key])
    found.expect("the mixture's unit", manifest["mixture"]["unit"], recipe["mix"]["unit"])
    found.expect("the packing strategy", manifest["packing"]["strategy"], recipe["encode"]["pack"])
    found.expect("packing's max_length", manifest["packing"]["max_length"], recipe["encode"]["max_length"])
    found.expect("tokenizer.name", manifest["tokenizer"]["name"], recipe["tokenizer"])
    written = {entry["format"] for entry in manifest["outputs"]}
    for name in recipe["write"]:
        name = name if isinstance(name, str) else name.get("name", next(iter(name)))
        if name not in written and manifest["packing"]["rows"]:
            found.add(f"the recipe writes {name}, and no file of it is listed")
    found.expect("virtual", manifest.get("virtual", False), not recipe["write"])
    known = set(recipe["sources"])
    unknown = [e["source"] for e in manifest["inputs"] if e["source"] not in manifest["sources"]]
    found.add(f"an input belongs to {unknown[0] if unknown else ''}, which is no source", len(unknown))
    missing = sorted(known - set(manifest["sources"]))
    found.add(f"source {missing[0] if missing else ''} of the recipe is not in the manifest", len(missing))
    _check_fates(found, manifest)
    for key, token_id in _named_ids(out / "tokenizer").items():
        found.expect(f"tokenizer.{key}_id", manifest["tokenizer"][f"{key}_id"], token_id)
    return found.check(
        "fingerprint, seed, unit, packing, formats and named tokens as the recipe and the tokenizer say"
    )


def _check_fates(found: Findings, manifest: dict[str, Any]) -> None:
    """Nothing was cleaned, removed or held out that the recipe has no step for; as many held out as it says."""
    recipe = manifest["recipe"]
    for name, source in manifest["sources"].items():
        removed, records = source.get("removed_by", {}), source["records"]
        for reasons, key in (
            (("exact", "near"), "dedupe"),
            (("contaminated",), "decontaminate"),
            (("leaked",), "validation"),
        ):
            count = sum(removed.get(reason, 0) for reason in reasons)
            if count and not recipe.get(key):
                found.add(
                    f"{name}: {count:,} records are {' or '.join(reasons)}, and the recipe has no {key}"
                )
        if records["cleaned"] and not recipe["clean"]:
            found.add(
                f"{name}: {records['cleaned']:,} records were cleaned away, and the recipe cleans nothing"
            )
        _check_held_out(found, manifest, name)


def _check_held_out(found: Findings, manifest: dict[str, Any], name: str) -> None:
    rule, source = manifest["recipe"]["validation"], manifest["sources"][name]
    held = source["records"]["validation"]
    if rule is None:
        found.expect(f"{name}: records of a validation that the recipe does not ask for", held, 0)
    if rule is None or rule["path"] or gives_several(manifest, source):
        return  # a file of its own, or siblings that stay together
    alive = held + source["removed_by"].get("leaked", 0) + live_records(source)
    asked = rule["records"] if rule["records"] is not None else round((rule["share"] or 0.0) * alive)
    expected = min(max(1, asked), alive - 1) if alive > 1 else 0
    if abs(held - expected) > 1:
        found.add(f"{name}: {held:,} records are held out, the recipe asks for {expected:,} of {alive:,}")


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
    found, mixture = Findings("mixture"), manifest["mixture"]
    recipe, names = manifest["recipe"], list(manifest["recipe"]["sources"])
    sizes = {n: float(manifest["sources"][n]["available"][mixture["unit"]]) for n in names}
    asked = _stages(recipe, sizes)
    reached = mixture["stages"]
    found.expect("the stages", [s["name"] for s in reached], [s["name"] for s in asked])
    if [s["name"] for s in reached] != [s["name"] for s in asked]:
        return found.check("")
    moved = (
        recipe["mix"]["on_short"] == "reweigh"
    )  # lowers short sources: only their order of size can be told
    for want, stage in zip(asked, reached, strict=True):
        for key, weights in (("weights", want["weights"]), ("ramp_from", want["ramp_from"])):
            if weights is None and stage.get(key):
                found.add(f"stage {stage['name']} ramps, the recipe has no ramp there")
            if weights is None or moved:
                continue
            total = math.fsum(weights.values())
            for name in names:
                share = weights[name] / total if total else 0.0
                has = float((stage.get(key) or {}).get(name, 0.0))
                if not close(has, share):
                    found.add(
                        f"stage {stage['name']}: {key} of {name} is {has:.6g}, the recipe gives {share:.6g}"
                    )
    total = math.fsum(s["size"] for s in reached)
    all_shares = all(stage["share"] is not None for stage in asked)
    slack = total * (1e-3 if len(asked) > 1 else 1e-6)  # shares as written may miss 1 by a rounding
    for want, stage in zip(asked, reached, strict=True):
        name, share = stage["name"], stage["size"] / total if total else 0.0
        found.expect(f"stage {name}: share", float(stage["share"]), share)
        if all_shares and abs(stage["size"] - want["share"] * total) > slack:
            found.add(f"stage {name} has {share:.4%} of the set, the recipe gives {want['share']:.4%}")
    _check_size(found, manifest, asked, sizes, total)
    note = " (short sources lowered by on_short: reweigh: weights not derived)" if moved else ""
    return found.check(f"stages, weights and size follow from the recipe{note}")


def _stages(recipe: dict[str, Any], sizes: Weights) -> list[dict[str, Any]]:
    """What each stage asks: name, share, size, weights by source, and those that a ramp begins with."""
    whole = _whole(recipe, sizes)
    if not recipe["mix"]["stages"]:
        return [{"name": "main", "share": 1.0, "size": None, "weights": whole, "ramp_from": None}]
    stages: list[dict[str, Any]] = []
    for number, stage in enumerate(recipe["mix"]["stages"]):
        weights = whole if stage["weights"] is None else _resolved(recipe, stage["weights"], sizes)
        ramps = stage.get("ramp") is not None and bool(stages)
        stages.append(
            {
                "name": stage["name"] or f"stage-{number + 1}",
                "share": stage["share"],
                "size": stage["size"],
                "weights": weights,
                "ramp_from": stages[-1]["weights"] if ramps else None,
            }
        )
    return stages


def _whole(recipe: dict[str, Any], sizes: Weights) -> Weights:
    """One weight a source: replay, a rule, given weights and groups, or proportional."""
    mix, sources = recipe["mix"], recipe["sources"]
    if mix["replay"] is not None:
        of, share = mix["replay"]["of"], mix["replay"]["share"]
        old = _members(recipe, of) if of in recipe["groups"] else [of]
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
        return _unimax(caps, budget)
    return _resolved(recipe, given, sizes) if given and rule is None else dict(sizes)


def _unimax(caps: Weights, budget: float) -> Weights:
    """An equal share for all but nobody above its cap: the smallest caps are settled first (Chung et al. 2023)."""
    left, amounts = min(budget, math.fsum(caps.values())), dict.fromkeys(caps, 0.0)
    for rank, name in enumerate(sorted(caps, key=lambda n: caps[n])):
        amounts[name] = min(caps[name], left / (len(caps) - rank))
        left -= amounts[name]
    return amounts


def _members(recipe: dict[str, Any], group: str) -> list[str]:
    return [n for n, s in recipe["sources"].items() if s["group"] == group]


def _resolved(recipe: dict[str, Any], weights: Weights, sizes: Weights) -> Weights:
    """Weights of sources and groups as one weight a source; a group's own is shared by size or by its sources' weights."""
    result = dict.fromkeys(sizes, 0.0)
    for name, weight in weights.items():
        if name in recipe["groups"]:
            members = _members(recipe, name)
            by_size = recipe["groups"][name]["within"] == "proportional"
            parts = {n: sizes[n] if by_size else recipe["sources"][n]["weight"] for n in members}
            for member, part in parts.items():
                result[member] = weight * part / math.fsum(parts.values())
        elif name in result and not any(
            name in _members(recipe, g) and g in weights for g in recipe["groups"]
        ):
            result[name] = weight
    return result


def _check_size(
    found: Findings, manifest: dict[str, Any], asked: list[dict[str, Any]], sizes: Weights, total: float
) -> None:
    """The planned size and what binds it, where caps are whole epochs and sources do not come and go."""
    mix, sources = manifest["recipe"]["mix"], manifest["recipe"]["sources"]
    size, binding = mix["size"], manifest["mixture"]["binding"]
    if isinstance(size, int) and mix["on_short"] in ("error", "reweigh"):
        if abs(total - size) > 0.5:
            found.add(f"the stages add up to {total:,.0f}, the recipe's size is {size:,}")
        if binding is not None:
            found.add(f"binding is {binding}, though the size was given and met")
    steady = all(_present(stage) == _present(asked[0]) and stage["size"] is None for stage in asked)
    whole = all(float(s["max_epochs"]).is_integer() for s in sources.values())
    if not (
        steady and whole and size is None and mix["on_short"] != "reweigh" and manifest["sample"] is None
    ):
        return
    shares = {
        n: math.fsum(stage["share"] * _mean_share(stage, n) for stage in asked) for n in _present(asked[0])
    }
    limits = {n: sizes[n] * sources[n]["max_epochs"] / share for n, share in shares.items()}
    least = min(limits.values())
    if _is_scaled(manifest):
        return
    if abs(total - math.floor(least + 1e-6)) > 1:
        found.add(f"the set is planned for {total:,.0f}, the caps of the recipe allow {math.floor(least):,}")
    if binding not in [n for n in limits if limits[n] <= least * (1 + 1e-6)]:
        found.add(f"binding is {binding}, the caps bind {min(limits, key=limits.__getitem__)}")


def _present(stage: dict[str, Any]) -> list[str]:
    """Sources that take part in a stage."""
    first = stage["ramp_from"] or stage["weights"]
    return [name for name, weight in stage["weights"].items() if weight > 0 or first[name] > 0]


def _mean_share(stage: dict[str, Any], name: str) -> float:
    """A source's share of a stage, over a ramp the mean of its ends."""
    ends = [stage["ramp_from"] or stage["weights"], stage["weights"]]
    return math.fsum(weights[name] / math.fsum(weights.values()) for weights in ends) / 2


def _is_scaled(manifest: dict[str, Any]) -> bool:
    """Whether a sweep scaled the sources down: it says so in no field, but rows then are fewer than a pass holds."""
    stages = manifest["recipe"]["mix"]["stages"]
    return bool(stages) and stages[0]["name"] == "main" and not manifest["recipe"]["write"]
