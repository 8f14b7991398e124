"""Numbers that no build can use are the recipe's mistake, at its line; sizes in messages work when followed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from small import recipe

import datamix
from datamix import Recipe
from datamix.core.errors import RecipeError


def changed(folder: Path, key: str, value: Any) -> Path:
    """The small recipe, one key a line, with one of them changed."""
    path = recipe(folder, write=["parquet"])
    whole = json.loads(path.read_text())
    *parents, last = key.split(".")
    place = whole
    for part in parents:
        place = place.setdefault(part, {})
    place[last] = value
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def failure(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        datamix.build(path, path.parent / "set", workers=1)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("sources.medical.max_epochs", 0.001, "allows none of the .* rows of medical; it takes at least"),
        ("sources.medical.max_epochs", 1e9, "less than or equal to 1000000"),
        ("sources.medical.weight", 1e308, "less than or equal to 1000000000000"),
        ("sources.medical.weight", 5e-324, "a weight is at least 1e-12"),
        ("sources.medical.encoding", "zz9", "'zz9', which is no encoding of text"),
        ("sources.medical.encoding", "hex", "'hex', which is no encoding of text"),
        ("sources.medical.encoding", "a\0b", "no encoding of text"),
        ("encode.max_length", 2**31, "less than 2147483648"),
        ("encode.max_length", 2**31 - 1, "best_fit keeps a number a length, for at most 134,217,728"),
        ("clean", [{"length": {"min_chars": 10**20}}], r"min_chars: should be below .*2\^63"),
        ("clean", [{"length": {"max_chars": 2**63}}], r"max_chars: should be below .*2\^63"),
        ("mix.size", {"epochs": {"medical": 1e30}}, "less than or equal to 1000000"),
        ("mix.weights", {"temperature": 1e300}, "less than or equal to 1000000000000"),
    ],
)
def test_a_number_that_no_build_can_use_is_named_with_its_line(
    tmp_path: Path, key: str, value: Any, words: str
) -> None:
    path = changed(tmp_path, key, value)
    said = failure(path)
    assert re.search(words, said), said
    line = int(re.search(r"recipe\.yaml, line (\d+): ", said)[1])  # type: ignore[index]
    assert key.split(".")[-1] in "".join(path.read_text().splitlines()[max(0, line - 3) : line + 3])


def test_a_seed_of_five_thousand_digits_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"name: x\nkind: sft\nseed: {'9' * 5000}\n")
    with pytest.raises(RecipeError, match=r"r\.yaml, line 3: seed: is a number of 5,000 digits"):
        Recipe.read(path)


@pytest.mark.parametrize("value", [None, "x", 5, {}, [5], [{"id": "a"}], [{"content": "a"}]])
def test_added_tokens_that_are_no_tokens_are_the_tokenizers_fault(tmp_path: Path, value: Any) -> None:
    path = recipe(tmp_path)
    spec = json.loads((tmp_path / "tokenizer/tokenizer.json").read_text())
    (tmp_path / "tokenizer/tokenizer.json").write_text(json.dumps(spec | {"added_tokens": value}))
    assert "`added_tokens` is no list of tokens" in failure(path)


def test_the_least_max_epochs_in_the_message_works(tmp_path: Path) -> None:
    said = failure(changed(tmp_path, "sources.medical.max_epochs", 0.001))
    least = float(re.search(r"at least ([0-9.]+)\.$", said)[1])  # type: ignore[index]
    recipe_of_it = Recipe.read(changed(tmp_path, "sources.medical.max_epochs", least))
    assert (
        datamix.build(recipe_of_it, tmp_path / "set", workers=1)["sources"]["medical"]["emitted"]["rows"] == 1
    )


def test_a_size_too_small_for_a_source_names_the_smallest_that_works(tmp_path: Path) -> None:
    path = changed(tmp_path, "mix.size", 10)
    said = failure(path)
    size = int(re.search(r"smallest size that works is (\d+);", said)[1])  # type: ignore[index]
    assert str(size) in failure(changed(tmp_path, "mix.size", size - 1))
    made = datamix.build(changed(tmp_path, "mix.size", size), tmp_path / "set", workers=1)
    assert all(source["emitted"]["rows"] for source in made["sources"].values())


def test_a_stage_that_gets_no_row_is_an_error_with_a_share_that_works(tmp_path: Path) -> None:
    def stages(share: float) -> Path:
        shares = [{"name": "a", "share": 1 - share}, {"name": "b", "share": share}]
        return changed(tmp_path, "mix.stages", shares)

    said = failure(stages(1e-6))
    assert "mix.stages.1: gets no row" in said
    share = float(re.search(r"a share of ([0-9.e-]+) has one", said)[1])  # type: ignore[index]
    made = datamix.build(stages(share), tmp_path / "set", workers=1)
    assert made["mixture"]["stages"][1]["rows"] > 0
