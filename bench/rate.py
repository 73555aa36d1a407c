"""One rate of a service, and the rate of the simplest program that does as much, from the same run. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass


class RateError(Exception):
    """A rate could not be measured; the message is the sentence that says why."""


@dataclass(frozen=True, slots=True)
class Rate:
    """``value`` in ``unit``; where there is something to compare with, its name, its rate and the ratio, which is the
    median of the ratios of the rounds."""

    name: str
    unit: str
    value: float
    beside: str | None = None
    beside_value: float | None = None
    ratio: float | None = None

    def sentence(self) -> str:
        """The rate for a person."""
        said = f"{self.name}: {self.value:,.4g} {self.unit}"
        if self.beside is None or self.beside_value is None or self.ratio is None:
            return said
        return f"{said}; {self.beside} {self.beside_value:,.4g} ({self.ratio:.2f})"

    def record(self) -> dict[str, object]:
        """The rate for a program."""
        return asdict(self)
