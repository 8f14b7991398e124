"""Text to ids, where text can never become a control token: the plain tokenizer and the engines that run it.

The plain tokenizer is the tokenizer.json without its control tokens (``plain_spec``). So ``</s>`` in a text is
encoded as characters, by construction, with byte-level BPE, SentencePiece BPE, Unigram and WordPiece alike.
The remaining check is one table lookup per id.

SentencePiece-like tokenizers put a blank before a text. That is right where a segment begins (at the start,
or after a control token) and wrong where it continues a cut text, so there is a second plain tokenizer
without it.

``tokenizers`` is the reference. ``fastokens`` runs instead where a self-check gives the same ids: fixed hard
strings at the start and the first texts of the data; otherwise ``tokenizers`` runs. The ids are the same
either way. Cost: about 2 million tokens/s and core with tokenizers; 8 to 24 times that with fastokens, which
takes over a second to load (a vocabulary of 150,000 entries; tokenizers a quarter), so that it is loaded where
much is to be encoded, or where much was.
"""

from __future__ import annotations

import re
from collections.abc import Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datamix.core.arrays import offsets_from_lengths
from datamix.core.errors import RecipeError
from datamix.tokenize.long_texts import PIECE_CHARS, LongTexts
from datamix.tokenize.plain_spec import UNSPELLED, ParsedTokenizer, cannot_load
from datamix.tokenize.special_tokens import ControlTokens
from datamix.tokenize.tokenizer_files import TokenizerFiles, parsed_tokenizer

_CHECK_CHARS = 1 << 18  # characters of the data that the self-check reads
_SMALL_CHARS = 3 << 19  # encoded by ``tokenizers`` in about the time that the other engine takes to load


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
        self.long_texts = LongTexts(self._tokenizer)

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

    def __init__(self, parsed: ParsedTokenizer, control: ControlTokens) -> None:
        self._texts = [text for text in (parsed.plain, parsed.continued) if text is not None]
        self._truths = [TokenizersBackend(text) for text in self._texts]
        self.truth = self._truths[0]
        self.restarts_after_control = parsed.restarts_after_control
        self._is_control = np.zeros(parsed.vocab_size, np.bool_)
        unknown = parsed.unknown_id
        self._is_control[[token.id for token in control.tokens if token.id != unknown]] = True
        controls = np.flatnonzero(self._is_control)
        self._control_range = (int(controls[0]), int(controls[-1])) if len(controls) else (1, 0)
        self._hard_strings = hard_strings(control)
        self._chars_to_prove = _CHECK_CHARS
        self._num_chars = 0  # encoded before the fast engine is loaded
        self._loading: Future[list[TokenizerBackend]] | None = None
        self._fast: list[TokenizerBackend] | None = None  # None: not loaded

    def start_fast(self) -> None:
        """Begin to load the fast engine: for seconds, without the interpreter's lock."""
        if self._loading is None:
            background = ThreadPoolExecutor(1)
            self._loading = background.submit(_fast_engines, self._texts)
            background.shutdown(wait=False)

    def wait(self) -> None:
        """Return when the fast engine is loaded."""
        self.start_fast()
        if self._fast is None and self._loading is not None:
            self._fast = self._loading.result()
            self._texts = []  # megabytes

    @property
    def engine(self) -> str:
        """Which engine runs: ``fastokens``, ``tokenizers``, or ``small`` where tokenizers runs because little is encoded."""
        if self._fast is None:
            return "small"
        self._prove([])
        return "fastokens" if self._fast else "tokenizers"

    def encode(self, texts: list[str], begins: list[bool] | None = None) -> FlatIds:
        """Encode texts; ``begins[t]`` is False where text ``t`` continues a cut one (default: all begin)."""
        if max(map(len, texts), default=0) > PIECE_CHARS:
            return self._encode_long(texts, begins or [True] * len(texts))
        return self._encode(texts, begins)

    def _encode_long(self, texts: list[str], begins: list[bool]) -> FlatIds:
        """The same, long texts piece by piece: an engine keeps many bytes for each of a text that it encodes."""
        is_long = np.array([len(text) > PIECE_CHARS for text in texts])
        short = [n for n, long in enumerate(is_long) if not long]
        flat = self._encode([texts[n] for n in short], [begins[n] for n in short])
        ids: list[NDArray[np.int32]] = []
        lengths: list[int] = []
        for text, begin in ((texts[n], begins[n]) for n in np.flatnonzero(is_long)):
            pieces = self.long_texts.cut(text)
            parts = [self._encode([piece], [begin and n == 0]).ids for n, piece in enumerate(pieces)]
            ids += parts
            lengths.append(sum(map(len, parts)))
        long_flat = FlatIds(np.concatenate(ids), offsets_from_lengths(lengths))
        return _interleave(long_flat, flat, is_long)

    @property
    def long_texts(self) -> LongTexts:
        """Cuts the texts that are too long to be encoded whole."""
        return self._truths[-1].long_texts

    def _encode(self, texts: list[str], begins: list[bool] | None) -> FlatIds:
        if self._fast is None:
            self._num_chars += sum(map(len, texts))
            if self._num_chars > _SMALL_CHARS:
                self.wait()
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
        starts: list[int] = []
        at = 0
        for piece in self.long_texts.cut(text):
            backend = self.truth if begins and at == 0 else self._truths[-1]
            starts += [at + start for start in backend.character_starts(piece)]
            at += len(piece)
        return starts

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
            parts = [part for part in re.split(f"({UNSPELLED})", texts[row]) if part]
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
        sample = [t[:_CHECK_CHARS] for t in texts[: int(np.searchsorted(ends, self._chars_to_prove)) + 1]]
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


@dataclass(frozen=True)
class LoadedTokenizer:
    """What all encoders of one tokenizer share."""

    control: ControlTokens
    plain: PlainEncoder
    post_processor: Any  # decides the frame of documents


@lru_cache(maxsize=2)
def load_tokenizer(files: TokenizerFiles) -> LoadedTokenizer:
    """The encoder of a tokenizer, loaded once a process. Raises RecipeError where the library cannot load it."""
    parsed = parsed_tokenizer(files)
    control = parsed.control
    try:
        plain = PlainEncoder(parsed, control)
    except Exception as error:  # the library raises nothing more exact
        raise RecipeError(cannot_load(files.name, error)) from error
    return LoadedTokenizer(control, plain, parsed.post_processor)


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


def whole_texts_notice(name: str, num_whole: int) -> str | None:
    """A line for the user where long texts could not be cut for the tokenizer ``name``."""
    if not num_whole:
        return None
    return (
        f"{num_whole:,} texts of more than {4 * PIECE_CHARS:,} characters were encoded whole, which takes about 150 times their size "
        f"of memory: no safe border for pieces was found in them for the tokenizer {name}."
    )


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
