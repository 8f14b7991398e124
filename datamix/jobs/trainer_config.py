"""A trainer's configuration as plain values: YAML, JSON, or the arguments of a shell script, of which nothing is run; and whose it is."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from datamix.core.errors import RecipeError
from datamix.pipeline.scan import recognise
from datamix.read import find, read

_HUB_ID = re.compile(
    r"[\w-][\w.-]*/[\w.-]+(?<!\.jsonl)(?<!\.json)(?<!\.csv)(?<!\.txt)(?<!\.gz)(?<!\.zst)(?<!\.parquet)"
)
_KINDS = dict.fromkeys(("dpo", "kto", "rm", "orpo", "simpo", "ipo", "cpo", "reward", "bco"), "preference")
_KINDS |= dict.fromkeys(("pt", "cpt", "pretrain", "pretrain_gpt"), "pretrain")
_KINDS |= dict.fromkeys(("grpo", "ppo", "rloo", "gspo", "online_dpo"), "prompt")
_TRAINS = re.compile(
    r"\b(swift (sft|pt|rlhf)|trl (sft|dpo|grpo|kto|reward)|[A-Z]\w*Trainer|llamafactory|axolotl|deepspeed|torchrun|pretrain_\w+\.py|--data-path|dataset_mixer)\b"
)


@dataclass
class RecipeDraft:
    """A recipe in the making, and notes about it."""

    base: Path  # the folder of the recipe
    folder: Path  # the folder of the configuration
    kind: str = "sft"
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, place: str, keys: dict[str, Any] | None = None) -> dict[str, Any]:
        """A source from a path, a Hub id or ``hf::``/``ms::`` address as the tool writes it."""
        text = re.sub(r"^(hf::|HF::|huggingface:)", "", place)
        modelscope = bool(re.match(r"(?i)ms::|modelscope:", text))
        text = re.sub(r"(?i)^(ms::|modelscope:)", "", text)
        path = self.local(text)
        if path is None and _HUB_ID.fullmatch(text) and not modelscope:
            path = f"hf://datasets/{text}"
        if path is None:
            path = text
            about = (
                "is on ModelScope: download it (modelscope download --dataset), then"
                if modelscope
                else "does not exist here;"
            )
            self.notes.append(f"{text} {about} name its files as path")
        stem = (
            re.sub(
                r"[^\w.-]+", "_", Path(text.rstrip("/")).name.split(".json")[0].split(".parquet")[0]
            ).strip("_.-")
            or "data"
        )
        name, number = stem, 2
        while name in self.sources:
            name, number = f"{stem}_{number}", number + 1
        self.sources[name] = {
            "path": path,
            **{key: value for key, value in (keys or {}).items() if value not in (None, {}, ())},
        }
        return self.sources[name]

    def local(self, text: str) -> str | None:
        """A path that exists beside the configuration or here, as the recipe names it."""
        if "://" in text:
            return text
        for folder in (self.folder, Path()):
            if (folder / text).exists():
                return Path(os.path.relpath(folder / text, self.base)).as_posix()
        return None

    def count(self, source: dict[str, Any]) -> int | None:
        """The records of a local source, None where they cannot be counted."""
        try:
            paths = find([source["path"]], str(self.base))
            return sum(len(r.values) + len(r.rejects) for p in paths for r in read(recognise(p).piece))
        except Exception:  # remote, missing or unreadable: then nothing is counted
            return None


def read_config(file: str) -> dict[str, Any] | tuple[str, dict[str, Any]]:
    """The values of a YAML or JSON file; of a script or list of arguments, its words and their values."""
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--from {file}: cannot be read: {error}.") from None
    if path.suffix == ".py":
        raise RecipeError(
            f"--from {file}: is a Python script, and its data sets are known only when it runs. Write its data arguments as a "
            "YAML of its tool, or give the data files to `datamix init`."
        )
    if path.suffix not in (".sh", ".bash", ".txt", ".args"):
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(
                f"--from {file}: is no YAML, JSON or shell script: {str(error).splitlines()[0]}."
            ) from None
        if isinstance(value, dict):
            return value
    return _arguments(text)


def _arguments(text: str) -> tuple[str, dict[str, Any]]:
    """The command and the ``--key value...`` of a shell script; variables set in it are replaced."""
    variables = dict(re.findall(r"""^\s*(?:export\s+)?(\w+)=["']?([^"'\n]*)["']?\s*$""", text, re.MULTILINE))
    text = re.sub(
        r"\$\{?(\w+)(?::?-[^}]*)?\}?", lambda m: variables.get(m[1], m[0]), text.replace("\\\n", " ")
    )
    values: dict[str, Any] = {}
    command: list[str] = []
    key = None
    for line in text.splitlines():
        try:
            words = shlex.split(re.sub(r"(^|\s)#.*$", "", line))
        except ValueError:
            continue
        for word in words:
            if word.startswith("--"):
                key, _, value = word[2:].replace("-", "_").partition("=")
                values[key] = [value] if value else []
            elif key is not None:
                values[key].append(word)
            elif "=" not in word:
                command.append(word)
    plain = {k: True if not v else v[0] if len(v) == 1 else v for k, v in values.items()}
    if not plain and len(command) % 2 == 0 and command:  # a Megatron blend on its own
        plain = {"data_path": command}
    return " ".join(command), {
        k: yaml.safe_load(v) if isinstance(v, str) and v else v for k, v in plain.items()
    }


def detect_tool(words: str, values: dict[str, Any], catalogue: Path | None) -> str | None:
    def has(*keys: str) -> bool:
        return any(key in values for key in keys)

    entries = values.get("datasets")
    if has("dataset_mixer", "dataset_mixer_list"):
        return "open-instruct"
    if has("data_path", "train_data_path"):
        return "Megatron"
    if "swift" in words or has("split_dataset_ratio", "custom_dataset_info", "rlhf_type"):
        return "ms-swift"
    if has("base_model", "sequence_len", "pretraining_dataset"):
        return "axolotl"
    if catalogue is not None or (
        isinstance(values.get("dataset"), str) and has("stage", "cutoff_len", "dataset_dir", "template")
    ):
        return "LLaMA-Factory"
    if (
        "trl" in words
        or has("dataset_name")
        or (isinstance(entries, list) and has("model_name_or_path", "max_length"))
    ):
        return "TRL"
    return "ms-swift" if has("dataset") else "axolotl" if isinstance(entries, list) else None


def detect_kind(words: str, values: dict[str, Any]) -> str:
    """What is trained: by the stage or the command, else by arguments that only one method has."""
    texts = [str(values.get(key, "")) for key in ("stage", "rlhf_type", "rl")] + words.replace(
        "/", " "
    ).replace(".py", " ").split()
    for word in texts:
        if word.lower() in _KINDS:
            return _KINDS[word.lower()]
    if "pretraining_dataset" in values or "data_path" in values:
        return "pretrain"
    if values.keys() & {"reward_funcs", "num_generations"}:
        return "prompt"
    return "preference" if values.keys() & {"pref_loss", "pref_beta", "dpo_beta", "loss_type"} else "sft"


def as_list(value: Any) -> list[Any]:
    """A value of a configuration as a list: ``a,b``, one value, or a list."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return list(value) if isinstance(value, list | tuple) else [value]


def no_data(path: str) -> str:
    """Why a file that was named is a script or a configuration and no corpus; empty where it may be one."""
    name = Path(path).name
    if not Path(path).is_file() or not name.endswith((".py", ".sh", ".bash", ".yaml", ".yml")):
        return ""
    with open(path, encoding="utf-8", errors="replace") as stream:
        head = stream.read(1 << 16)
    if name.endswith((".yaml", ".yml")):
        return f"a configuration, not data; a trainer's becomes a recipe with: datamix init --from {path}"
    if not _TRAINS.search(head):
        return ""
    if name.endswith(".py"):
        return "a training script, not data; give the files that it loads"
    return f"a training script, not data; its arguments become a recipe with: datamix init --from {path}"
