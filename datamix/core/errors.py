"""The errors a person meets. Each says where, what was asked, what was found and what to do.

DatamixError              exit code
├── RecipeError           2   the command line or the recipe is wrong
├── DataError             3   the data is unusable
├── MachineError          4   the machine failed: disk, limits, permissions
├── InternalError         70  a bug in datamix
└── Interrupted           130 stopped by hand; run it again and it continues
"""

from __future__ import annotations

import re

_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")


def mask_url(url: str) -> str:
    """A URL without what may be secret: ``s3://key:pass@host/a?sig=1#t`` -> ``s3://***@host/a?***``.

    Chained URLs of fsspec (``zip://a.csv::https://...``) are masked link by link; ``@revision`` in a path stays.
    """
    if "://" not in url:
        return url
    return "::".join(_mask_link(link) for link in url.split("::"))


def _mask_link(link: str) -> str:
    scheme, separator, rest = link.partition("://")
    address, mark, _ = rest.partition("?") if "?" in rest else rest.partition("#")
    authority, slash, path = address.partition("/")
    if "@" in authority:
        authority = "***@" + authority.rpartition("@")[2]
    return f"{scheme}{separator}{authority}{slash}{path}{mark and mark + '***'}"


def mask_secrets(text: str) -> str:
    """A text with every URL in it masked."""
    return _URL.sub(lambda match: mask_url(match[0]), text) if "://" in text else text


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
    """Stopped by hand; what was finished is kept."""

    exit_code = 130
