"""Which small files share a task, so that a changed file costs itself and few neighbours: content-defined borders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash


def group_files(identities: Sequence[str], weights: Sequence[int], limit: int) -> list[range]:
    """Which small files share a task: ranges that cover the files in order, of at most ``limit`` each or a single file.

    ``group_files("abc", [3, 3, 9], limit=6) == [range(0, 2), range(2, 3)]``

    Filling groups in order up to a limit moves every later border when one file is added, and every later task is done
    again. Here a range of files heavier than the limit is split at the border with the lowest hash, and so on down: a
    Cartesian tree over hashed borders, cut where its ranges fit. The hash of a border is that of the two files beside it, so
    that moving or renaming a folder moves no border.

    Bound: adding, changing or deleting one file makes new groups only of files directly before it that weigh at most the
    limit together, of files directly after it that do so, and of the file itself. Proof: a range of the tree is a longest run
    of borders above some hash, so the edit alters only ranges that hold its place or end there; and a group that was merged
    into a larger one, or is parted from it, is in a group at that place. All these groups are ranges that meet at one place
    and weigh at most the limit. (Exception: another file put inside a run of equal ones, whose later copies are counted anew.)

    Groups weigh about half the limit on average. Cost: O(files * log(groups)), about 1 us a file.
    Sources: Vuillemin, A unifying look at data structures, 1980; content-defined chunking: Muthitacharoen et al., LBFS, 2001.
    """
    totals = np.cumsum([0, *weights])
    hashes = np.empty(len(identities), np.uint64)  # of the border before each file
    previous, copies = "", 0
    for index, identity in enumerate(identities):
        copies = (
            copies + 1 if identity == previous else 0
        )  # else the borders of copies in a row would be equal
        hashes[index] = xxhash.xxh3_64_intdigest(f"{previous} {identity} {copies}".encode())
        previous = identity
    groups: list[range] = []
    ranges = [(0, len(identities))] if identities else []
    while ranges:
        start, stop = ranges.pop()
        if stop - start == 1 or totals[stop] - totals[start] <= limit:
            groups.append(range(start, stop))
            continue
        border = start + 1 + int(hashes[start + 1 : stop].argmin())
        ranges += [(border, stop), (start, border)]
    return groups
