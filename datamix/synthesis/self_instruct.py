"""Self-Instruct: new tasks after eight known ones, six of the seeds and two that the model wrote (Wang et al., 2023, arXiv 2212.10560).

Tasks are asked for in rounds of ``ROUND``: the pool of a round is the seeds and what earlier rounds left, so prompts depend on stored
answers alone. A task is dropped where the ROUGE-L F measure to any task of the pool is above 0.7. Chinese is compared by characters: the
usual scorer strips every letter that is not ASCII and finds no duplicate at all. Candidates are found by shared words before the exact
measure is taken.

Cost: two requests a record; comparing is linear in the pool for each task, a microsecond for each candidate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from datamix.core.hashing import digest
from datamix.synthesis.calls import Draft, Sampling, Script
from datamix.synthesis.rewriting import chat_call
from datamix.synthesis.text_checks import rouge_l, script_of, words

ROUND = 64
LIMIT = 0.7
_NUM_SEEDS, _NUM_WRITTEN = 6, 2
_ASK = {
    "en": "Here are some tasks for an assistant, each different from the others. Write one more that differs from all of them in topic "
    "and form, can be answered in text alone, and needs nothing that is not in it. Write the task alone, without a number.",
    "zh": "下面是一些给助手的任务，彼此各不相同。请再写一个，主题和形式都要与它们不同，只用文字就能回答，并且不依赖任务之外的内容。只写任务本身，不要编号。",
}


class TaskPool:
    """Tasks by their words; ``nearest`` is exact, and looks only at tasks that can be near enough."""

    def __init__(self, tasks: Sequence[str] = ()) -> None:
        self.tasks: list[str] = []
        self._words: list[list[str]] = []
        self._places: dict[str, list[int]] = {}
        for task in tasks:
            self.add(task)

    def add(self, task: str) -> None:
        number, found = len(self.tasks), words(task)
        self.tasks.append(task)
        self._words.append(found)
        for word in set(found):
            self._places.setdefault(word, []).append(number)

    def is_near(self, task: str, limit: float = LIMIT) -> bool:
        """Whether ROUGE-L to any task of the pool is above the limit."""
        found = words(task)
        shared: Counter[int] = Counter()
        for word, count in Counter(found).items():
            for number in self._places.get(word, ()):
                shared[number] += count
        for number, most in shared.items():  # a subsequence is no longer than the words that both have
            other = self._words[number]
            if 2 * most > limit * (len(found) + len(other)) and rouge_l(found, other) > limit:
                return True
        return False


def self_instruct(
    job: str,
    instruction: Sampling,
    answer: Sampling,
    pool: tuple[Sequence[str], Sequence[str], TaskPool],
    index: str,
) -> Script:
    """One new task and its answer; ``pool``: seeds, what the model wrote, and both to compare with."""
    seeds, written, known = pool
    shown = pick(job, index, "seeds", seeds, _NUM_SEEDS + max(0, _NUM_WRITTEN - len(written)))
    shown += pick(job, index, "written", written, _NUM_WRITTEN)
    language = "zh" if sum(script_of(task) == "han" for task in shown) * 2 > len(shown) else "en"
    listed = "\n".join(f"- {' '.join(task.split())}" for task in shown)
    (asked,) = yield [
        chat_call("instruction", index, instruction, job, [("user", f"{_ASK[language]}\n\n{listed}")])
    ]
    task = read_task(asked.text)
    reason = None
    if asked.finish == "error":
        reason, task = "refused_by_host", asked.text
    elif not asked.is_whole:
        reason = "unfinished"
    elif not 3 <= len(words(task)) <= 300:
        reason = "empty" if not task else "length"
    elif known.is_near(task):
        reason = "near_task"
    if reason is not None:
        return [Draft(index, reason=reason, detail=task)]
    (told,) = yield [chat_call("answer", index, answer, job, [("user", task)])]
    if not told.is_whole or not told.text.strip():
        return [Draft(index, reason="unfinished", detail=f"{task}\n\n{told.text}")]
    turns = ({"role": "user", "content": task}, {"role": "assistant", "content": told.text.strip()})
    return [Draft(index, turns, prompt_id=digest("prompt", task)[:16])]


def read_task(text: str) -> str:
    """The task in what the model wrote: without a bullet, a number, a label or quotes around it."""
    text = text.strip()
    for opening in ("- ", "* ", "• "):
        text = text.removeprefix(opening)
    for label in ("Task:", "New task:", "任务：", "任务:", "新任务："):
        if text.lower().startswith(label.lower()):
            text = text[len(label) :]
    text = text.strip()
    for left, right in (('"', '"'), ("“", "”"), ("**", "**")):
        if text.startswith(left) and text.endswith(right) and len(text) > 2 * len(left):
            text = text[len(left) : -len(right)]
    return text.strip()


def pick(job: str, index: str, what: str, tasks: Sequence[str], count: int) -> list[str]:
    """Some of the tasks, by name, each once."""
    chosen: dict[int, None] = {}
    number = 0
    while len(chosen) < min(count, len(tasks)):
        chosen.setdefault(int(digest("pick", job, index, what, number)[:16], 16) % len(tasks))
        number += 1
    return [tasks[n] for n in chosen]
