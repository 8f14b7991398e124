"""The commands that write, as a table: a new one is a new row."""

from __future__ import annotations

from dataclasses import dataclass

BUILD = ("build", "recipe.yaml", "-o", "out/set")
ONE = ("--workers", "1")


@dataclass(frozen=True)
class Command:
    """A command in the project of ``project.py``, where it is run after the commands ``before``.

    ``made``: what it writes, which must have the same bytes however often it was stopped. ``inside``: its set, in which lie
    files of the user as well. ``has_workers``: whether it starts processes.
    """

    name: str
    words: tuple[str, ...]
    made: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    inside: str = ""
    has_workers: bool = False
    tells: str = ""  # the words in what it makes that say what of the inputs is left out
    is_in_short: bool = True

    @property
    def makes_folder(self) -> bool:
        """Whether it makes a folder where there is none."""
        return "-o" in self.words and not self.before and "." not in self.made[0].rsplit("/", 1)[-1]

    def spelled(self, num_workers: int) -> tuple[str, ...]:
        """The command line with a number of workers."""
        return (*self.words, "--workers", str(num_workers)) if self.has_workers else self.words


COMMANDS = [
    Command("build", BUILD, ("out/set",), has_workers=True),
    Command(
        "replace",
        (*BUILD, "--overwrite"),
        ("out/set",),
        before=((*BUILD, "--set", "seed=7", *ONE),),
        inside="out/set",
        has_workers=True,
    ),
    Command(
        "sweep",
        ("sweep", "recipe.yaml", "--vary", "general=0.3,0.6", "-o", "out/ladder"),
        ("out/ladder-general-0.3", "out/ladder-general-0.6"),
        has_workers=True,
    ),
    Command(
        "export",
        ("export", "out/set", "--to", "mds", "llamafactory"),
        ("out/set",),
        before=((*BUILD, *ONE),),
        inside="out/set",
        has_workers=True,
    ),
    Command(
        "export again",
        ("export", "out/set", "--to", "mds", "jsonl"),
        ("out/set",),
        before=((*BUILD, *ONE), ("export", "out/set", "--to", "mds:shard_bytes=4096", "jsonl", *ONE)),
        inside="out/set",
        has_workers=True,
    ),
    Command(
        "report",
        ("report", "out/set", "--language", "zh"),
        ("out/set",),
        before=((*BUILD, *ONE),),
        inside="out/set",
    ),
    Command(
        "convert", ("convert", "raw/general.jsonl", "out/general.csv", "--to", "alpaca"), ("out/general.csv",)
    ),
    Command(
        "convert again",
        ("convert", "raw/medical.jsonl", "out/rows.parquet", "--to", "messages", "--overwrite"),
        ("out/rows.parquet",),
        before=(("convert", "raw/general.jsonl", "out/rows.parquet", "--to", "messages"),),
    ),
    Command(
        "dedupe",
        ("dedupe", "raw/general.jsonl", "raw/medical.jsonl", "-o", "out/unique"),
        ("out/unique",),
    ),
    Command("init", ("init", "raw", "-o", "out/recipe.yaml"), ("out/recipe.yaml",), tells="# Not used:"),
    Command(
        "exclude",
        ("exclude", "out/set", "--by", "leave-out.jsonl"),
        ("out/set",),
        before=((*BUILD, *ONE), ("export", "out/set", "--to", "jsonl", *ONE)),
        inside="out/set",
        has_workers=True,
        is_in_short=False,  # stopped while files move, it leaves no manifest: a build and the exports come before the rerun
    ),
    Command(
        "score",
        ("score", "raw/general.jsonl", "--by", "dsir:raw/medical.jsonl", "-o", "out/scores.parquet"),
        ("out/scores.parquet",),
        has_workers=True,
    ),
    Command(
        "prune",
        ("cache", "--prune", "--cache", "out/.datamix"),
        ("out/set",),
        before=((*BUILD, "--set", "seed=7", *ONE), (*BUILD, "--overwrite", *ONE)),
        inside="out/set",
    ),
]
BY_NAME = {command.name: command for command in COMMANDS}
