"""Kernels: words of UTF-8 text as 64-bit hashes, and n-grams of words (shingles), straight from Arrow
buffers.

The idea: a text is copied through a window of 32 KiB that stays in the second-level cache, 64 bytes at a time
become one bit mask of "may belong to a word" (SIMD), and only the edges of the mask are read. ASCII words are
hashed eight bytes at a time, up to 16 without a branch; runs that hold other characters are decoded one by
one against the alphabet. About 12 ns a word on a busy core.

A text is read at its address, so nothing is copied out of memory-mapped files; memory is one scratch a
thread, whatever the length of the text. A run of more than 32 KiB without a separator counts as several
words.
"""

from __future__ import annotations

from numba import int64, uint8, uint32, uint64

from datamix.core.jit import inline, kernel
from datamix.dedup.kernels import SINGLE, WINDOW_BYTES, WORD
from datamix.dedup.kernels.simd import copy_bytes, eight_bytes, lowest_bit, word_mask

ODD_A = uint64(0x9E3779B97F4A7C15)
ODD_B = uint64(0xFF51AFD7ED558CCD)
_BASE = uint64(0xD6E8FEB86659FD93)  # of the polynomial over the words of a shingle
_POINT = uint64(0x100000001B3)
_ALL = uint64(0xFFFFFFFFFFFFFFFF)
START = (int64(0), int64(0), int64(0))
_CASE_BITS = uint64(0x2020202020202020)
_HIGH_BITS = uint64(0x8080808080808080)


@inline
def _mixed_in(key, part):  # type: ignore[no-untyped-def]
    """A hash with eight bytes of ASCII more, case folded by setting bit 5 where bit 6 is set."""
    key = (key ^ (part | ((part >> uint64(1)) & _CASE_BITS))) * ODD_A
    return key ^ (key >> uint64(32))


@inline
def _ascii_word(window, start, end):  # type: ignore[no-untyped-def]
    """Hash of the ASCII word ``window[start:end]``."""
    left = end - start
    key = uint64(left) * ODD_B
    while left > 8:
        key = _mixed_in(key, eight_bytes(window, start))
        start += 8
        left -= 8
    return _mixed_in(key, eight_bytes(window, start) & (_ALL >> uint64(64 - 8 * left)))


@inline
def _decode(window, at):  # type: ignore[no-untyped-def]
    """The code point at ``at`` and the place after it."""
    lead = uint32(window[at])
    if lead < 0x80:
        return lead, at + 1
    second = uint32(window[at + 1]) & uint32(0x3F)
    if lead < 0xE0:
        return ((lead & uint32(0x1F)) << uint32(6)) | second, at + 2
    third = uint32(window[at + 2]) & uint32(0x3F)
    if lead < 0xF0:
        return ((lead & uint32(0x0F)) << uint32(12)) | (second << uint32(6)) | third, at + 3
    fourth = uint32(window[at + 3]) & uint32(0x3F)
    high = ((lead & uint32(0x07)) << uint32(18)) | (second << uint32(12))
    return high | (third << uint32(6)) | fourth, at + 4


@kernel
def _mixed_run(window, start, end, alphabet, scratch, count):  # type: ignore[no-untyped-def]
    """Words of a run that holds characters outside ASCII; returns the new number of words."""
    words, starts = scratch.words, scratch.starts
    at = int64(start)
    first = int64(-1)  # where the open word starts
    ascii_only = True
    key = uint64(0)
    while at < end:
        here = at
        point, at = _decode(window, at)
        if point < 65536:
            kind = alphabet.classes[point]
            point = uint32(alphabet.lower[point])
        elif point >= 0x20000:
            kind = uint8(SINGLE)
        else:  # scripts of the supplementary plane are words, emoji and game pieces part them
            kind = uint8(WORD) if point < 0x1F000 else uint8(0)
        if kind == WORD:
            if first < 0:
                first, ascii_only, key = here, True, uint64(0)
            ascii_only = ascii_only and at == here + 1
            key = (key ^ uint64(point)) * _POINT
            key ^= key >> uint64(29)
            continue
        if first >= 0:
            words[count] = _ascii_word(window, first, here) if ascii_only else key * ODD_B
            if len(starts):
                starts[count] = first
            count += 1
            first = int64(-1)
        if kind == SINGLE:
            words[count] = (uint64(point) + uint64(0x1234567)) * ODD_A
            if len(starts):
                starts[count] = here
            count += 1
    if first >= 0:
        words[count] = _ascii_word(window, first, end) if ascii_only else key * ODD_B
        if len(starts):
            starts[count] = first
        count += 1
    return count


@inline
def _edges(scratch, stop):  # type: ignore[no-untyped-def]
    """Write where runs of ``window[:stop]`` start and end, in turns; returns how many places that are."""
    window, edges = scratch.window, scratch.edges
    count = 0
    carry = uint64(0)
    for at in range(int64(0), int64(stop + 1), int64(64)):
        mask = word_mask(window, at)
        changes = mask ^ ((mask << uint64(1)) | carry)
        carry = mask >> uint64(63)
        while changes != uint64(0):
            edges[count] = at + lowest_bit(changes)
            count += 1
            changes &= changes - uint64(1)
    return count


@kernel
def _long_run(window, start, end, alphabet, scratch, count):  # type: ignore[no-untyped-def]
    """Words of a run that is long or holds characters outside ASCII; returns the new number of words."""
    high = uint64(0)
    for at in range(start, end, 8):
        left = end - at
        high |= eight_bytes(window, at) & (_ALL if left >= 8 else _ALL >> uint64(64 - 8 * left))
    if high & _HIGH_BITS:
        return _mixed_run(window, start, end, alphabet, scratch, count)
    scratch.words[count] = _ascii_word(window, start, end)
    if len(scratch.starts):
        scratch.starts[count] = start
    return count + 1


@inline
def _window_words(scratch, stop, last, alphabet, count):  # type: ignore[no-untyped-def]
    """Append the words of ``window[:stop]``; returns their number and the bytes used.

    A run that touches the end of a window is left for the next one, unless it is all there is or the text
    ends.
    """
    window, edges, words, starts = scratch.window, scratch.edges, scratch.words, scratch.starts
    num_edges = _edges(scratch, stop)
    used = stop
    if num_edges and not last and edges[num_edges - 1] == stop and edges[num_edges - 2] > 0:
        num_edges -= 2
        used = int64(edges[num_edges])
    for i in range(0, num_edges, 2):
        start, end = int64(edges[i]), int64(edges[i + 1])
        length = end - start
        head, tail = eight_bytes(window, start), eight_bytes(window, start + 8)
        head &= _ALL >> uint64(64 - 8 * (length if length < 8 else 8))
        tail &= _ALL >> uint64(64 - 8 * (length - 8 if 8 < length < 16 else 8))
        # all bits or none: a branch would be guessed wrong one time in six
        longer = uint64(0) - uint64(length > 8)
        if length > 16 or (head | (tail & longer)) & _HIGH_BITS:
            count = _long_run(window, start, end, alphabet, scratch, count)
            continue
        short = _mixed_in(uint64(length) * ODD_B, head)  # ``_ascii_word`` without its branches
        words[count] = short ^ ((_mixed_in(short, tail) ^ short) & longer)
        if len(starts):
            starts[count] = start
        count += 1
    return count, used


@inline
def _combine(words, count, ngram, shingles):  # type: ignore[no-untyped-def]
    """Shingles of ``words[:count]``: a polynomial of each n words, rolled on from the one before, mixed."""
    num_shingles = count - ngram + 1
    key = uint64(0)
    leaving = uint64(1)  # the factor of a word that has left: the base to the n
    for i in range(ngram):
        key = key * _BASE + words[i]
        leaving *= _BASE
    for i in range(num_shingles):
        mixed = (key ^ (key >> uint64(32))) * _BASE
        mixed ^= mixed >> uint64(32)
        shingles[i] = mixed if mixed else uint64(1)  # 0 marks an empty slot in tables
        key = key * _BASE + (words[i + ngram] - words[i] * leaving)
    return num_shingles


@kernel
def next_shingles(text, position, ngram, alphabet, scratch):  # type: ignore[no-untyped-def]
    """Shingles of the next window of a text into ``scratch.shingles``.

    ``text`` is (address, bytes); ``position`` is (byte, words carried over, shingles so far), START at first.
    Returns the number of shingles and the next position; the text is done when its byte has reached the
    length. A text of fewer than ``ngram`` words is one shingle of all of them; a text without words has none.
    """
    address, length = text
    at, carried, so_far = position
    window, left = scratch.window, length - at
    stop = int64(left if left < WINDOW_BYTES else WINDOW_BYTES)
    copy_bytes(window, address + at, stop)
    if stop < left and window[stop - 1] >= 0x80:  # cut between characters
        stop -= 1
        while stop > 1 and window[stop] & 0xC0 == 0x80:
            stop -= 1
    for i in range(stop, stop + 128):
        window[i] = 0
    last = at + stop >= length
    count, used = _window_words(scratch, stop, last, alphabet, carried)
    at += used
    if count >= ngram:
        num_shingles = _combine(scratch.words, count, ngram, scratch.shingles)
        keep = ngram - 1
        for i in range(keep):
            scratch.words[i] = scratch.words[count - keep + i]
        return num_shingles, (at, int64(keep), int64(so_far + num_shingles))
    if at >= length and so_far == 0 and count > 0:
        return _combine(scratch.words, count, count, scratch.shingles), (at, count, int64(1))
    return int64(0), (at, count, so_far)
