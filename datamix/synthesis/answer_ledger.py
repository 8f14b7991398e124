"""Every answer on disk before it counts: append-only JSON Lines, one file a process, fsync in batches.

``FOLDER/00000.jsonl`` and so on. A line is one of::

    {"sent": KEY, "tokens": [prompt, completion]}     written before a request is sent: what it may cost at most
    {"key": KEY, "text": ..., "finish": ..., ...}     its answer
    {"unused": KEY}                                   the host refused it: nothing was bought
    {"note": NAME, "value": ...}                      what is known of the host

A process only appends to a file that it created, and lines end with a newline: what a kill leaves half-written is the end of a
file, and is read as absent. So no lock guards the answers, and a file system without locks or databases will do. A request that
was sent and has no answer may have been bought: it counts as spent.

Cost: one fsync a batch of whatever came in during the last one (a few milliseconds), not one a request; memory about 200 bytes an
answer, the texts stay on disk.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from datamix.core.errors import MachineError
from datamix.synthesis.calls import Answer

_SUFFIX = ".jsonl"


@dataclass
class Spent:
    """What the requests of a ledger cost; those without an answer at the most that they may have."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unanswered: int = 0  # sent, and no answer known


class Ledger:
    """The answers below a folder. ``append`` returns when its line is on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, tuple[int, int, int]] = {}  # key -> segment, offset, bytes
        self._open_files: dict[int, int] = {}
        self._pending: list[tuple[bytes, asyncio.Future[int]]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._segment, self._handle, self._size = -1, -1, 0
        self.notes: dict[str, Any] = {}
        self.spent = Spent()
        self.num_torn = 0  # lines that a kill left half-written
        folder.mkdir(parents=True, exist_ok=True)
        self._read()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Answer | None:
        """The stored answer to a request."""
        place = self._places.get(key)
        if place is None:
            return None
        segment, offset, size = place
        if segment not in self._open_files:
            self._open_files[segment] = os.open(self._path(segment), os.O_RDONLY)
        line = orjson.loads(os.pread(self._open_files[segment], size, offset))
        return Answer(**{name: line[name] for name in _FIELDS if name in line})

    async def append_sent(self, key: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Note that a request is about to be sent."""
        await self._append({"sent": key, "tokens": [prompt_tokens, completion_tokens]})

    async def append_answer(self, key: str, answer: Answer, stage: str, index: str) -> None:
        """Store an answer; it can be read when this returns."""
        line = {"key": key, "stage": stage, "index": index, **{n: getattr(answer, n) for n in _FIELDS}}
        offset, size = await self._append(line)
        self._places[key] = self._segment, offset, size

    async def append_unused(self, key: str) -> None:
        """Note that the host refused a request that was sent."""
        await self._append({"unused": key})

    async def append_note(self, name: str, value: Any) -> None:
        """Store what is known of the host."""
        await self._append({"note": name, "value": value})
        self.notes[name] = value

    def recounted(self) -> Spent:
        """What was spent, by the files as they are now."""
        fresh = Ledger(self._folder)
        fresh.close()
        return fresh.spent

    def close(self) -> None:
        for handle in (*self._open_files.values(), *([self._handle] if self._handle >= 0 else [])):
            os.close(handle)
        self._open_files, self._handle = {}, -1

    def _path(self, segment: int) -> Path:
        return self._folder / f"{segment:05d}{_SUFFIX}"

    def _segments(self) -> list[int]:
        names = [p.name.removesuffix(_SUFFIX) for p in self._folder.glob(f"*{_SUFFIX}")]
        return sorted(int(name) for name in names if name.isdigit())

    def _read(self) -> None:
        reserved: dict[str, list[list[int]]] = {}
        for segment in self._segments():
            for offset, size, line in self._lines(segment):
                self._replay(line, (segment, offset, size), reserved)
        for waiting in reserved.values():
            for prompt_tokens, completion_tokens in waiting:
                self.spent.unanswered += 1
                self.spent.prompt_tokens += prompt_tokens
                self.spent.completion_tokens += completion_tokens

    def _lines(self, segment: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
        offset = 0
        with self._path(segment).open("rb") as stream:
            for raw in stream:
                try:
                    line = orjson.loads(raw) if raw.endswith(b"\n") else None
                except orjson.JSONDecodeError:
                    line = None
                if isinstance(line, dict):
                    yield offset, len(raw), line
                else:
                    self.num_torn += 1
                offset += len(raw)

    def _replay(
        self, line: dict[str, Any], place: tuple[int, int, int], reserved: dict[str, list[list[int]]]
    ) -> None:
        spent = self.spent
        if "sent" in line:
            spent.requests += 1
            reserved.setdefault(line["sent"], []).append(line["tokens"])
        elif "note" in line:
            self.notes[line["note"]] = line["value"]
        elif (key := line.get("unused") or line.get("key")) is not None:
            if reserved.get(key) and line.get("finish") != "error":
                reserved[key].pop()
            if "key" in line and line["stage"] != "check":
                self._places[key] = place
            spent.prompt_tokens += line.get("prompt_tokens", 0)
            spent.completion_tokens += line.get("completion_tokens", 0)

    async def _append(self, line: dict[str, Any]) -> tuple[int, int]:
        raw = orjson.dumps(line) + b"\n"
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pending.append((raw, done))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        return await done, len(raw)

    async def _flush(self) -> None:
        """Write what is pending, then what came in meanwhile, until nothing is."""
        loop = asyncio.get_running_loop()
        while self._pending:
            batch, self._pending = self._pending, []
            try:
                start = await loop.run_in_executor(None, self._write, b"".join(raw for raw, _ in batch))
            except OSError as error:
                failure = MachineError(
                    f"{self._folder}: an answer cannot be written ({error.strerror}). What was written counts: free some "
                    "space, or mend the disk, and run the same command again."
                )
                for _, done in batch:
                    if not done.done():
                        done.set_exception(failure)
                continue
            for raw, done in batch:
                if not done.done():
                    done.set_result(start)
                start += len(raw)
        self._flushing = None

    def _write(self, raw: bytes) -> int:
        if self._handle < 0:
            self._create()
        start, view = self._size, memoryview(raw)
        while view:
            view = view[os.write(self._handle, view) :]
        os.fsync(self._handle)
        self._size += len(raw)
        return start

    def _create(self) -> None:
        """A file of this process alone: another one that starts at the same moment takes the next number."""
        self._segment = max(self._segments(), default=-1) + 1
        while True:
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
                self._handle = os.open(self._path(self._segment), flags, 0o644)
                break
            except FileExistsError:
                self._segment += 1
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


_FIELDS = ("text", "finish", "prompt_tokens", "completion_tokens", "model", "logprob")
