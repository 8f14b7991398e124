"""Kernel: rows of token ids out of the ids of their texts. See ``tokenize/column_encoder.py``."""

from __future__ import annotations

from datamix.core.jit import kernel


@kernel
def lay_out(source, layouts, texts, rest, out):  # type: ignore[no-untyped-def]
    """Write ids and whether each is trained, row for row.

    ``source``: the layout of each row, or -1 less the row of ``rest`` that it is. An entry of a layout is a range of
    ``constants``, or, of length -1, the next of the row's texts.
    """
    entry_offsets, starts, lengths, trained, constants = layouts
    text_offsets, text_ids, number = texts  # number: of the texts of each row in turn
    rest_offsets, rest_ids, rest_trained = rest
    ids, mask = out
    at, text = 0, 0
    for row in range(len(source)):
        layout = source[row]
        if layout < 0:
            for i in range(rest_offsets[-1 - layout], rest_offsets[-layout]):
                ids[at], mask[at] = rest_ids[i], rest_trained[i]
                at += 1
            continue
        for entry in range(entry_offsets[layout], entry_offsets[layout + 1]):
            flag, length = trained[entry], lengths[entry]
            if length < 0:
                first, last = text_offsets[number[text]], text_offsets[number[text] + 1]
                text += 1
                for i in range(first, last):
                    ids[at], mask[at] = text_ids[i], flag
                    at += 1
            else:
                for i in range(starts[entry], starts[entry] + length):
                    ids[at], mask[at] = constants[i], flag
                    at += 1
    return at
