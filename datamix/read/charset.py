"""Which encoding a file's head is in, where the recipe does not name one.

In this order: a byte order mark; UTF-16 by where its zeros are; UTF-8 by being valid (or by more valid than
broken sequences: a few bad bytes are bad records, not another encoding); Chinese by how many of its
characters are among the commonest, which decides between GB18030 and Big5 on a dozen characters and never
takes one for the other; Japanese by its kana; Latin-1 and Windows-1252 by accents between letters; and
charset-normalizer, among few candidates, for the rest.
"""

from __future__ import annotations

import codecs
import re

from datamix.core.errors import DataError

_COMMON = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去"
    "法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关"
    "点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通"
    "教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计管期"
    "市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边"
    "死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运"
    "個們來為國說時會對於過發後裡種經麼學現當沒動還進樣開從實無長機關點業間問並應戰頭體見產話給門兒東聲員論處義條氣題爾別變總電數報"
    "結務場計資統區隊書聽達強難權設記類據邊張該規萬術領確傳師觀讓識帶導爭運請謝嗎這醫藥嗎谢请吗医药病症痛疗您"
    "，。、！？：；“”（）《》「」"
)
_CHINESE = ("gb18030", "big5")
_JAPANESE = ("shift_jis", "euc_jp")
_OTHERS = ["shift_jis", "euc_jp", "cp949", "cp1251", "koi8_r", "cp1252", "cp1250", "gb18030", "big5"]
_SAMPLE_BYTES = 64 << 10  # from the first byte that is not ASCII
_ENOUGH_COMMON = 0.2  # of running Chinese text it is 0.5 or more, of the wrong decoding 0.05 or less
_ENOUGH_KANA = 0.3  # of Japanese text about half is
_WITHOUT_QUOTES = bytes(39 if b in b"\x85\x91\x92\x93\x94\x95\x96\x97\xa0\xab\xbb" else b for b in range(256))
_ESCAPED = re.compile("[\udc80-\udcff]")


def detect_encoding(head: bytes, path: str) -> str:
    """The codec's name: utf-8, utf-8-sig, utf-16-le, utf-16-be, gb18030, big5, cp1252, latin-1, ...

    Raises DataError for UTF-32.
    """
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        raise DataError(f"{path}: is UTF-32, which is not read. Save it as UTF-8.")
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le"
    if head.startswith(codecs.BOM_UTF16_BE):
        return "utf-16-be"
    if head.startswith(b"\x841\x953"):
        return "gb18030"
    if head.isascii():
        return _utf16_by_zeros(head) or "utf-8"
    known = _utf16_by_zeros(head)
    if known is not None:
        return known
    text = _decoded(head, "utf-8")
    broken = len(_ESCAPED.findall(text))
    if broken == 0 or sum(1 for c in text if c >= "\x80") > 2 * broken:
        return "utf-8"
    first = next(re.finditer(rb"[\x80-\xff]", head)).start()
    return _legacy(head[first : first + _SAMPLE_BYTES])


def _utf16_by_zeros(head: bytes) -> str | None:
    if b"\x00" not in head:
        return None
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) * 10 < len(head[0::2]) or min(even, odd) * 20 > max(even, odd):
        return None
    encoding = "utf-16-be" if even > odd else "utf-16-le"
    try:
        head[: len(head) // 2 * 2 - 2].decode(encoding)
    except UnicodeDecodeError:
        return None
    return encoding


def other_encoding(raw: bytes, codec: str) -> str | None:
    """The encoding of a record in a file of another: a line of it is UTF-8, or it is Chinese in a UTF-8 file.

    Mixed files are made by joining files. GBK reads most lines of UTF-8 as other characters, without an error.
    """
    if codec == "utf-8":
        return _chinese(raw)
    for line in raw.split(b"\n"):
        try:  # nearly all lines of another encoding fail at their first character
            text = "" if line.isascii() else line.decode()
        except UnicodeDecodeError:
            continue
        if text and (codec not in _CHINESE or _common_share(text) > _common_share(_decoded(line, codec))):
            return "utf-8"
    return None


def _chinese(sample: bytes) -> str | None:
    shares = {encoding: _common_share(_decoded(sample, encoding)) for encoding in _CHINESE}
    best = max(_CHINESE, key=lambda encoding: shares[encoding])
    return best if shares[best] >= _ENOUGH_COMMON else None


def _common_share(text: str) -> float:
    foreign = [c for c in text if c >= "\x80"]
    return sum(c in _COMMON for c in foreign) / max(len(foreign), 1)


def _legacy(sample: bytes) -> str:
    """The encoding of text that is not Unicode."""
    chinese = _chinese(sample)
    if chinese is not None:
        return chinese
    for encoding in _JAPANESE:
        foreign = [c for c in _decoded(sample, encoding) if c >= "\x80"]
        if sum("\u3041" <= c <= "\u30ff" for c in foreign) >= _ENOUGH_KANA * len(foreign):
            return encoding
    letters = sample.translate(_WITHOUT_QUOTES)
    high = len(re.findall(rb"[\x80-\xff]", letters))
    alone = len(re.findall(rb"(?<![\x80-\xff])[\xc0-\xff](?![\x80-\xff])", letters))
    if alone * 4 >= high * 3:  # accents between ASCII letters
        if re.search(rb"[\x80-\x9f]", sample) is None:
            return "latin-1"
        if re.search(rb"[\x81\x8d\x8f\x90\x9d]", sample) is None:
            return "cp1252"
    from charset_normalizer import from_bytes  # slow to import, and seldom needed

    match = from_bytes(sample, cp_isolation=_OTHERS, enable_fallback=False).best()
    return match.encoding if match is not None else "utf-8"


def _decoded(head: bytes, encoding: str) -> str:
    """The head as text; what does not decode becomes lone surrogates, but for a character cut at its end."""
    return codecs.getincrementaldecoder(encoding)("surrogateescape").decode(head)
