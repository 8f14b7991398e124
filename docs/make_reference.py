"""Write the reference pages from the code: recipe keys, commands and the Python functions, in English and Chinese.

``make schemas`` runs it; a test compares the pages with what it gives. Words come from the recipe's schema, the commands' help and
docstrings; ``reference.yaml`` has the Chinese ones, examples, and English for what the code leaves without a description.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import yaml

import datamix
from datamix.clean import STEPS
from datamix.commands.cli import cli
from datamix.exporters import catalog
from datamix.load import TrainingSet
from datamix.recipe.schemas import recipe_schema

HERE = Path(__file__).parent
EN, ZH = 0, 1
HEADER = "<!-- Written by docs/make_reference.py; run `make schemas` after a change of the code. -->\n\n"
NO_OPTIONS = ("info", "split", "records")  # fields of an output format that a recipe does not set


@cache
def words() -> dict[str, dict[str, list[str]]]:
    """``reference.yaml``: section -> key -> English, Chinese, example."""
    value: dict[str, dict[str, list[str]]] = yaml.safe_load(
        (HERE / "reference.yaml").read_text(encoding="utf-8")
    )
    return value


def pages() -> dict[str, str]:
    """Name of a page -> its text."""
    made = {}
    for name, write in (("recipe", recipe_page), ("commands", commands_page), ("python", python_page)):
        made[f"{name}.md"], made[f"{name}.zh.md"] = HEADER + write(EN), HEADER + write(ZH)
    return made


def recipe_keys() -> Iterator[tuple[str, dict[str, Any], bool, str]]:
    """Each key of a recipe with its schema, whether it is required, and the name of its class; parts follow the whole."""
    schema = recipe_schema()
    waiting = [("", schema)]
    while waiting:
        prefix, node = waiting.pop(0)
        inner = []
        for key, prop in node.get("properties", {}).items():
            path = f"{prefix}.{key}".lstrip(".")
            yield path, prop, key in node.get("required", []), node["title"]
            inner += [
                (path + end, part)
                for end, part in parts(prop, schema["$defs"])
                if path not in ("clean", "write")
            ]
        waiting = inner + waiting


def parts(prop: dict[str, Any], defs: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects inside a property: ``.NAME`` for maps of them, ``[]`` for lists."""
    if "$ref" in prop:
        yield "", defs[prop["$ref"].rsplit("/", 1)[1]]
    for option in prop.get("anyOf", ()):
        yield from parts(option, defs)
    if isinstance(prop.get("items"), dict):
        yield from (("[]" + end, part) for end, part in parts(prop["items"], defs))
    maps = [*prop.get("patternProperties", {}).values(), prop.get("additionalProperties")]
    for value in maps:
        if isinstance(value, dict):
            yield from ((".NAME" + end, part) for end, part in parts(value, defs))


def type_of(prop: dict[str, Any], language: int) -> str:
    """A property's type in words, with its range."""
    if "enum" in prop:
        return " \\| ".join(f"`{value}`" for value in prop["enum"])
    if "const" in prop:
        return f"`{prop['const']}`"
    if "anyOf" in prop:
        options = [type_of(option, language) for option in prop["anyOf"] if option.get("type") != "null"]
        return " \\| ".join(dict.fromkeys(options))
    if prop.get("type") == "array":
        item = type_of(prop.get("items", {}), language)
        return (f"list of {item}".replace("of map", "of maps"), f"{item}列表")[language]
    names = {
        "string": ("text", "文字"),
        "integer": ("whole number", "整数"),
        "number": ("number", "数"),
        "boolean": ("true or false", "true 或 false"),
    }
    name = names.get(str(prop.get("type")), ("map", "映射"))[language]
    return " ".join([name, *limits(prop)])


def limits(prop: dict[str, Any]) -> list[str]:
    """The range of a number: ``["> 0, ≤ 1"]``, or nothing."""
    signs = {"exclusiveMinimum": ">", "gt": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    found = [f"{sign} {prop[key]:g}" for key, sign in signs.items() if key in prop]
    return [", ".join(found)] if found else []


def default_of(prop: dict[str, Any], required: bool, language: int) -> str:
    if required:
        return ("required", "必填")[language]
    value = prop.get("default")
    if value is None or value == [] or value == {} or isinstance(value, dict):
        return ""
    if isinstance(value, list):
        value = [item["name"] if isinstance(item, dict) else item for item in value]
    return f"`{plain(value)}`"


def plain(value: Any) -> str:
    """A value as a recipe writes it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(plain(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe(section: str, key: str, english: str, language: int) -> str:
    """The description of a key, an option or a command."""
    entry = words()[section].get(key, ["", ""])
    text = (english or entry[EN]) if language == EN else (entry[ZH] or english)
    return " ".join(text.split()).replace("|", "\\|")


def recipe_page(language: int) -> str:
    """Every key of the recipe, a table a part."""
    title, intro, head = (
        ("Recipe keys", "Every key of a recipe, with its type, default and an example. `NAME` is a name that you choose, `[]` an "
         "entry of a list. `datamix schema recipe` prints the same as a JSON Schema.",
         "| key | type | default | meaning | example |"),
        ("配方的键", "配方的每个键，连同类型、默认值和例子。`NAME` 是自己取的名字，`[]` 是列表的一项。`datamix schema recipe` 以 JSON Schema "
         "打印同样的内容。", "| 键 | 类型 | 默认值 | 含义 | 例子 |"),
    )[language]  # fmt: skip
    lines, section = [f"# {title}", "", intro], "nothing yet"
    for path, prop, required, _ in recipe_keys():
        prefix, _, key = path.rpartition(".")
        if prefix != section:
            level = "##" if prefix in ("", *TOP_PARTS) else "###"
            lines += [
                "",
                f"{level} {prefix or words()['sections'][''][language]}",
                "",
                head,
                "| --- | --- | --- | --- | --- |",
            ]
            section = prefix
        examples = [plain_example(e) for e in prop.get("examples", [])[:1]] or words()["recipe"].get(
            path, []
        )[2:3]
        example = f"`{examples[0]}`" if examples else ""
        meaning = describe("recipe", path, prop.get("description", ""), language)
        cells = [f"`{key}`", type_of(prop, language), default_of(prop, required, language), meaning, example]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## clean[]", "", words()["sections"]["clean"][language], "", *step_rows(language)]
    lines += ["", "## write[]", "", words()["sections"]["write"][language], "", *format_rows(language)]
    return "\n".join(lines) + "\n"


TOP_PARTS = ("sources.NAME", "groups.NAME", "dedupe", "decontaminate", "validation", "encode", "mix")


def plain_example(value: Any) -> str:
    """An example of the schema on one line of YAML."""
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
        .removesuffix("...\n")
        .strip()
    )


def step_rows(language: int) -> list[str]:
    """The options of every cleaning step."""
    rows = [("| step | options and defaults |", "| 步骤 | 选项与默认值 |")[language], "| --- | --- |"]
    for name, options in STEPS.items():
        fields = [f"`{f.name}: {plain(f.default)}`" for f in dataclasses.fields(options)]
        rows.append(f"| `{name}` | {', '.join(fields)} |")
    return rows


def format_rows(language: int) -> list[str]:
    """The kinds and options of every output format."""
    rows = [
        ("| format | kinds | options and defaults |", "| 格式 | 种类 | 选项与默认值 |")[language],
        "| --- | --- | --- |",
    ]
    for name in catalog.EXPORT_FORMATS:
        sink = catalog._load(name)
        fields = [
            f
            for f in dataclasses.fields(sink)
            if f.name not in NO_OPTIONS and f.default is not dataclasses.MISSING
        ]
        options = [f"`{f.name}: {plain(f.default)}`" for f in fields]
        rows.append(f"| `{name}` | {', '.join(sink.KINDS)} | {', '.join(options)} |")
    return rows


def commands_page(language: int) -> str:
    """Every command with its arguments and options."""
    title, intro, head = (
        ("Commands", "Every command and option. `datamix COMMAND --help` prints the same in the terminal.",
         "| option | value | default | meaning |"),
        ("命令", "所有命令和选项。`datamix COMMAND --help` 在终端里显示同样的内容。", "| 选项 | 值 | 默认值 | 含义 |"),
    )[language]  # fmt: skip
    lines = [f"# {title}", "", intro]
    for name, command in cli.commands.items():
        context = click.Context(command, info_name=name, parent=click.Context(cli, **cli.context_settings))
        usage = " ".join(command.collect_usage_pieces(context))
        lines += ["", f"## datamix {name}", "", describe("commands", name, command.help or "", language), ""]
        lines += ["```text", f"datamix {name} {usage}", "```", "", head, "| --- | --- | --- | --- |"]
        options = [p for p in command.get_params(context) if isinstance(p, click.Option)]
        lines += [option_row(name, option, context, language) for option in options]
    return "\n".join(lines) + "\n"


def option_row(command: str, option: click.Option, context: click.Context, language: int) -> str:
    longest = max(option.opts, key=len)
    key = f"{command} {longest}" if f"{command} {longest}" in words()["options"] else longest
    meaning = describe("options", key, (option.help or "").split("  [")[0], language)
    value = "" if option.is_flag else option.make_metavar(context).replace(" RANGE", "").replace("|", "\\|")
    shown = option.default if option.show_default and option.default is not None else ""
    names = (
        context.help_option_names if "--help" in option.opts else option.opts
    )  # click stores the first that it made
    cells = [
        ", ".join(f"`{o}`" for o in names),
        f"`{value}`" if value else "",
        f"`{shown}`" if shown != "" else "",
        meaning,
    ]
    return "| " + " | ".join(cells) + " |"


EXAMPLE = """
import datamix

recipe = datamix.Recipe.read("samples/sft.yaml")
manifest = datamix.build(recipe, "set")
assert all(check.ok for check in datamix.verify("set") if check.name != "not checked")

ts = datamix.open("set")
print(len(ts), ts.source_of(0), ts[0]["input_ids"][:8])
for batch in ts.batches(8):  # numpy; ts.torch(8) gives tensors, ts.datasets() a dataset
    break
"""


def python_page(language: int) -> str:
    """The public functions, the training set that `open` gives, and the errors."""
    title, intro = (
        (
            "Python",
            "`import datamix` gives the commands as functions: values instead of text, the same errors as exceptions.",
        ),
        (
            "Python",
            "`import datamix` 把命令变成函数：返回值而不是文字，同样的错误以异常给出。说明取自代码，为英文。",
        ),
    )[language]
    lines = [f"# {title}", "", intro, "", "```python", EXAMPLE.strip(), "```"]
    for name in datamix.__all__:
        value = getattr(datamix, name)
        if name != "__version__":
            lines += signature(f"datamix.{name}", value)
        for method in vars(value) if inspect.isclass(value) else ():
            if isinstance(vars(value)[method], classmethod) and not method.startswith("_"):
                lines += signature(f"datamix.{name}.{method}", getattr(value, method), "###")
    lines += ["", f"## {('The training set', '训练集')[language]}", "", doc(TrainingSet)]
    for name, value in inspect.getmembers(TrainingSet):
        if (
            not name.startswith("_")
            and (inspect.isfunction(value) or isinstance(value, property))
            and inspect.getdoc(value)
        ):
            lines += signature(name, value, "###")
    lines += ["", f"## {('Errors', '错误')[language]}", ""]
    lines += [
        ("| error | exit code | meaning |", "| 错误 | 退出码 | 含义 |")[language],
        "| --- | --- | --- |",
    ]
    errors = importlib.import_module("datamix.core.errors")
    for _, error in sorted(
        inspect.getmembers(errors, inspect.isclass), key=lambda pair: getattr(pair[1], "exit_code", 0)
    ):
        if issubclass(error, errors.DatamixError) and error is not errors.DatamixError:
            lines.append(f"| `datamix.core.errors.{error.__name__}` | {error.exit_code} | {doc(error)} |")
    return "\n".join(lines) + "\n"


def signature(name: str, value: Any, heading: str = "##") -> list[str]:
    """A heading, the call and the docstring's first paragraph of a function, class or property."""
    lines = ["", f"{heading} {name}", ""]
    if not isinstance(value, property) and not inspect.isclass(value):
        text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(value)))
        lines += ["```text", f"{name}{text}".replace("(self, ", "(").replace("(self)", "()"), "```", ""]
    return [*lines, doc(value)]


def doc(value: Any) -> str:
    """The first paragraph of a docstring on one line."""
    return (
        " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
        .replace("``", "`")
        .replace("|", "\\|")
    )


if __name__ == "__main__":
    for page, text in pages().items():
        (HERE / "reference" / page).write_text(text, encoding="utf-8")
