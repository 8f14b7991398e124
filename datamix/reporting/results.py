"""What the functions return: the values that they always had, which also look good when printed or shown in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamix.audit import Check

if TYPE_CHECKING:
    from datamix.load import TrainingSet


class BuiltSet(dict[str, Any]):
    """The manifest of a finished set, as ``manifest.json`` has it, and where the set is."""

    def __init__(self, manifest: Mapping[str, Any], out: Path, cache: Path) -> None:
        super().__init__(manifest)
        self.out, self.cache = out, cache

    def open(self) -> TrainingSet:
        """The rows of the set."""
        from datamix.pipeline.built_sets import open_any

        return open_any(self.out)

    def __repr__(self) -> str:
        from datamix.reporting.summaries import closing

        return closing(self, self.out, self.cache)

    def _repr_html_(self) -> str:
        unit = self["mixture"]["unit"]
        rows = []
        for name, source in self["sources"].items():
            emitted, share = source["emitted"], source["share"]
            counts = [f"{emitted[key]:,}" for key in ("rows", "records", "tokens", "loss_tokens")]
            shares = [_percent(share["asked"]), _percent(share.get(unit))]
            rows.append(
                [name, f"{source['records']['read']:,}", *counts, f"{source['epochs'] or 0:.2f}", *shares]
            )
        heads = [
            "source",
            "records read",
            "rows",
            "records",
            "tokens",
            "loss tokens",
            "epochs",
            "asked",
            "reached",
        ]
        note = f"{self.out}, shares of {unit.replace('_', ' ')}; the report: {self.out / 'report.html'}"
        return _html(f"{self['name']}: {self['kind']}", heads, rows, note)


class Synthesized(dict[str, Any]):
    """The manifest of a folder of synthetic records, and where it is."""

    def __init__(self, manifest: Mapping[str, Any], out: Path) -> None:
        super().__init__(manifest)
        self.out = out

    def __repr__(self) -> str:
        from datamix.reporting.synth_page import synth_summary

        return synth_summary(self, self.out)

    def _repr_html_(self) -> str:
        rows = [["written", f"{self['records']['written']:,}"]]
        rows += [[name, f"{count:,}"] for name, count in self["removed_by"].items()]
        return _html(f"{self['name']}: {self['synth']}", ["records", ""], rows, f"{self.out / 'report.html'}")


class Plan(dict[str, Any]):
    """What a build would take, as ``datamix plan --json`` prints it."""

    def __repr__(self) -> str:
        from datamix.reporting.summaries import plan_table

        return plan_table(self)

    def _repr_html_(self) -> str:
        about = "" if self["exact"] else "~"
        rows = []
        for line in self["sources"]:
            counts = [f"{about}{line[key]:,.0f}" for key in ("records", "tokens", "loss_tokens", "taken")]
            limits = [f"{line['epochs']:.2f}", f"{line['max_epochs']:g}", "binds" if line["binds"] else ""]
            rows.append([line["name"], f"{line['files']:,}", *counts, _percent(line["asked"]), *limits])
        heads = [
            "source",
            "files",
            "records",
            "tokens",
            "loss tokens",
            "taken",
            "asked",
            "epochs",
            "at most",
            "",
        ]
        unit = self["unit"].replace("_", " ")
        return _html(f"{self['name']}: {self['kind']}", heads, rows, f"Size: {about}{self['total']:,} {unit}")


class Checks(list[Check]):
    """One check a promise, in order."""

    @property
    def ok(self) -> bool:
        """Whether every promise holds."""
        return all(check.ok for check in self)

    def __repr__(self) -> str:
        return "\n".join(f"{'ok  ' if c.ok else 'FAIL'} {c.name:<14} {c.detail}" for c in self)

    def _repr_html_(self) -> str:
        rows = [["ok" if check.ok else "FAIL", check.name, check.detail] for check in self]
        return _html(
            "Every promise holds" if self.ok else "A promise does not hold", ["", "promise", "counted"], rows
        )


class Ladder(dict[Path, BuiltSet]):
    """The sets of a sweep by folder."""

    def __init__(self, sets: Mapping[Path, BuiltSet], scale: float = 1.0) -> None:
        super().__init__(sets)
        self.scale = scale

    def __repr__(self) -> str:
        from datamix.reporting.summaries import ladder_table

        return ladder_table({**self}, self.scale)

    def _repr_html_(self) -> str:
        first = next(iter(self.values()))
        unit, names = first["mixture"]["unit"], list(first["sources"])
        rows = [
            [
                str(out),
                f"{m['packing']['rows']:,}",
                *(_percent(m["sources"][n]["share"][unit]) for n in names),
            ]
            for out, m in self.items()
        ]
        return _html("Sweep", ["set", "rows", *names], rows, f"Shares of {unit.replace('_', ' ')}")


class Traced(dict[str, Any]):
    """A row and its records, as ``datamix trace --json`` prints them."""

    def __repr__(self) -> str:
        from datamix.reporting.summaries import trace_text

        return trace_text(self)

    def _repr_html_(self) -> str:
        rows = []
        for record in self["records"]:
            place = (
                f"row group {record['row_group']}"
                if "row_group" in record
                else str(record["bytes"] or "unknown")
            )
            changed = [step["step"] for step in record["steps"] or () if step["changed"]]
            copies = f"{len(record['removed_because_of']):,}"
            rows.append(
                [
                    record["source"],
                    record["file"],
                    f"{record['record']:,}",
                    place,
                    record["license"] or "",
                    ", ".join(changed),
                    copies,
                ]
            )
        heads = ["source", "file", "record", "place", "licence", "changed by", "copies removed"]
        return _html(f"Row {self['row']:,}", heads, rows)


class Recommended(dict[str, Any]):
    """A recommendation as ``datamix recommend --json`` prints it; shown as its table."""

    def __init__(self, values: Mapping[str, Any], text: str) -> None:
        super().__init__(values)
        self._text = text

    def __repr__(self) -> str:
        return self._text


class Exported(list[dict[str, Any]]):
    """The new files of a set, as its manifest's ``outputs`` lists them."""

    def __repr__(self) -> str:
        return "\n".join(" ".join(str(cell) for cell in row) for row in self._rows())

    def _repr_html_(self) -> str:
        return _html("Exported", ["format", "files", "bytes", "keeps"], self._rows())

    def _rows(self) -> list[list[str]]:
        rows = []
        for name in dict.fromkeys(entry["format"] for entry in self):
            files = [entry for entry in self if entry["format"] == name]
            size = sum(entry["bytes"] for entry in files)
            rows.append([name, f"{len(files):,}", f"{size:,}", ", ".join(files[0]["keeps"])])
        return rows


@dataclass(frozen=True)
class WrittenRecipe:
    """A recipe that ``init`` wrote."""

    path: Path
    kind: str
    text: str
    unused: tuple[tuple[str, str], ...] = ()  # files that no recipe uses, and why

    def __repr__(self) -> str:
        lines = [f"{self.path}: {self.kind}", *(f"not used: {path}: {why}" for path, why in self.unused)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        table = (
            _html("Not used", ["file", "reason"], [list(row) for row in self.unused]) if self.unused else ""
        )
        return (
            f"<p><code>{escape(str(self.path))}</code>: {self.kind}</p><pre>{escape(self.text)}</pre>{table}"
        )


class Shown(str):
    """What ``inspect`` shows, with ANSI colours; a notebook shows them too."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from rich.console import Console
        from rich.text import Text

        console = Console(record=True, file=StringIO(), width=120)
        console.print(Text.from_ansi(self))
        return console.export_html(
            inline_styles=True, code_format='<pre style="line-height:1.4">{code}</pre>'
        )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _html(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """A table as HTML: texts to the left, numbers to the right, colours those of the notebook."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align:{"right" if cell[:1] in "~0123456789" else "left"}">{escape(cell)}</td>'
            for cell in row
        )
        + "</tr>"
        for row in rows
    )
    end = f"<p>{escape(note)}</p>" if note else ""
    return f"<h4>{escape(title)}</h4><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{end}"
