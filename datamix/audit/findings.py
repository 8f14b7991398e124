"""What a check found: one line a promise, with the first few violations told and the others counted."""

from __future__ import annotations

from dataclasses import dataclass, field

_TOLD = 3  # violations spelled out in one line


@dataclass(frozen=True)
class Check:
    """One promise: its name, whether it holds, and what was counted."""

    name: str
    ok: bool
    detail: str


@dataclass
class Findings:
    """Violations of one promise as they turn up."""

    name: str
    _told: list[str] = field(default_factory=list)
    _num_found: int = 0

    def add(self, sentence: str, num_found: int = 1) -> None:
        """Note ``num_found`` violations, of which ``sentence`` tells the first."""
        if num_found and len(self._told) < _TOLD:
            self._told.append(sentence)
        self._num_found += num_found

    def expect(self, what: str, claimed: object, counted: object) -> None:
        """Note a violation unless the manifest's claim equals the count; floats within a rounding error."""
        if isinstance(claimed, float) or isinstance(counted, float):
            equal = isinstance(claimed, int | float) and close(float(claimed), float(str(counted)))
        else:
            equal = claimed == counted
        if not equal:
            self.add(f"{what} is {_told(counted)}, the manifest says {_told(claimed)}")

    def check(self, held: str) -> Check:
        """The verdict; ``held`` is the detail where nothing was found."""
        if not self._num_found:
            return Check(self.name, True, held)
        more = self._num_found - len(self._told)
        tail = f"; and {more:,} more" if more else ""
        return Check(self.name, False, "; ".join(self._told) + tail)


def close(left: float, right: float) -> bool:
    """Equal up to the rounding of sums of floats."""
    return abs(left - right) <= 1e-9 + 1e-7 * max(abs(left), abs(right))


def first_line(error: Exception) -> str:
    """What a library's error says, short enough for one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _told(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.8g}"
