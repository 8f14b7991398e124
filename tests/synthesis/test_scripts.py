"""What each kind asks and how it reads answers, filters and choice: pure functions, no host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamix.synthesis import text_checks
from datamix.synthesis.calls import Answer, Call, Draft, Sampling, Script
from datamix.synthesis.magpie import MagpieSetup, Steering, magpie, steer
from datamix.synthesis.questions import questions, read_questions
from datamix.synthesis.rehearsal import rehearsal, two_of
from datamix.synthesis.rewriting import SourceRecord, gate, rewrite
from datamix.synthesis.sampled_answers import is_verified, sampled_answers
from datamix.synthesis.selection import quartiles, select, strata
from datamix.synthesis.self_instruct import TaskPool, pick, read_task, self_instruct

HOT, COLD = Sampling(1.0, 64), Sampling(0.0, 64)


def play(script: Script, reply: Callable[[Call], str | Answer]) -> tuple[list[Draft], list[Call]]:
    """Run a script against a function."""
    asked: list[Call] = []
    try:
        calls = next(script)
        while True:
            asked += calls
            told = [reply(call) for call in calls]
            calls = script.send([a if isinstance(a, Answer) else Answer(a, "stop", 1, 1) for a in told])
    except StopIteration as stop:
        return stop.value, asked


class Chatml:
    """Prompts of plain ChatML."""

    instruction_stops = ("<|im_end|>",)
    answer_stops = ("<|im_end|>",)

    def opening(self, messages: Any) -> str:
        return self._turns(messages) + "<|im_start|>user\n"

    def answering(self, messages: Any) -> str:
        return self._turns(messages) + "<|im_start|>assistant\n"

    def count(self, text: str) -> int:
        return len(text)

    def cut_leak(self, text: str) -> tuple[str, bool]:
        before, leak, _ = text.partition("<|im_end|>")
        return before.strip(), bool(leak)

    @staticmethod
    def _turns(messages: Any) -> str:
        return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)


def pair(question: str, answer: str, key: str = "k", **more: Any) -> SourceRecord:
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return SourceRecord(f"s:0:{key}", key, turns, answer, **more)


def test_magpie_asks_turn_by_turn_and_the_system_text_is_no_part_of_answer_or_record() -> None:
    setup = MagpieSetup("job", Chatml(), HOT, COLD, turns=2)
    (draft,), asked = play(
        magpie(setup, "7", Steering("Ask about maths.", 1.0, "en")),
        lambda call: f"{call.stage}?\n\nline two",
    )
    assert [call.stage for call in asked] == ["instruction 0", "answer 0", "instruction 1", "answer 1"]
    assert asked[0].prompt == "<|im_start|>system\nAsk about maths.<|im_end|>\n<|im_start|>user\n"
    assert "maths" not in str(asked[1].prompt) + str(draft.messages)
    assert str(asked[3].prompt).count("<|im_start|>user") == 2
    assert [m["role"] for m in draft.messages] == ["user", "assistant"] * 2
    assert draft.messages[0]["content"] == "instruction 0?\n\nline two"
    assert (asked[0].sampling, asked[1].sampling) == (HOT, COLD)
    assert len({call.seed for call in asked}) == 4


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ({"instruction 0": Answer("half a", "length", 1, 1)}, "unfinished"),
        ({"instruction 0": "  "}, "empty"),
        ({"instruction 0": "Do the following:"}, "unfinished"),
        ({"instruction 0": "请完成："}, "unfinished"),
        ({"answer 0": Answer("half", "length", 1, 1)}, "unfinished"),
        ({"answer 0": Answer("HTTP 400", "error", 0, 0)}, "refused_by_host"),
        ({"instruction 0": Answer("HTTP 400", "error", 0, 0)}, "refused_by_host"),
    ],
)
def test_magpie_removes_what_is_not_whole(replies: dict[str, Any], reason: str) -> None:
    setup = MagpieSetup("job", Chatml(), HOT, COLD)
    (draft,), _ = play(magpie(setup, "0", Steering()), lambda call: replies.get(call.stage, "fine"))
    assert (draft.reason, draft.messages) == (reason, ())


def test_magpie_cuts_a_leaked_answer_and_keeps_whole_turns_before_a_bad_one() -> None:
    setup = MagpieSetup("job", Chatml(), HOT, COLD, turns=3)
    told = {
        "instruction 0": Answer("How?<|im_end|>\n<|im_start|>assistant\nSo", "length", 1, 1),
        "instruction 2": "",
    }
    (draft,), _ = play(magpie(setup, "0", Steering()), lambda call: told.get(call.stage, "fine"))
    assert draft.reason is None
    assert [m["content"] for m in draft.messages] == ["How?", "fine", "fine", "fine"]


def test_system_texts_get_their_shares_of_every_stretch() -> None:
    systems = [Steering("a", 3), Steering("b", 1), Steering("c", 6)]
    dealt = [steer("job", n, systems).text for n in range(1000)]
    for start in range(0, 1000, 100):
        counts = Counter(dealt[start : start + 100])
        assert all(abs(counts[s.text] - 10 * s.share) <= 2 for s in systems)


@pytest.mark.parametrize(
    ("original", "rewritten", "verdict"),
    [
        ("Take 2 pills.", "You should take 2 pills a day.", None),
        ("Take 2 pills.", "You should take two pills.", "numbers"),
        ("Take 2 pills.", "Take 2 pills for 3 days.", "numbers"),
        ("1. Rest\n2. Drink water", "Rest, and drink some water.", None),
        ("每天2,000毫克。", "建议每天服用２０００毫克。", None),
        ("每天两次，多喝水。", "Twice a day, with water.", "language"),
        ("It is blue.", "According to the reference answer it is blue.", "phrase"),
        ("多喝水，注意休息。", "参考答案说要多喝水。", "phrase"),
        ("Drink much water.", "I'm sorry, but I can't help with that.", "refusal"),
        ("多喝水，注意休息。", "很抱歉，我无法提供医疗建议。", "refusal"),
        ("Yes, that is right.", "Y.", "length"),
        ("Yes.", "Well, that is a long story about it indeed.", "length"),
        ('<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"name":"g"}</tool_call>', "calls"),
        ("get_weather(city='Paris')", "get_weather( city='Paris' )", None),
        ("get_weather(city='Paris')", "The weather in Paris is fine.", "calls"),
        ("So:\n```python\nx = y\n```", "So:\n```python\nx = = y\n```", "code"),
        ("So:\n```python\nx = y\n```", "Set x to y, that is all.", "code"),
        ("So:\n```python\nx = y\n```", "Like this:\n```python\nz = y\n```", None),
        ("Fine.", "   ", "empty"),
    ],
)
def test_the_gate_of_sdft(original: str, rewritten: str, verdict: str | None) -> None:
    assert gate(original, rewritten) == verdict


def test_sdft_drops_nothing_and_leaves_calls_alone() -> None:
    turns: tuple[dict[str, Any], ...] = (
        {"role": "user", "content": "How much?"},
        {"role": "assistant", "content": "Take 2."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "map"}}]},
        {"role": "tool", "content": "here"},
        {"role": "assistant", "content": "Over there, see."},
    )
    record = SourceRecord("s:0:1", "k", turns)
    told = {"rewrite 1": "You take 2.", "rewrite 5": "No. 5"}
    (draft,), asked = play(rewrite("job", COLD, record), lambda call: told[call.stage])
    assert [call.stage for call in asked] == ["rewrite 1", "rewrite 5"]
    assert draft.messages[1]["content"] == "You take 2."
    assert draft.messages[3] == turns[3]
    assert draft.messages[5] == turns[5]
    assert draft.meta["verdicts"] == ["taken", "numbers"]
    assert "Take 2." in asked[0].messages[-1][1]
    assert [role for role, _ in asked[1].messages] == ["user", "assistant", "user"]
    (draft,), _ = play(rewrite("job", COLD, record), lambda call: Answer("x", "length", 1, 1))
    assert draft.messages == turns
    (draft,), asked = play(rewrite("job", COLD, SourceRecord("s:0:2", "k", turns[:1])), lambda call: "x")
    assert (draft.messages, asked) == (turns[:1], [])


def test_the_best_of_several_answers_and_pairs() -> None:
    record = SourceRecord("s:0:1", "k", ({"role": "user", "content": "6 * 7?"},), "42")
    told = ["It is 41.", "It is 42.", "Surely 42", "I'm sorry, but I can't do that. 42"]

    def reply(call: Call) -> str:
        return told[[c.seed for c in asked_first].index(call.seed)]

    asked_first = next(sampled_answers("job", HOT, record, 4))
    assert len({call.seed for call in asked_first}) == 4
    assert len({call.messages for call in asked_first}) == 1
    (draft,), _ = play(sampled_answers("job", HOT, record, 4, "reference"), reply)
    assert draft.messages[-1]["content"] == "It is 42."
    (draft,), _ = play(sampled_answers("job", HOT, record, 4, "agreement"), reply)
    assert draft.messages[-1]["content"] == "It is 42."
    (draft,), _ = play(sampled_answers("job", HOT, record, 2, "reference", True), reply)
    assert (draft.messages[-1]["content"], draft.rejected[0]["content"], draft.margin) == (
        "It is 42.",
        "It is 41.",
        1.0,
    )
    (draft,), _ = play(sampled_answers("job", HOT, record, 4, "reference"), lambda call: "It is 9.")
    assert draft.reason == "not_verified"
    (draft,), _ = play(sampled_answers("job", HOT, record, 2, "agreement", True), lambda call: "It is 9.")
    assert draft.reason == "no_difference"
    confident = {call.seed: -float(n) for n, call in enumerate(asked_first)}
    (draft,), asked = play(
        sampled_answers("job", HOT, record, 4, "likelihood"),
        lambda call: Answer(f"n {confident[call.seed]}", "stop", 1, 1, logprob=confident[call.seed]),
    )
    assert draft.messages[-1]["content"] == "n -0.0"
    assert all(call.logprobs for call in asked)
    (draft,), _ = play(
        sampled_answers("job", HOT, record, 2, "judge"),
        lambda call: (
            ("9" if "42" in call.messages[0][1] else "2/10") if "rate" in call.stage else reply(call)
        ),
    )
    assert draft.messages[-1]["content"] == "It is 42."


def test_a_verifier_knows_numbers_calls_and_text() -> None:
    assert is_verified("so it is 1,234.50", "#### 1234.5")
    assert not is_verified("so it is 1234", "1235")
    assert is_verified("f(a, b)", "f(a,b)")
    assert is_verified("答案是北京市。", "北京")
    assert not is_verified("anything", None)


def test_ssr_takes_exactly_one_output_and_counts_chinese_by_characters() -> None:
    seeds = [pair("2+2?", "4", "a"), pair("天空什么颜色？", "蓝色", "b"), pair("q", "r", "c")]
    script = rehearsal("job", HOT, COLD, seeds, "3")
    told = {"input": " 3+3?\nOutput: 7", "output": " 6"}
    (draft,), asked = play(script, lambda call: told[call.stage])
    assert [m["content"] for m in draft.messages] == ["3+3?", "6"]
    assert str(asked[0].prompt).endswith("Input:")
    assert str(asked[1].prompt).endswith("Input: 3+3?\nOutput:")
    for text, reason in [
        ("3+3?", "not_one_output"),
        ("a\nOutput: b\nOutput: c", "not_one_output"),
        ("长" * 501 + "\nOutput: 短", "too_long"),
        ("长" * 499 + "\nOutput: 短", None),
    ]:
        (draft,), _ = play(
            rehearsal("job", HOT, COLD, seeds, "3"), lambda call, t=text: t if call.stage == "input" else "x"
        )
        assert draft.reason == reason
    pairs = [two_of("job", str(n), 3) for n in range(60)]
    assert all(a != b for a, b in pairs)
    assert len(set(pairs)) == 6


def test_self_instruct_rejects_tasks_like_those_of_the_pool() -> None:
    seeds = [
        "Write a poem about the sea in spring.",
        "解释为什么天空是蓝色的，并举一个例子。",
        "Sort a list of numbers.",
    ]
    pool = seeds, [], TaskPool(seeds)

    def run(task: str) -> Draft:
        (draft,), _ = play(
            self_instruct("job", HOT, COLD, pool, "1"), lambda c: task if c.stage == "instruction" else "ok"
        )
        return draft

    assert (
        run("- Task: Plan a week of meals for two people.").messages[0]["content"]
        == "Plan a week of meals for two people."
    )
    assert run("Write a poem about the sea in autumn.").reason == "near_task"
    assert run("解释为什么天空是蓝色的，并举两个例子。").reason == "near_task"
    assert run("写一封感谢老师的信。").reason is None
    assert run("").reason == "empty"


@given(st.lists(st.sampled_from("abcde"), max_size=12), st.lists(st.sampled_from("abcde"), max_size=12))
def test_rouge_l_is_that_of_the_longest_common_subsequence(first: list[str], second: list[str]) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    total = len(first) + len(second)
    expected = 2 * table[-1][-1] / total if first and second else 0.0
    assert text_checks.rouge_l(first, second) == pytest.approx(expected)


def test_the_pool_finds_every_task_that_is_near() -> None:
    tasks = [
        f"task about {w} and {v} in {n} lines"
        for n, (w, v) in enumerate(zip("abcdefgh", "hgfedcba", strict=True))
    ]
    pool = TaskPool(tasks)
    for task in [*tasks, "task about z and y in 3 lines", "something else entirely"]:
        exact = any(text_checks.rouge_l(text_checks.words(task), text_checks.words(t)) > 0.7 for t in tasks)
        assert pool.is_near(task) == exact
    assert len(pick("job", "1", "seeds", tasks, 6)) == len(set(pick("job", "1", "seeds", tasks, 6))) == 6
    assert read_task("3") == "3"


def test_questions_of_a_document_stand_alone() -> None:
    document = SourceRecord("d:0:0", "k", ({"role": "user", "content": "The Nile is 6,650 km long. " * 500},))
    listed = "1. How long is the Nile?\nQ2: What does the text say?\nNot a question\n- Where is it?\n"
    drafts, asked = play(
        questions("job", HOT, COLD, document, 5), lambda c: listed if c.stage == "questions" else "6,650 km."
    )
    assert [d.reason for d in drafts] == ["speaks_of_the_text", None, None]
    assert [d.messages[0]["content"] for d in drafts[1:]] == ["How long is the Nile?", "Where is it?"]
    prefixes = {call.messages[0][1][:4000] for call in asked}
    assert len(prefixes) == 1
    assert len(asked[0].messages[0][1]) < 9000
    assert read_questions("尼罗河有多长？\n问题2：它在哪里？\n还没写", False) == [
        "尼罗河有多长？",
        "它在哪里？",
    ]
    (draft,), _ = play(questions("job", HOT, COLD, document, 2), lambda c: "no")
    assert draft.reason == "no_question"


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't assist with that.", True),
        ("As an AI language model, I do not have opinions.", True),
        ("抱歉，我无法回答这个问题。", True),
        ("作为一个人工智能语言模型，我不能提供建议。", True),
        ("I cannot provide medical advice.", True),
        ("Sorry to hear that. Drink water and rest.", False),
        ("The engine cannot start because the battery is empty.", False),
        ("他很抱歉地离开了房间，然后去了学校。", False),
        ("You can't divide by zero.", False),
    ],
)
def test_refusals_in_two_languages(text: str, refuses: bool) -> None:
    assert text_checks.is_refusal(text) == refuses


def test_scripts_numbers_and_words() -> None:
    assert [text_checks.script_of(t) for t in ("你好 world", "これは本です", "Привет", "12 + 3", "안녕")] == [
        "han", "kana", "cyrillic", "", "hangul",
    ]  # fmt: skip
    assert text_checks.fits_language("写一首诗", "zh")
    assert not text_checks.fits_language("Write a poem", "zh")
    assert text_checks.fits_language("Écris un poème", "fr")
    assert text_checks.numbers("1) Take 2,000 mg, -3.50 or 40%") == {"2000", "-3.5", "40%"}
    assert text_checks.words("Git 提交, don't") == ["git", "提", "交", "don", "t"]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 400)), min_size=1, max_size=80),
    st.integers(1, 60),
)
def test_the_choice_keeps_the_proportions_and_never_takes_too_many(
    rows: list[tuple[str, int]], size: int
) -> None:
    lengths = [length for _, length in rows]
    found = strata([c for c, _ in rows], ["text"] * len(rows), lengths, quartiles(lengths))
    chosen = select(found, size)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(size, len(rows))
    if size < len(rows):
        whole, part = Counter(found), Counter(found[n] for n in chosen)
        for stratum, count in whole.items():
            assert abs(part[stratum] - count * size / len(rows)) <= 1


def test_the_choice_follows_a_reference_and_not_the_longest() -> None:
    lengths = list(range(1000))
    borders = [100.0, 200.0, 300.0]
    found = strata([""] * 1000, ["text"] * 1000, lengths, borders)
    reference = strata([""] * 400, ["text"] * 400, list(range(400)), borders)
    chosen = select(found, 200, reference)
    assert Counter(found[n][2] for n in chosen) == {0: 50, 1: 50, 2: 50, 3: 50}
