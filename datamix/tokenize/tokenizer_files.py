"""Find a tokenizer's files and read them, without running any of their code.

A tokenizer is a folder with ``tokenizer.json`` (vocabulary, merges, added tokens) and, beside it, what
transformers writes: ``tokenizer_config.json`` or ``special_tokens_map.json`` (which token is BOS, EOS, PAD)
and the chat template (``chat_template.jinja``, or inside the config). Of several named templates two are
used, as transformers does: ``default``, and ``tool_use`` for records with tools. Only JSON and text are read:
no ``AutoConfig``, no remote code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from datamix.core.errors import RecipeError
from datamix.tokenize.plain_spec import ParsedTokenizer, parse_tokenizer, read_parsed

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
_TOOL_USE = "additional_chat_templates/tool_use.jinja"
_HUB_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    _TOOL_USE,
)


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer by its content; ``folder`` is only its path on this machine."""

    folder: str  # holds tokenizer.json
    name: str  # as the recipe wrote it
    sha256: str  # of the bytes of tokenizer.json
    vocab_size: int  # largest id + 1, added tokens included
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    chat_template: str | None
    chat_template_sha256: str | None
    # ("eos_token", "</s>"), ...: what chat templates may print
    named_tokens: tuple[tuple[str, str], ...] = ()
    tool_template: str | None = None  # for records with tools, where the tokenizer has one of its own
    template_name: str | None = None  # of the file that the recipe names
    parsed: str | None = None  # the folder of its parsed form in a cache, where it is there

    @property
    def contents(self) -> tuple[str, ...]:
        """The texts of its named tokens."""
        return tuple(sorted({text for _, text in self.named_tokens}))


def find_tokenizer(
    name: str,
    base: str,
    chat_template: str | None = None,
    find_parsed: Callable[[str, tuple[str, ...]], Path | None] = lambda sha256, contents: None,
) -> TokenizerFiles:
    """Find a tokenizer by folder, ``tokenizer.json`` or Hub id (``owner/name``, ``owner/name@revision``).

    ``chat_template`` is the path of a ``.jinja`` file that overrides the tokenizer's own. Paths are relative
    to ``base``. ``find_parsed``: the folder of the parsed form by the file's sha256 and the texts of named
    tokens, None where there is none. Raises RecipeError where something is missing or cannot be read.
    """
    folder = _folder(name, Path(base))
    sha256 = hashlib.sha256(_read(folder / "tokenizer.json")).hexdigest()
    config, named = _config(folder)
    contents = tuple(sorted(set(named.values())))
    place = find_parsed(sha256, contents)
    parsed = _parse(str(folder), name, sha256, contents) if place is None else read_parsed(place)
    ids = parsed.named_ids
    template, tool_template = _templates(config, folder, Path(base), chat_template)
    return TokenizerFiles(
        folder=str(folder),
        name=name,
        sha256=sha256,
        vocab_size=parsed.vocab_size,
        bos_token_id=ids.get(named.get("bos_token", "")),
        eos_token_id=ids.get(named.get("eos_token", "")),
        pad_token_id=ids.get(named.get("pad_token", "")),
        chat_template=template,
        chat_template_sha256=None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        named_tokens=tuple(sorted(named.items())),
        tool_template=tool_template,
        template_name=chat_template,
        parsed=None if place is None else str(place),
    )


def parsed_tokenizer(files: TokenizerFiles) -> ParsedTokenizer:
    """The parsed form of a tokenizer: from its cache, else parsed. Raises RecipeError where its file changed."""
    if files.parsed is not None:
        with suppress(OSError, ValueError, TypeError):  # pruned meanwhile
            return read_parsed(Path(files.parsed))
    return _parse(files.folder, files.name, files.sha256, files.contents)


@lru_cache(maxsize=1)
def _parse(folder: str, name: str, sha256: str, contents: tuple[str, ...]) -> ParsedTokenizer:
    path = Path(folder) / "tokenizer.json"
    return parse_tokenizer(_read_same(path, sha256), name, str(path), contents)


def read_tokenizer_json(files: TokenizerFiles) -> bytes:
    """The bytes of ``tokenizer.json``. Raises RecipeError where they changed since it was found."""
    return _read_same(Path(files.folder) / "tokenizer.json", files.sha256)


def _read_same(path: Path, sha256: str) -> bytes:
    raw = _read(path)
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise RecipeError(
            f"tokenizer: {path} changed while it was used. Nothing built from it can be trusted: wait until "
            "it is written, and run the same command again."
        )
    return raw


def decoder(tokenizer_json: Path) -> Any:
    """A ``tokenizers.Tokenizer`` that only decodes: loaded once, without merges, in a third of the time."""
    return _decoder(tokenizer_json.read_bytes())


def decoder_of(files: TokenizerFiles) -> Any:
    """The decoder of a tokenizer. Raises RecipeError where its file changed since it was found."""
    return _decoder(read_tokenizer_json(files))


def copy_tokenizer(files: TokenizerFiles, folder: Path) -> None:
    """Write a tokenizer into an empty folder. Raises RecipeError where its files changed since then."""
    (folder / "tokenizer.json").write_bytes(read_tokenizer_json(files))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (Path(files.folder) / name).is_file():
            (folder / name).write_bytes(_read(Path(files.folder) / name))
    if tuple(sorted(_config(folder)[1].items())) != files.named_tokens:
        raise RecipeError(
            f"tokenizer: the special tokens named in {files.folder} changed while it was used. Nothing built "
            "from it can be trusted: wait until it is written, and run the same command again."
        )
    if files.chat_template is not None:
        (folder / "chat_template.jinja").write_text(files.chat_template, encoding="utf-8")
    if files.tool_template is not None:
        (folder / _TOOL_USE).parent.mkdir()
        (folder / _TOOL_USE).write_text(files.tool_template, encoding="utf-8")


@lru_cache(maxsize=1)
def _decoder(tokenizer_json: bytes) -> Any:
    from tokenizers import Tokenizer

    spec = orjson.loads(tokenizer_json)
    if spec["model"].get("merges"):
        spec["model"]["merges"] = []
    return Tokenizer.from_str(orjson.dumps(spec).decode())


def _folder(name: str, base: Path) -> Path:
    path = base / Path(name).expanduser()
    if path.is_file() and path.name.endswith(".json"):
        if path.name != "tokenizer.json":
            raise RecipeError(
                f"tokenizer: {name} is a file that is not called tokenizer.json. Name the folder that holds "
                "tokenizer.json, or the tokenizer.json itself."
            )
        return path.parent
    if (path / "tokenizer.json").is_file():
        return path
    if path.exists():
        raise RecipeError(
            f"tokenizer: {name} was found at {path}, but there is no tokenizer.json in it. Only fast "
            "tokenizers are read; write one with "
            "`AutoTokenizer.from_pretrained(...).save_pretrained(folder)`."
        )
    if name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise RecipeError(
            f"tokenizer: there is nothing at {path}. Give a folder with tokenizer.json, a tokenizer.json, "
            "or the id of a Hub repository."
        )
    return _from_hub(name, path)


@lru_cache(maxsize=8)
def _from_hub(name: str, path: Path) -> Path:
    import huggingface_hub  # only a Hub id needs it

    repository, _, revision = name.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(_HUB_FILES)
        )
    except Exception as error:  # the library raises a dozen kinds: no network, no such repository, gated, ...
        reason = str(error).strip().splitlines()
        raise RecipeError(
            f"tokenizer: {name} is neither a folder ({path} does not exist) nor could it be downloaded from "
            f"the Hub: {type(error).__name__}: {reason[0] if reason else 'no reason given'}. Check the "
            "name and the network, set HF_ENDPOINT to a mirror of the Hub, or download the tokenizer once (with "
            f"`hf download {repository}` or, from ModelScope, `modelscope download --model {repository} --local_dir FOLDER`) "
            "and name its folder: `tokenizer: FOLDER`."
        ) from error
    if not (Path(folder) / "tokenizer.json").is_file():
        raise RecipeError(
            f"tokenizer: the Hub repository {name} holds no tokenizer.json (a slow tokenizer). Convert it "
            "with `AutoTokenizer.from_pretrained(...).save_pretrained(folder)` and name the folder."
        )
    return Path(folder)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise RecipeError(f"tokenizer: {path} cannot be read: {error.strerror}.") from error


def _json(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RecipeError(f"tokenizer: {path} is not JSON: {error}. Save the tokenizer again.") from error
    if not isinstance(value, dict):
        raise RecipeError(f"tokenizer: {path} holds no JSON object. Save the tokenizer again.")
    return value


def _config(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tokenizer's config, and the text of each token it names (config first, then special_tokens_map)."""
    config: dict[str, Any] = {}
    named: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / file
        if not path.is_file():
            continue
        values = _json(_read(path), path)
        for key in NAMED_TOKENS:
            token = values.get(key)
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                named[key] = content
        config = values if file == "tokenizer_config.json" else config
    return config, named


def _templates(
    config: dict[str, Any], folder: Path, base: Path, override: str | None
) -> tuple[str | None, str | None]:
    """The chat template, and the one for records with tools where there is such."""
    if override is not None:
        path = base / Path(override).expanduser()
        if not path.is_file():
            raise RecipeError(
                f"chat_template: there is no file {path}. Name a Jinja file, relative to the recipe."
            )
        return _text(path), None
    template = config.get("chat_template")
    named: dict[Any, Any] = {"default": template} if isinstance(template, str) else {}
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    for name, path in (("default", folder / "chat_template.jinja"), ("tool_use", folder / _TOOL_USE)):
        if path.is_file():
            named[name] = _text(path)
    default, tool_use = (
        text if isinstance(text := named.get(name), str) else None for name in ("default", "tool_use")
    )
    return (tool_use, None) if default is None else (default, tool_use)


def _text(path: Path) -> str:
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"chat_template: {path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
