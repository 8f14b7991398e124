"""The errors a person meets. Each says where, what was asked, what was found and what to do.

DatamixError              exit code
├── CheckError            1   a check found something
├── RecipeError           2   the command line or the recipe is wrong
├── DataError             3   the data is unusable
└── Interrupted           130 stopped by hand; run it again and it continues
"""

from __future__ import annotations


class DatamixError(Exception):
    """An expected failure, told in one paragraph on stderr."""

    exit_code = 1


class CheckError(DatamixError):
    """A check (``verify``, ``check``) found something."""


class RecipeError(DatamixError):
    """The command line or the recipe is wrong; nothing was built."""

    exit_code = 2


class DataError(DatamixError):
    """The data is unusable: too many bad records, an empty source, an unreadable file."""

    exit_code = 3


class Interrupted(DatamixError):
    """Stopped by hand; what was finished is kept."""

    exit_code = 130
