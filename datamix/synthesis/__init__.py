"""Records that a model writes: what to ask, how to read what it answers, and a ledger that pays for each token once.

``calls`` are values with a key; a ``Script`` yields calls and returns drafts of records, a pure function of the answers. ``runner``
buys the answers that the ``answer_ledger`` lacks, at the ``pacing`` that the host can take, within the ``budget``; ``host`` sends, after
``host_checks`` found out how. The kinds are one file each: ``magpie``, ``rewriting`` (SDFT), ``rehearsal`` (SSR), ``self_instruct``,
``questions`` (from documents), ``sampled_answers``. ``text_checks`` has what is looked for in a text, ``selection`` which records stay.
"""
