"""Judge what a fault did: how the command ended, what it left, and what a rerun makes of it."""

from __future__ import annotations

import json
import re

from faults.bench import Bench, Ended
from faults.commands import BUILD, Command
from faults.project import contents, unfinished

OTHER_CACHE = "out/cache"
ELSEWHERE = "out/other"  # where a rerun writes that does what an error advises
_NAMES_PLACE = re.compile("with -o|[Cc]hoose another (name|folder|place)")
STOPPED = "OK clear error, same bytes after a rerun"


def checked(bench: Bench, command: Command, ended: Ended, codes: set[int]) -> str:
    """What is wrong with a command that met a fault: with its end, with what it made, or with what a rerun makes."""
    if fault := wrong_end(ended, codes):
        return fault
    if ended.code == 0 and (different := differences(bench, command)):
        if command.tells and command.tells in (bench.root / command.made[0]).read_text(encoding="utf-8"):
            return finish(bench, command) or "OK went on, and said what it left out"
        return f"success with other bytes: {different}: {ended.said[-500:]}"
    return resumed(bench, command) or (STOPPED if ended.code else "OK went on, same bytes")


def resumed(bench: Bench, command: Command) -> str:
    """What is wrong with what a stopped command left, or with a rerun."""
    return half_done(bench, command) or finish(bench, command)


def wrong_end(ended: Ended, codes: set[int]) -> str:
    """What is wrong with an end, with the words that were said; empty where nothing is."""
    fault = complaint(ended) or ("" if ended.code in codes else f"exit code {ended.code}")
    return fault and f"{fault}: {ended.said[-1500:]}"


def finish(bench: Bench, command: Command, words: tuple[str, ...] | None = None) -> str:
    """Run the command again, do what its error advises, and say what is wrong then: empty where all is well."""
    words, steps = words or command.spelled(1), list[str]()
    for _ in range(4):
        ended = bench.run(words, is_watched=False)
        steps.append(f"{' '.join(words)}: {ended.code} {ended.said.strip()[-600:]}")
        if ended.code == 0:
            break
        if fault := complaint(ended):
            return f"{fault} on the rerun: {steps}"
        if ended.code == 2 and "--overwrite" in ended.said and "--overwrite" not in words:
            words = (*words, "--overwrite")
        elif ended.code == 3 and "datamix build" in ended.said:
            built = bench.run((*BUILD, "--workers", "1"), is_watched=False)
            steps.append(f"build: {built.code} {built.said.strip()[-600:]}")
        elif (
            ended.code in (2, 4)
            and "-o" in words
            and ELSEWHERE not in words
            and _NAMES_PLACE.search(ended.said)
        ):
            words = tuple(
                ELSEWHERE if before == "-o" else word
                for before, word in zip(("", *words), words, strict=False)
            )
        else:
            return f"the advice does not help: {steps}"
    else:
        return f"does not get there: {steps}"
    place = command.words[command.words.index("-o") + 1] if ELSEWHERE in words else ""
    if different := differences(bench, command, place):
        return f"other bytes after a rerun: {different}: {steps}"
    if left := unfinished(bench.root):
        return f"left behind: {left[:5]}: {steps}"
    if changed := [name for name in bench.user.changes() if not name.startswith((ELSEWHERE, OTHER_CACHE))]:
        return f"files of the user changed: {changed[:5]}: {steps}"
    return ""


def half_done(bench: Bench, command: Command) -> str:
    """What a stopped command left that is neither as before nor whole: a file, or a set whose manifest lists what is not there."""
    calm, now = bench.calm(command).contents, contents(bench.root, command.made)
    for made in command.made:
        manifest = bench.root / made / "manifest.json"
        if manifest.is_file():
            listed = {
                f"{made}/{e['path']}": e["sha256"] for e in json.loads(manifest.read_bytes())["outputs"]
            }
            if broken := [name for name, digest in listed.items() if now.get(name) != digest]:
                return f"a manifest over files that are not there: {broken[:5]}"
    is_set = any(name.endswith("/manifest.json") for name in calm)
    half = [
        name
        for name, digest in now.items()
        if not is_set and "/.datamix-" not in name and digest not in (bench.old.get(name), calm.get(name))
    ]
    return f"half-written: {half}" if half else ""


def differences(bench: Bench, command: Command, moved_from: str = "") -> list[str]:
    """Files that are not as the command makes them, where it made them at ``moved_from`` or elsewhere instead.

    Files of ours that somebody changed may be there under a name with ``.yours``, and drafts: ``unfinished`` looks for those.
    """
    place = moved_from or ELSEWHERE
    made = tuple(name.replace(place, ELSEWHERE, 1) for name in command.made)
    here = {name.replace(ELSEWHERE, place, 1): digest for name, digest in contents(bench.root, made).items()}
    calm = bench.calm(command).contents
    different = {name for name in {*here, *calm} if here.get(name) != calm.get(name)}
    different -= bench.user.inside if moved_from else set()  # they stay where they were
    return sorted(name for name in different if ".yours" not in name and "/.datamix-" not in name)[:5]


def complaint(ended: Ended) -> str:
    """What is wrong with how a command ended: a bug of ours, a traceback, no word, more than a paragraph."""
    said = re.sub(r"^(?:\d+/\d+ )?\w+ +done in .*$\n?", "", ended.said, flags=re.MULTILINE).strip()
    if "HANGS" in said:
        return "hangs"
    if "Traceback" in said:
        return "a traceback"
    if ended.code < 0:
        return f"died of signal {-ended.code}"
    if ended.code not in (0, 1, 2, 3, 4, 129, 130, 143):
        return f"exit code {ended.code}"
    if ended.code and "datamix: " not in said:
        return "no error message"
    return ""
