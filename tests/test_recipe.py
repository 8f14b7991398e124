"""Recipes: every problem at once, each with its key, its line and the nearest right name."""

import itertools
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from datamix.core.errors import RecipeError
from datamix.recipe import Recipe, strict_yaml
from datamix.recipe.mixture import Mix
from datamix.recipe.parts import Decontaminate, Dedupe, Encode, Source, Validation
from datamix.recipe.schemas import recipe_schema, schema_text

GOOD = """\
name: x
kind: sft
tokenizer: t
sources:
  a: {path: a.jsonl}
encode: {max_length: 128}
"""


def read(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return Recipe.read(path, overrides)


def error(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text, *overrides)
    return str(caught.value)


def test_defaults_follow_the_kind(tmp_path: Path) -> None:
    sft = read(tmp_path, GOOD)
    assert (sft.mix.unit, sft.encode.pack, sft.encode.overlong) == ("loss_tokens", "none", "drop_turns")
    pretrain = read(tmp_path, GOOD.replace("sft", "pretrain"))
    assert (pretrain.mix.unit, pretrain.encode.pack, pretrain.encode.overlong) == (
        "tokens",
        "best_fit",
        "split",
    )
    prompt = read(tmp_path, GOOD.replace("sft", "prompt").replace("encode: {max_length: 128}", ""))
    assert (prompt.mix.unit, prompt.encode.max_length) == ("records", None)


def test_every_problem_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = "name: x\nkind: dpo\ntokenizer: t\ncutoff_len: 5\nsources:\n  a: {path: a.jsonl, wieght: 3}\nmix:\n  unit: token\n"
    told = error(tmp_path, text).splitlines()
    assert any("line 2: kind" in t and "preference" in t for t in told)
    assert any("line 4: cutoff_len" in t and "encode.max_length" in t for t in told)
    assert any("line 6: sources.a.wieght" in t and "did you mean weight?" in t for t in told)
    assert any("line 8: mix.unit" in t and "tokens" in t for t in told)


@pytest.mark.parametrize("name", ["int", "Near", "Epochs", "Temperature", "path"])
def test_a_source_named_like_a_type_keeps_its_name_in_errors(name: str, tmp_path: Path) -> None:
    text = GOOD.replace("a: {path: a.jsonl}", f"{name}: {{path: a.jsonl, wieght: 1, max_epochs: -1, zz: 1}}")
    lines = error(tmp_path, text).splitlines()
    assert any(f"line 5: sources.{name}.wieght" in t and "did you mean weight?" in t for t in lines)
    assert any(f"line 5: sources.{name}.max_epochs: should be greater than 0" in t for t in lines)
    assert any(f"line 5: sources.{name}.zz" in t and "the keys here are path, format" in t for t in lines)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("mix: {size: {epochs: {Epochs: -1}}}", "mix.size.epochs.Epochs: should be greater than 0"),
        ("mix: {size: {epoch: {a: 1}}}", "mix.size.epoch: is not a key here; did you mean epochs?"),
        ("mix: {weights: {temperature: -1}}", "mix.weights.temperature: should be greater than 0"),
        ("dedupe: {near: {threshold: 4}}", "dedupe.near.threshold: should be less than or equal to 1"),
        ("groups: {'a[b]': {weight: 1}}", "groups.a[b]: is 'a[b]'; a name takes letters"),
        ("groups: {'[key]': {weight: 1, q: 1}}", "groups.[key].q: is not a key here"),
        ("decontaminate: {against: [{path: x, '[key]': 1}]}", "decontaminate.against.0.[key]: is not a key"),
    ],
)
def test_a_key_in_an_error_is_what_the_recipe_says(part: str, key: str, tmp_path: Path) -> None:
    assert key in error(tmp_path, GOOD + part + "\n")


@pytest.mark.parametrize(
    ("norm", "told"),
    [
        ("{trainer: token, wanted: exampel}", "loss_norm.wanted: is 'exampel'"),
        ("{trainer: token, wanted: token}", "weighs nothing"),
        ("toekn", "Did you mean token?"),
    ],
)
def test_a_word_or_a_mapping_is_one_mistake_told_once(tmp_path: Path, norm: str, told: str) -> None:
    said = error(tmp_path, GOOD + f"mix: {{loss_norm: {norm}}}\n")
    assert told in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("dpo", "preference"),
        ("kto", "preference"),
        ("rm", "preference"),
        ("pt", "pretrain"),
        ("grpo", "prompt"),
        ("ppo", "prompt"),
    ],
)
def test_neighbours_kinds_get_a_real_hint(tmp_path: Path, word: str, kind: str) -> None:
    assert kind in error(tmp_path, GOOD.replace("kind: sft", f"kind: {word}")).split("Did you mean")[1]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("cutoff_len: 1", "encode.max_length"),
        ("interleave_probs: 1", "weight"),
        ("val_size: 1", "validation"),
    ],
)
def test_neighbours_keys_get_a_real_hint(tmp_path: Path, key: str, name: str) -> None:
    assert name in error(tmp_path, GOOD + key + "\n")


def test_sizes_take_suffixes_and_clean_steps_take_one_key_maps(tmp_path: Path) -> None:
    text = (
        GOOD
        + "mix: {size: 1.5M}\nclean:\n  - normalize: {unicode: NFC}\n  - length: {min_chars: 2, fields: answer}\n    sources: [a]\n"
    )
    recipe = read(tmp_path, text)
    assert recipe.mix.size == 1_500_000
    assert [(s.name, s.options, s.fields, s.sources) for s in recipe.clean] == [
        ("normalize", {"unicode": "NFC"}, "all", ()),
        ("length", {"min_chars": 2}, "answer", ("a",)),
    ]


def test_overrides_reach_any_key(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD, "mix.size=2K", "sources.a.weight=0.5", "seed=7", "encode.pack=best_fit")
    assert (recipe.mix.size, recipe.sources["a"].weight, recipe.seed, recipe.encode.pack) == (
        2000,
        0.5,
        7,
        "best_fit",
    )
    assert "key.path=value" in error(tmp_path, GOOD, "nonsense")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x 1\nb: *x\n", "aliases"),
        ("a: 1\na: 2\n", "twice"),
        ("a: !!python/object:os.system x\n", "tags"),
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "a recipe is a map"),
        ("x: " + "[" * 40 + "]" * 40 + "\n", "deeper"),
    ],
)
def test_yaml_is_strict(tmp_path: Path, text: str, said: str) -> None:
    assert said in error(tmp_path, text)


def test_plain_yaml_words_are_text(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD.replace("name: x", "name: no").replace("tokenizer: t", "tokenizer: 'on'"))
    assert (recipe.name, recipe.tokenizer) == ("no", "on")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("groups: {g: {weight: 1}}\n", "no source belongs to the group 'g'"),
        ("dedupe: {prefer: [b]}\n", "no source or group is called 'b'"),
        ("mix: {stages: [{name: s, share: 0.5}]}\n", "sum to 0.5"),
        ("mix: {stages: [{name: s, share: 1, weights: {zz: 1}}]}\n", "'zz'"),
        ("validation: {share: 0.1, records: 5}\n", "exactly one"),
        ("mix: {size: {epochs: {b: 1}}}\n", "'b'"),
    ],
)
def test_names_and_sums_are_checked_before_any_work(tmp_path: Path, extra: str, said: str) -> None:
    assert said in error(tmp_path, GOOD + extra)


def test_options_must_fit_the_kind(tmp_path: Path) -> None:
    assert "drop_turns or truncate or drop" in error(
        tmp_path, GOOD.replace("max_length: 128", "max_length: 128, overlong: split")
    )
    assert "max_length" in error(tmp_path, GOOD.replace("encode: {max_length: 128}\n", ""))
    assert "never packed" in error(
        tmp_path, GOOD.replace("sft", "preference").replace("128", "128, pack: best_fit")
    )


def test_the_published_schema_is_the_one_of_the_classes() -> None:
    assert json.loads(schema_text("recipe")) == json.loads(json.dumps(recipe_schema()))


def test_the_fingerprint_sees_values_not_spelling(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD).sha256() == read(tmp_path, GOOD + "seed: 42\n# a comment\n").sha256()
    assert read(tmp_path, GOOD).sha256() != read(tmp_path, GOOD + "seed: 43\n").sha256()


def test_entries_of_a_dataset_info_become_sources(tmp_path: Path) -> None:
    info = {
        "qa": {"file_name": "qa.json", "columns": {"prompt": "ask", "response": "say"}},
        "hub": {"hf_hub_url": "someone/something"},
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "data/qa.json").write_text(json.dumps([{"ask": "q", "say": "a"}]))
    text = GOOD.replace("a: {path: a.jsonl}", "all: {path: data/dataset_info.json, max_epochs: 2}")
    source = read(tmp_path, text).sources["qa"]
    assert (source.path, source.max_epochs) == (("data/qa.json",), 2)
    assert dict(source.columns)["instruction"] == "ask"
    named = text.replace("dataset_info.json", "dataset_info.json#qaa")
    assert "did you mean qa?" in error(tmp_path, named)


def test_a_name_that_could_be_a_path_is_refused_in_words(tmp_path: Path) -> None:
    told = error(tmp_path, GOOD.replace("name: x", "name: ../../escape"))
    assert "line 1: name" in told
    assert "letters, digits" in told


# --- what a wrong value says: in the recipe's words, with what to write


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("validation: 0.01", "validation: is 0.01; it takes a map of keys: write {share: 0.01}."),
        ("validation: {share: 5%}", "validation.share: is 5%; it takes a number: write 0.05."),
        ("dedupe: {near: 0.8}", "dedupe.near: is 0.8; it takes a map of keys: write {threshold: 0.8}."),
        (
            "dedupe: near",
            "dedupe: is near; it takes a map of keys: write {exact: true, near: {threshold: 0.8}}.",
        ),
        ("write: trl", "write: is trl; it takes a list: write [trl]."),
        ("clean: {normalize: {}}", "clean: is {normalize: {}}; it takes a list: write [{normalize: {}}]."),
        ("clean: [{normalize: NFC}]", "clean.0: `normalize` takes a map of its options"),
        ("decontaminate: {against: e.jsonl}", "is e.jsonl; it takes a list: write [{path: e.jsonl}]."),
        ("groups: {g: 0.3}", "groups.g: is 0.3; it takes a map of keys: write {weight: 0.3}."),
        ("mix: {size: {epochs: 2}}", "mix.size.epochs: is 2; it takes a map of keys, such as {medical: 2}."),
        (
            "mix: {weights: {a: 1}}",
            "mix.weights.a: is not a key here: a weight of a source is its key `weight`",
        ),
        (
            "mix: {unit: rows}",
            "mix.unit: is 'rows'; it takes records, tokens, loss_tokens. Did you mean records?",
        ),
        ("seed: abc", "seed: is abc; it takes a whole number."),
        ("seed: '1,000'", "seed: is 1,000; it takes a whole number: write 1000."),
        ("max_reject_share: 5%", "max_reject_share: is 5%; it takes a number: write 0.05."),
        ("chat_template: 3", 'chat_template: is 3; it takes text: write "3".'),
        ("dedupe: {exact: maybe}", "dedupe.exact: is maybe; it takes true or false."),
    ],
)
def test_a_wrong_value_says_what_to_write(part: str, message: str, tmp_path: Path) -> None:
    lines = error(tmp_path, GOOD + part + "\n").splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert "line 7" in lines[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a: {path: a.jsonl}", "a: {path: a.jsonl, weight: 70%}", "is 70%; it takes a number: write 0.7."),
        (
            "a: {path: a.jsonl}",
            "a: a.jsonl",
            "sources.a: is a.jsonl; it takes a map of keys: write {path: a.jsonl}.",
        ),
        ("a: {path: a.jsonl}", "a: {path: []}", "sources.a.path: is empty; name at least one."),
        (
            "max_length: 128",
            "max_length: 128, pack: true",
            "encode.pack: is true; it takes none, concat, best_fit. Did you mean best_fit?",
        ),
        (
            "max_length: 128",
            "max_length: 4k",
            "encode.max_length: is 4k; it takes a whole number: write 4000.",
        ),
        ("{max_length: 128}", "2048", "encode: is 2048; it takes a map of keys: write {max_length: 2048}."),
        (
            "kind: sft",
            "kind: [sft]",
            "kind: is [sft]; it takes pretrain, sft, preference, prompt. Did you mean sft?",
        ),
    ],
)
def test_a_wrong_value_within_a_section_says_what_to_write(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    assert message in error(tmp_path, GOOD.replace(old, new))


_PLACES = [
    ("name",), ("kind",), ("seed",), ("tokenizer",), ("chat_template",), ("chat_template_kwargs",), ("sources",), ("sources", "a"),
    *(("sources", "a", key) for key in Source.model_fields), ("groups",), ("groups", "g"), ("groups", "g", "within"),
    ("clean",), ("clean", 0), ("clean", 0, "length"), ("dedupe",), *(("dedupe", key) for key in Dedupe.model_fields),
    ("decontaminate",), *(("decontaminate", key) for key in Decontaminate.model_fields), ("decontaminate", "against", 0),
    ("validation",), *(("validation", key) for key in Validation.model_fields), ("encode",), *(("encode", key) for key in Encode.model_fields),
    ("mix",), *(("mix", key) for key in Mix.model_fields), ("mix", "stages", 0), ("mix", "size", "epochs"), ("write",), ("write", 0),
]  # fmt: skip


@pytest.mark.parametrize("place", _PLACES, ids=lambda place: ".".join(map(str, place)))
def test_no_value_at_no_key_crashes_or_speaks_of_classes(place: tuple[str | int, ...]) -> None:
    for value in (
        None,
        True,
        3,
        -1,
        0.5,
        float("nan"),
        10**40,
        "",
        "word",
        "50%",
        [],
        [1],
        [None],
        [[]],
        {},
        {"x": 1},
        {"x": None},
        {"": {}},
    ):
        recipe: Any = {
            "name": "x", "kind": "sft", "tokenizer": "t", "sources": {"a": {"path": "a.jsonl"}}, "encode": {"max_length": 64},
        }  # fmt: skip
        parent = recipe
        for part, following in itertools.pairwise(place):
            if isinstance(parent, list):
                parent.extend([{}] if not parent else [])
                parent = parent[0]
            else:
                parent = parent.setdefault(part, [] if isinstance(following, int) else {})
        if isinstance(parent, list):
            parent[:] = [value]
        else:
            parent[place[-1]] = value
        message = outcome(recipe)
        assert not re.search(
            r"instance of|dictionary|tuple|to parse|valid |Input|NoneType|True|False", message
        ), value


def outcome(recipe: dict[str, Any]) -> str:
    """What is wrong with a recipe; nothing where it is right."""
    try:
        Recipe.of(recipe)
    except RecipeError as wrong:
        return str(wrong)
    return ""


def test_a_weight_that_is_missing_is_reported_before_work_with_its_line(tmp_path: Path) -> None:
    text = GOOD.replace("  a: {path: a.jsonl}\n", "  a: {path: a.jsonl, weight: 1}\n  b: {path: b.jsonl}\n")
    assert "line 6: sources.b: has no weight, and a has one; give it one, or remove all weights" in error(
        tmp_path, text
    )
    grouped = text.replace("b: {path: b.jsonl}", "b: {path: b.jsonl, group: g}\n  c: {path: c}")
    grouped += "groups: {g: {weight: 1, within: weights}}\n"
    lines = error(tmp_path, grouped).splitlines()
    assert any("line 6: sources.b: has no weight, and groups.g shares by weights" in line for line in lines)
    assert any(
        "line 7: sources.c: has no weight, and a, g have one; give it one, set `group:`," in line
        for line in lines
    )
    rule = text.replace("b: {path: b.jsonl}", "b: {path: b.jsonl, weight: 2}") + "mix: {weights: unimax}\n"
    assert "line 8: mix.weights: is a rule, and a, b have weights; keep one of the two" in error(
        tmp_path, rule
    )
    staged = text + "mix: {stages: [{share: 1, weights: {a: 1, b: 2}}]}\n"
    assert read(tmp_path, staged).mix.stages[0].name == "stage-1"


def test_a_tab_is_named_and_what_replaces_it(tmp_path: Path) -> None:
    message = error(tmp_path, "name: x\nsources:\n\ta: {path: x}\n")
    assert "line 3, column 1: a tab. YAML is indented by spaces: replace each tab by spaces" in message
    assert "not valid YAML" in error(tmp_path, "a: [1\n")


@pytest.mark.parametrize(
    "name", ["医疗", "医疗-问答_2", "données", "Ärzte.v2", "日本語データ", "한국어", "x"]
)
def test_names_of_any_script_are_taken(name: str, tmp_path: Path) -> None:
    text = (
        GOOD.replace("name: x", f"name: {name}").replace("  a:", f"  {name}:")
        + f"dedupe: {{prefer: [{name}]}}\n"
    )
    assert list(read(tmp_path, text).sources) == [name]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("医疗：问答", "holds '：'"),
        ("医疗😀", "holds '😀'"),
        ("a\u200bb", "holds '\\u200b'"),
        ("e\u0301te\u0301", "decomposed letters"),
        ("医" * 34, "at most 100 bytes"),
        ("医 疗", "a name takes letters"),
        ("../x", "a name takes letters"),
        (".x", "a name takes letters"),
    ],
)
def test_names_that_are_no_names_of_files_are_refused(name: str, problem: str, tmp_path: Path) -> None:
    assert problem in error(tmp_path, GOOD.replace("  a:", f"  '{name}':"))
    assert problem in error(tmp_path, GOOD.replace("name: x", f"name: '{name}'"))


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("mix.stages.x.share=1", "it takes a list"),
        ("name.x.y=3", "nothing can be set at 'x'"),
        ("name.x=3", "nothing can be set at 'x'"),
        ("sources.a.path.5=3", "'5' is no entry of a list of 1"),
        ("sources.a.path.x=3", "'x' is no entry of a list of 1"),
        ("name", "should be key.path=value"),
    ],
)
def test_an_override_that_leads_nowhere_is_reported(override: str, problem: str, tmp_path: Path) -> None:
    assert problem in error(tmp_path, GOOD.replace("path: a.jsonl", "path: [a.jsonl]"), override)


def test_a_name_that_refers_to_nothing_gets_the_nearest(tmp_path: Path) -> None:
    assert "did you mean medical?" in error(
        tmp_path, GOOD.replace("  a:", "  medical:") + "dedupe: {prefer: [medcial]}\n"
    )


# --- the published schema, as an editor uses it

ROOT = Path(__file__).parent.parent


def recipes_of_the_project() -> dict[str, Any]:
    """Every recipe that is a file of the project or a block of its pages."""
    found: dict[str, Any] = {}
    for path in [*(ROOT / "samples").rglob("*.yaml"), *(ROOT / "benchmarks").rglob("*.yaml")]:
        found[str(path.relative_to(ROOT))] = strict_yaml.load(
            path.read_text(encoding="utf-8"), path.name
        ).value
    for path in [ROOT / "README.md", ROOT / "README.zh.md", *(ROOT / "docs").rglob("*.md")]:
        for number, block in enumerate(
            re.findall(r"```yaml[^\n]*\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
        ):
            value = strict_yaml.load(textwrap.dedent(block), path.name).value
            if isinstance(value, dict) and set(value) <= set(Recipe.model_fields):
                found[f"{path.relative_to(ROOT)} {number}"] = value
    return {name: value for name, value in found.items() if isinstance(value, dict)}


RECIPES = recipes_of_the_project()
VALIDATOR = jsonschema_rs.Draft202012Validator(json.loads(schema_text("recipe")))


def problems_of_the_schema(value: dict[str, Any]) -> list[str]:
    whole = {
        "name": "x",
        "kind": "sft",
        "tokenizer": "t",
        "sources": {"a": {"path": "a"}},
        **value,
    }  # pages show parts of recipes
    return [f"{error.instance_path}: {error.message}" for error in VALIDATOR.iter_errors(whole)]


@pytest.mark.parametrize("name", RECIPES, ids=str)
def test_the_schema_accepts_every_recipe_of_the_project(name: str) -> None:
    assert problems_of_the_schema(RECIPES[name]) == []


def test_there_are_recipes_to_try() -> None:
    assert sum(name.startswith("samples") for name in RECIPES) >= 3
    assert sum(name.startswith("docs") for name in RECIPES) >= 20


@pytest.mark.parametrize(
    "value",
    [
        {"sources": {"医疗": {"path": ["a", "b"], "max_records": "20K"}}},
        {"clean": ["normalize", {"length": {"min_chars": 2, "fields": "answer"}}, {"normalize": None}]},
        {
            "clean": [
                {"name": "length", "options": {"min_chars": 2}},
                {"length": {"min_chars": 2}, "sources": ["a"]},
            ]
        },
        {"dedupe": {"near": True, "against": "old/"}},
        {"dedupe": {"near": {"threshold": 0.8}, "against": ["old/"]}},
        {"mix": {"size": "50M"}},
        {"mix": {"size": 5}},
        {"mix": {"size": {"epochs": {"a": 2}}, "weights": {"temperature": 2}}},
        {
            "mix": {
                "stages": [{"share": 1, "weights": {"a": 1}}],
                "loss_norm": {"trainer": "token", "wanted": "example"},
            }
        },
        {"validation": {"path": "dev.jsonl"}},
        {"write": ["parquet", {"megatron": {"layout": "blocks"}}, {"name": "trl"}]},
    ],
    ids=str,
)
def test_the_schema_and_the_classes_accept_each_form(value: dict[str, Any]) -> None:
    assert problems_of_the_schema(value) == []
    assert (
        outcome(
            {
                "name": "x",
                "kind": "sft",
                "tokenizer": "t",
                "encode": {"max_length": 9},
                "sources": {"a": {"path": "a"}},
                **value,
            }
        )
        == ""
    )


@pytest.mark.parametrize(
    "value",
    [
        {"sourcs": {}},
        {"kind": "dpo"},
        {"name": "a b"},
        {"sources": {"a": {"path": "x", "wieght": 1}}},
        {"sources": {"a b": {"path": "x"}}},
        {"sources": {"a": {"path": []}}},
        {"validation": 0.01},
        {"encode": {"pack": True}},
        {"dedupe": {"near": {"threshold": 4}}},
        {"clean": [{"lenght": {}}]},
        {"clean": [{"length": {"min": 2}}]},
        {"clean": "normalize"},
        {"write": ["llama_factory"]},
        {"mix": {"size": "lots"}},
        {"mix": {"size": 0}},
    ],
    ids=str,
)
def test_the_schema_rejects_what_is_wrong(value: dict[str, Any]) -> None:
    assert problems_of_the_schema(value) != []


def test_every_property_of_the_schema_has_a_description() -> None:
    schema = recipe_schema()
    nodes = {"Recipe": schema, **schema["$defs"]}
    bare = [
        f"{name}.{key}"
        for name, node in nodes.items()
        for part in (node, *node.get("anyOf", ()))
        for key, value in part.get("properties", {}).items()
        if not value.get("description")
    ]
    assert bare == []
