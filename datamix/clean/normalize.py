"""Make equal text equal: Unicode normal form, mojibake, control characters, whitespace.

Runs on whole Arrow columns (utf8proc, RE2); only mojibake repair goes through Python, and there only the
texts that hold anything but ASCII. Nothing that carries meaning in Chinese text is touched: full-width
punctuation and curly quotes stay (unless NFKC is asked for), ideographic spaces stay inside a line. Sources:
Unicode Standard Annex #15; ftfy (Speer, 2019, zenodo.2591652).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from datamix.clean.fields import replace_matching

# RE2. Terminal colours are removed as a whole, or "[31m" would remain; NEL (U+0085) is a line end, not
# rubbish. Beside the controls: the byte order mark, interlinear marks and code points that Unicode will never
# use for characters.
_CONTROL = (
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{84}\x{86}-\x{9f}"
    r"\x{feff}\x{fff9}-\x{fffb}\x{fdd0}-\x{fdef}\x{fffe}\x{ffff}]"
)
_BLANK = r"[ \t\x{a0}\x{1680}\x{2000}-\x{200a}\x{202f}\x{205f}\x{3000}]"
_WHITESPACE = (
    (r"\r\n?|[\x0b\x0c\x{85}\x{2028}\x{2029}]", "\n"),
    (r"[\x{a0}\x{2000}-\x{200a}\x{202f}\x{205f}]", " "),  # U+3000 is how Chinese indents: stays
    (_BLANK + r"+\n", "\n"),
    (r"\n{3,}", "\n\n"),
    (r"\A(?:" + _BLANK + r"*\n)+", ""),  # blank first lines; the indent of the first word stays
    (r"(?:" + _BLANK + r"|\n)+\z", ""),
)
_MIN_MOJIBAKE_CHARS = 3  # a shorter line that happens to fit both encodings proves nothing


@dataclass(frozen=True)
class Normalize:
    """Options of ``normalize``."""

    unicode: Literal["NFC", "NFKC", "none"] = "NFC"
    ftfy: bool = False  # repair text decoded with the wrong encoding
    whitespace: bool = False  # line ends, trailing blanks, runs of empty lines; indentation stays
    control: bool = True  # remove control characters and terminal colours; tabs and line ends stay


def normalize(texts: pa.Array, options: Normalize) -> pa.Array:
    """Normalize a column of texts; null stays null.

    ``"cafe\\u0301\\x00"`` gives ``"caf\\u00e9"``; with ``ftfy`` ``"sÃ³lo"`` gives ``"sólo"`` and ``"鍖荤敓鎮ㄥソ"``
    gives ``"医生您好"``; with ``whitespace`` ``"a \\r\\n\\n\\n\\nb"`` gives ``"a\\n\\nb"``.
    """
    if options.ftfy:
        texts = _repair_mojibake(texts)
    if options.control:
        texts = pc.replace_substring_regex(texts, pattern=_CONTROL, replacement="")
    if options.unicode != "none" and not pc.all(pc.string_is_ascii(texts)).as_py():
        texts = pc.utf8_normalize(texts, form=options.unicode)
    if options.whitespace:
        for pattern, replacement in _WHITESPACE:
            texts = pc.replace_substring_regex(texts, pattern=pattern, replacement=replacement)
    return texts


def _repair_mojibake(texts: pa.Array) -> pa.Array:
    from ftfy import TextFixerConfig, fix_text  # heavy, and an option

    # Broken encodings alone: quotes, widths, entities and line ends are the business of other options.
    config = TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        normalization=None,
    )

    def repair(text: str) -> str:
        if any("\u4e00" <= c <= "\u9fff" for c in text):
            text = "\n".join(_from_gbk(line) for line in text.split("\n"))
        return fix_text(text, config)

    return replace_matching(texts, r"[^\x00-\x7f]", repair)


def _from_gbk(line: str) -> str:
    """Undo UTF-8 that was read as GBK, where the whole line fits: ``"鍖荤敓鎮ㄥソ"`` -> ``"医生您好"``.

    Real Chinese in GB18030 is practically never well-formed UTF-8, so that it fits is the proof.
    """
    try:
        decoded = line.encode("gb18030").decode("utf-8")
    except UnicodeError:
        return line
    num_non_ascii = sum(c > "\x7f" for c in decoded)
    return decoded if len(decoded) < len(line) and num_non_ascii >= _MIN_MOJIBAKE_CHARS else line
