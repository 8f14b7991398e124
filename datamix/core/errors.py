"""The errors a person meets. Each says where, what was asked, what was found and what to do.

DatamixError              exit code
├── RecipeError           2   the command line or the recipe is wrong
├── DataError             3   the data is unusable
├── MachineError          4   the machine failed: disk, limits, permissions
├── InternalError         70  a bug in datamix
└── Interrupted           130 stopped by Ctrl-C (129 by SIGHUP, 143 by SIGTERM); run it again and it continues
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from urllib.parse import unquote

_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s'\"<>]|['\"](?=[^\s'\"<>/]*@))+")
_PORT = re.compile(r"\[.*\](:\d*)?|[^:]*(:\d*)?")
_QUERY = re.compile(r"\?(?=[\w.~%\[\]-]+=)|#")  # elsewhere `?` is a glob's
_WEB_QUERY = re.compile(r"[?#]")
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_SIGNS = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
    **{code: f"<U+{code:04X}>" for code in _DIRECTIONS},
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),  # bytes of a file name that are not UTF-8
}


def mask_url(url: str) -> str:
    """A URL without what may be secret: ``s3://key:pass@host/a?sig=1#t`` -> ``s3://***@host/a?***``.

    Chained URLs of fsspec (``zip://a.csv::https://...``) are masked link by link; ``@revision`` in a path
    stays, and so does a ``?`` that is part of a glob.
    """
    if "://" not in url:
        return url
    masked = []
    for link in _links(url):
        scheme, user, address, query = _parts(link)
        masked.append(f"{scheme}{user and '***@'}{address}{query[:1]}{query and '***'}")
    return "::".join(masked)


def shown_name(path: str) -> str:
    """The name of a file or URL for a sentence: secrets masked, on one line whatever is in it."""
    return visible(mask_url(path)).translate({9: "\u2409", 10: "\u240a"})


def _links(url: str) -> list[str]:
    """The links of a chained URL; ``::`` within a query is part of the query."""
    links: list[str] = []
    for part in url.split("::"):
        if links and re.search("[?#]", links[-1]) and "://" not in part:
            links[-1] += "::" + part
        else:
            links.append(part)
    return links


def _parts(link: str) -> tuple[str, str, str, str]:
    """Scheme with ``://``, user and password, host and path, and query and fragment with their mark."""
    scheme, separator, rest = link.partition("://")
    if not separator:
        return "", "", link, ""
    user = ""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        user = authority.rpartition("@")[0]
    elif "@" in rest and not _PORT.fullmatch(authority):  # a password with `/`, `?` or `#` in it
        user = rest.partition("@")[0]
    rest = rest[len(user) + 1 :] if user else rest.removeprefix("@")
    mark = (_WEB_QUERY if scheme.lower() in ("http", "https") else _QUERY).search(rest)
    end = mark.start() if mark else len(rest)
    return scheme + separator, user, rest[:end], rest[end:]


def mask_secrets(text: str, url: str = "") -> str:
    """A text with every URL in it masked, and what is secret in ``url`` wherever it is quoted: storages quote
    parts.

    Values shorter than five characters are ordinary text as well.
    """
    secrets: set[str] = set()
    for link in _links(url) if "://" in url else ():
        _, user, _, query = _parts(link)
        password = user.partition(":")[2] or user
        values = [pair.partition("=")[2] or pair for pair in re.split("[?&#]", query)]
        secrets |= {user, query[1:], *(value for value in (password, *values) if len(value) >= 5)}
    forms = {form for secret in secrets if len(secret) >= 3 for form in (secret, unquote(secret))}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")

    def mask(match: re.Match[str]) -> str:
        address = match[0].rstrip(".,;:!)")  # the sentence's
        return mask_url(address) + match[0][len(address) :]

    return _URL.sub(mask, text) if "://" in text else text


def visible(text: str) -> str:
    """Text that cannot control a terminal or a page: control and direction characters are shown as signs.

    Names of files and fields come from data; line ends and tabs stay.
    """
    return text.translate(_SIGNS)


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The closest of ``names`` to ``word``, if any is close; case, ``_`` and ``-`` do not count."""
    plain = {re.sub("[_-]", "", name.lower()): name for name in names}
    close = difflib.get_close_matches(re.sub("[_-]", "", word.lower()), plain, n=1, cutoff=0.6)
    return plain[close[0]] if close else None


class DatamixError(Exception):
    """An expected failure, one paragraph on stderr; URLs in it are masked."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(mask_secrets(message))


class RecipeError(DatamixError):
    """The command line or the recipe is wrong; nothing was built."""

    exit_code = 2


class DataError(DatamixError):
    """The data is unusable: too many bad records, an empty source, an unreadable file."""

    exit_code = 3


class MachineError(DatamixError):
    """The machine failed: disk, limits, permissions. What was finished is saved."""

    exit_code = 4


class InternalError(DatamixError):
    """A bug in datamix."""

    exit_code = 70


class Interrupted(DatamixError):
    """Stopped by a signal; what was finished is saved."""

    exit_code = 130

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
