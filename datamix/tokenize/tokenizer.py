"""Text to ids, where text can never become a control token: the plain tokenizer and the engines that run it.

The plain tokenizer is the tokenizer.json without its control tokens: they are taken out of ``added_tokens``,
their entries in the vocabulary are renamed to strings that no text spells (ids stay), and merges that would
build them are dropped. So ``</s>`` in a text is encoded as characters, by construction, with byte-level BPE,
SentencePiece BPE, Unigram and WordPiece alike. The remaining check is one table lookup per id.

SentencePiece-like tokenizers put a blank before a text. That is right where a segment begins (at the start,
or after a control token) and wrong where it continues a cut text, so there is a second plain tokenizer
without it.

``tokenizers`` is the reference. ``fastokens`` runs instead where a self-check gives the same ids: fixed hard
strings at the start and the first texts of the data; otherwise ``tokenizers`` runs. The ids are the same
either way. Cost: about 2 million tokens/s and core with tokenizers; 8 to 24 times that with fastokens.
"""

from __future__ import annotations

import re
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from datamix.core.arrays import offsets_from_lengths
from datamix.tokenize.special_tokens import ControlTokens, is_layout

_UNSPELLED = "\U0010fffe"  # a noncharacter: renamed vocabulary entries begin and end with it
_CHECK_CHARS = 1 << 18  # characters of the data that the self-check reads


@dataclass(frozen=True)
class FlatIds:
    """The ids of many texts: text ``t`` has ``ids[offsets[t]:offsets[t + 1]]``."""

    ids: NDArray[np.int32]  # [num_ids]
    offsets: NDArray[np.int64]  # [num_texts + 1]


class TokenizerBackend(Protocol):
    """Encodes a batch of texts with one tokenizer, adding nothing."""

    name: str

    def encode(self, texts: list[str]) -> FlatIds: ...


class TokenizersBackend:
    """Hugging Face ``tokenizers``."""

    name = "tokenizers"

    def __init__(self, tokenizer_json: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer_json)

    def encode(self, texts: list[str]) -> FlatIds:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        offsets = offsets_from_lengths([len(encoding) for encoding in encodings])
        ids = np.empty(offsets[-1], np.int32)
        for start, stop, encoding in zip(offsets[:-1].tolist(), offsets[1:].tolist(), encodings, strict=True):
            ids[start:stop] = encoding.ids
        return FlatIds(ids, offsets)

    def character_starts(self, text: str) -> list[int]:
        """Where each token of a text begins, in characters."""
        return [start for start, _ in self._tokenizer.encode(text, add_special_tokens=False).offsets]


class FastokensBackend:
    """``fastokens``, a Rust BPE engine that gives one flat buffer."""

    name = "fastokens"

    def __init__(self, tokenizer_json: str) -> None:
        import fastokens

        self._tokenizer = fastokens.Tokenizer.from_json_str(tokenizer_json)

    def encode(self, texts: list[str]) -> FlatIds:
        ids, offsets = self._tokenizer.encode_batch_flat(texts)
        return FlatIds(
            np.frombuffer(ids, np.uint32).view(np.int32), np.frombuffer(offsets, np.uint64).astype(np.int64)
        )


class PlainEncoder:
    """Encodes text without control tokens, with the fastest engine whose ids prove equal."""

    def __init__(self, spec: dict[str, Any], control: ControlTokens) -> None:
        plain = plain_spec(spec, control)
        continued = without_prefix(plain)
        texts = [_dumped(plain)] if continued == plain else [_dumped(plain), _dumped(continued)]
        background = ThreadPoolExecutor(1)  # it loads for seconds, without the interpreter's lock
        self._loading = background.submit(_fast_engines, texts)
        background.shutdown(wait=False)
        self._truths = [TokenizersBackend(text) for text in texts]
        self.truth = self._truths[0]
        splitters = _steps(plain.get("pre_tokenizer"), "pretokenizers")
        self.restarts_after_control = not any(
            step["type"] == "Metaspace" and step.get("prepend_scheme") == "first" for step in splitters
        )
        self._is_control = np.zeros(vocabulary_size(spec), np.bool_)
        unknown = unknown_id(spec)
        self._is_control[[token.id for token in control.tokens if token.id != unknown]] = True
        controls = np.flatnonzero(self._is_control)
        self._control_range = (int(controls[0]), int(controls[-1])) if len(controls) else (1, 0)
        self._hard_strings = hard_strings(control)
        self._chars_to_prove = _CHECK_CHARS

    @cached_property
    def _fast(self) -> list[TokenizerBackend]:
        return self._loading.result()

    def wait(self) -> None:
        """Return when the fast engine is loaded."""
        _ = self._fast

    @property
    def engine(self) -> str:
        """Which engine runs: ``tokenizers`` or ``fastokens``."""
        self._prove([])
        return "fastokens" if self._fast else "tokenizers"

    def encode(self, texts: list[str], begins: list[bool] | None = None) -> FlatIds:
        """Encode texts; ``begins[t]`` is False where text ``t`` continues a cut one (default: all begin)."""
        self._prove(texts)
        if begins is None or len(self._truths) == 1 or all(begins):
            return self._guarded(texts, 0)
        if not any(begins):
            return self._guarded(texts, 1)
        firsts = self._guarded([text for text, begin in zip(texts, begins, strict=True) if begin], 0)
        others = self._guarded([text for text, begin in zip(texts, begins, strict=True) if not begin], 1)
        return _interleave(firsts, others, np.asarray(begins))

    def character_starts(self, text: str, begins: bool = True) -> list[int]:
        """Where each token of a text begins, in characters; ``begins`` is False where it continues a cut one."""
        return (self.truth if begins else self._truths[-1]).character_starts(text)

    def _guarded(self, texts: list[str], variant: int) -> FlatIds:
        engine: TokenizerBackend = self._fast[variant] if self._fast else self._truths[variant]
        flat = engine.encode(texts)
        # Control ids are mostly a few at one end: comparing with their range costs a tenth of the lookup.
        first, last = self._control_range
        if not ((flat.ids >= first) & (flat.ids <= last)).any():
            return flat
        hits = np.flatnonzero(self._is_control[flat.ids])
        if not len(hits):
            return flat
        # Only texts that spell a renamed entry, noncharacters included, remain: they are encoded one by one.
        lists = [flat.ids[a:b] for a, b in zip(flat.offsets[:-1], flat.offsets[1:], strict=True)]
        for row in np.unique(np.searchsorted(flat.offsets, hits, side="right") - 1).tolist():
            parts = [part for part in re.split(f"({_UNSPELLED})", texts[row]) if part]
            lists[row] = self._truths[-1].encode(parts).ids
        offsets = offsets_from_lengths([len(ids) for ids in lists])
        return FlatIds(np.concatenate(lists), offsets)

    def _prove(self, texts: list[str]) -> None:
        """Check the fast engine on the hard strings and the first texts of the data; drop it if ids differ.

        Not when it is loaded: engines that have run hold threads, which workers forked afterwards would miss.
        """
        if not self._fast or (self._chars_to_prove <= 0 and not self._hard_strings):
            return
        ends = np.cumsum([len(text) for text in texts])
        sample = texts[: int(np.searchsorted(ends, self._chars_to_prove)) + 1]
        self._chars_to_prove -= sum(map(len, sample))
        if not self._agree(self._fast, [*self._hard_strings, *sample]):
            self._fast = []
        self._hard_strings = []

    def _agree(self, engines: list[TokenizerBackend], texts: list[str]) -> bool:
        for truth, engine in zip(self._truths, engines, strict=True):
            try:
                actual = engine.encode(texts)
            except BaseException as error:
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                return False
            expected = truth.encode(texts)
            same_offsets = np.array_equal(expected.offsets, actual.offsets)
            if not (same_offsets and np.array_equal(expected.ids, actual.ids)):
                return False
        return True


def _fast_engines(texts: list[str]) -> list[TokenizerBackend]:
    """The fast engine for each tokenizer.json; empty where it is not installed or cannot load one of them."""
    try:
        return [FastokensBackend(text) for text in texts]
    except ImportError:
        return []
    except BaseException as error:  # a panic in Rust is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return []


def slow_engine_notice(engines: Set[str] = frozenset()) -> str | None:
    """A line for the user where ``fastokens`` is missing, or where it was not used although it is there.

    ``engines``: those that encoded; empty before anything was encoded.
    """
    if find_spec("fastokens") is None:
        if engines:
            return None  # the notice was printed before
        return (
            "fastokens is not installed, so tokenizers encodes: the same ids, several times slower. "
            "`pip install fastokens` where your platform has a wheel."
        )
    if "tokenizers" not in engines:
        return None
    return (
        "fastokens cannot stand in for this tokenizer, so tokenizers encoded: the same ids, "
        "several times slower."
    )


def _dumped(spec: dict[str, Any]) -> str:
    return orjson.dumps(spec).decode()


def vocabulary_size(spec: dict[str, Any]) -> int:
    """Largest id + 1 of a parsed tokenizer.json."""
    vocab = spec["model"]["vocab"]
    largest = len(vocab) - 1 if isinstance(vocab, list) else max(vocab.values(), default=-1)
    return max([int(largest), *(int(token["id"]) for token in spec.get("added_tokens") or [])]) + 1


def plain_spec(spec: dict[str, Any], control: ControlTokens) -> dict[str, Any]:
    """The parsed tokenizer.json with its control tokens taken out: same ids, but no text spells them."""
    names = {token.text: f"{_UNSPELLED}{token.id}{_UNSPELLED}" for token in control.tokens}
    model = dict(spec["model"])
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [[names.get(text, text), score] for text, score in vocab]
    else:
        model["vocab"] = {names.get(text, text): index for text, index in vocab.items()}
        if model.get("unk_token") is not None:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model and not names.keys().isdisjoint(vocab):
        model["merges"] = [merge for merge in model["merges"] if names.keys().isdisjoint(_parts(merge))]
    layout = [token for token in spec.get("added_tokens") or [] if is_layout(token)]
    return {
        **spec,
        "model": model,
        "added_tokens": layout,
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _parts(merge: str | list[str]) -> tuple[str, str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right


def unknown_id(spec: dict[str, Any]) -> int | None:
    """The id of the unknown token, None where there is none."""
    model = spec["model"]
    if isinstance(model["vocab"], list):
        unknown = model.get("unk_id")
        return unknown if isinstance(unknown, int) else None
    name = model.get("unk_token")
    unknown = model["vocab"].get(name) if name is not None else None
    return unknown if isinstance(unknown, int) else None


def without_prefix(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec for a text that continues another: no blank is put before it."""
    normalizer = _steps(spec.get("normalizer"), "normalizers")
    splitters = _steps(spec.get("pre_tokenizer"), "pretokenizers")
    without_prepend = [step for step in normalizer if step["type"] != "Prepend"]
    drops_blanks = any(
        step["type"] in ("WhitespaceSplit", "Whitespace", "BertPreTokenizer") for step in splitters
    )
    if not drops_blanks:
        splitters = [_unprefixed(step) for step in splitters]
    changed = dict(spec)
    if len(without_prepend) != len(normalizer):
        sequence = {"type": "Sequence", "normalizers": without_prepend}
        changed["normalizer"] = sequence if without_prepend else None
    if splitters != _steps(spec.get("pre_tokenizer"), "pretokenizers"):
        changed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": splitters}
    return changed


def _steps(node: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if node is None:
        return []
    if node["type"] == "Sequence":
        return [step for inner in node[name] for step in _steps(inner, name)]
    return [node]


def _unprefixed(step: dict[str, Any]) -> dict[str, Any]:
    if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
        changed = {key: value for key, value in step.items() if key != "add_prefix_space"}
        return {**changed, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
        return {**step, "add_prefix_space": False}
    return step


def _interleave(firsts: FlatIds, others: FlatIds, begins: NDArray[np.bool_]) -> FlatIds:
    lengths = np.empty(len(begins), np.int64)
    lengths[begins] = np.diff(firsts.offsets)
    lengths[~begins] = np.diff(others.offsets)
    offsets = offsets_from_lengths(lengths)
    is_first = np.repeat(begins, lengths)
    ids = np.empty(offsets[-1], np.int32)
    ids[is_first] = firsts.ids
    ids[~is_first] = others.ids
    return FlatIds(ids, offsets)


def hard_strings(control: ControlTokens) -> list[str]:
    """Strings on which engines tend to differ: scripts, blanks, digits, emoji, literals, rare characters."""
    words = [
        "The quick brown fox's 3rd jump, they'll see; WE'VE 12345 x86_64.",
        "中文分词测试，标点。数字１２３和English混排！",
        "日本語のテキスト、カタカナ、ｶﾞ", "한국어 텍스트 조합 ᄒᆞᆫ", "Привет, мир", "مرحبا بالعالم ١٢٣", "שָׁלוֹם", "नमस्ते दुनिया क्‍ष",
        "สวัสดี", "ελληνικά ΐ", "Ａｂｃ ﬁ ﬀ ½ ² ㎏ Ⅷ", "e\u0301 é A\u030a Å ẛ̣", "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇨🇳", "𝔘𝔫𝔦 𐍈 𠜎𪚥",
        "\u200b\u200d\ufeff\u2060\xad", "\x00\x01\x1f\x7f\x85\xa0\u2028\u2029\u3000", "<0x0A>▁▁ ▁a", "def f(x):\n\treturn  x\r\n",
    ]  # fmt: skip
    blanks = [" ", "  ", "\n", "\n\n", " \n ", "\t", "\r\n", "   \n\n\t ", "\xa0", "\u3000", ""]
    mixed = [
        blank + word + other for word in words for blank, other in zip(blanks, blanks[::-1], strict=True)
    ]
    literals = [
        f"{before}{token.text}{after}"
        for token in control.tokens[:500]
        for before, after in (("", ""), ("a ", "b"))
    ]
    codes = [code for code in range(0, 0x110000, 97) if not 0xD800 <= code < 0xE000]
    rare = ["".join(map(chr, codes[at : at + 12])) for at in range(0, len(codes), 12)]
    return [*blanks, *mixed, *literals, *rare]


class CachedEncoder(PlainEncoder):
    """The encoder ``plain``, with a cache of the ids of each text."""

    def __init__(self, plain: PlainEncoder) -> None:
        self._plain = plain  # shared, so its engine is not checked again
        self.restarts_after_control = plain.restarts_after_control
        self._ids: dict[tuple[str, bool], NDArray[np.int32]] = {}
        self._starts: dict[tuple[str, bool], list[int]] = {}

    def encode(self, texts: list[str], begins: list[bool] | None = None) -> FlatIds:
        """The same as ``PlainEncoder.encode``."""
        keys = list(zip(texts, begins or [True] * len(texts), strict=True))
        new = [key for key in dict.fromkeys(keys) if key not in self._ids]
        flat = self._plain.encode([text for text, _ in new], [begins for _, begins in new])
        for key, start, stop in zip(new, flat.offsets[:-1].tolist(), flat.offsets[1:].tolist(), strict=True):
            self._ids[key] = flat.ids[start:stop]
        lists = [self._ids[key] for key in keys]
        offsets = offsets_from_lengths([len(ids) for ids in lists])
        return FlatIds(np.concatenate([np.empty(0, np.int32), *lists]), offsets)

    def character_starts(self, text: str, begins: bool = True) -> list[int]:
        """The same as ``PlainEncoder.character_starts``."""
        if (text, begins) not in self._starts:
            self._starts[text, begins] = self._plain.character_starts(text, begins)
        return self._starts[text, begins]
