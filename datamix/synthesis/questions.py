"""Questions and answers out of documents: the model reads a document, writes questions that it answers, then answers each from it.

The record is question and answer alone, so both must be understood without the document: questions that speak of "the text" are
dropped. Of a long document one stretch is read, chosen by name: about as much as 2,000 tokens, in Chinese counted by characters.

Cost: one request a document and one a question; those of one document share their prefix.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from datamix.core.hashing import digest
from datamix.synthesis.calls import Call, Draft, Sampling, Script
from datamix.synthesis.rewriting import SourceRecord, chat_call
from datamix.synthesis.text_checks import script_of

_STRETCH = {"zh": 3000, "en": 8000}  # characters
_ASK = {
    "en": "Read the document. Write {n} different questions that it answers, each clear to somebody who has not read it: name what you ask "
    "about, and do not speak of the document. One question a line, nothing else.",
    "zh": "阅读文档，写出 {n} 个能由它回答的不同问题。没有读过文档的人也要能看懂：写明所问的对象，不要提到文档本身。每行一个问题，不写别的内容。",
}
_ANSWER = {
    "en": "Answer the question by what the document says, completely and in your own words, without speaking of the document.",
    "zh": "根据文档的内容，用自己的话完整地回答问题，不要提到文档本身。",
}
_PARTS = {"en": ("Document", "Question"), "zh": ("文档", "问题")}
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.)、:：]|(?:Q|Question|问题|问)\s*\d*\s*[:：.])\s*")
_OF_THE_TEXT = re.compile(
    r"\b(the|this) (document|text|passage|article|author|excerpt|section|paragraph)\b|(根据|本|该|上述|这篇|文档|文章|上)(文档|文章|文中|文本|段|作者|内容)"
    r"|(^|[，。])文中",
    re.IGNORECASE,
)


def questions(job: str, instruction: Sampling, answer: Sampling, record: SourceRecord, count: int) -> Script:
    """The questions of one document, each a record."""
    text = stretch(job, record)
    language = "zh" if script_of(text) == "han" else "en"
    document = f"### {_PARTS[language][0]}\n{text}\n\n"
    asking = document + _ASK[language].format(n=count)
    (written,) = yield [chat_call("questions", record.key, instruction, job, [("user", asking)])]
    asked = read_questions(written.text, written.is_whole)[:count]
    if not asked:
        reason = "refused_by_host" if written.finish == "error" else "no_question"
        return [Draft(record.key, reason=reason, detail=written.text, prompt_id=record.id)]
    usable = [q for q in asked if not _OF_THE_TEXT.search(q)]
    answers = (
        (yield [_answering(job, answer, record, document, language, n, q) for n, q in enumerate(usable)])
        if usable
        else []
    )
    drafts = [
        Draft(f"{record.key}.r{n}", reason="speaks_of_the_text", detail=q, prompt_id=record.id)
        for n, q in enumerate(asked) if _OF_THE_TEXT.search(q)
    ]  # fmt: skip
    for number, (question, told) in enumerate(zip(usable, answers, strict=True)):
        index, whole = f"{record.key}.{number}", told.text.strip()
        failed = None if told.is_whole and whole else "unfinished"
        if failed is None and _OF_THE_TEXT.search(whole):
            failed = "speaks_of_the_text"
        turns: Sequence[dict[str, str]] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": whole},
        ]
        detail = f"{question}\n\n{whole}" if failed else ""
        drafts.append(
            Draft(index, () if failed else tuple(turns), reason=failed, detail=detail, prompt_id=record.id)
        )
    return drafts


def _answering(
    job: str,
    sampling: Sampling,
    record: SourceRecord,
    document: str,
    language: str,
    number: int,
    question: str,
) -> Call:
    text = f"{document}{_ANSWER[language]}\n\n### {_PARTS[language][1]}\n{question}"
    return chat_call(f"answer {number}", record.key, sampling, job, [("user", text)])


def read_questions(text: str, is_whole: bool) -> list[str]:
    """Lines that ask something, each once; the last line of an unfinished list is not whole."""
    lines = text.strip().splitlines()
    found = [_BULLET.sub("", line).strip() for line in (lines if is_whole else lines[:-1])]
    return list(dict.fromkeys(line for line in found if line.endswith(("?", "？")) and len(line) >= 4))


def stretch(job: str, record: SourceRecord) -> str:
    """The document, or of a long one a stretch that begins and ends with a paragraph."""
    text = "\n".join(str(turn.get("content") or "") for turn in record.messages).strip()
    most = _STRETCH["zh" if script_of(text) == "han" else "en"]
    if len(text) <= most:
        return text
    start = int(digest("stretch", job, record.key)[:12], 16) % (len(text) - most + 1)
    begin = text.rfind("\n", 0, start) + 1
    end = text.rfind("\n", begin + 1, begin + most)
    return text[begin : end if end > begin else begin + most].strip()
