"""What of an adapted model trains and what does not, to be printed as a line or a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Summary"]


@dataclass(frozen=True)
class Summary:
    """Made by `Adapted.summary()`; `str(...)` is one line, `table()` several.

    Attributes:
        model: Name of the model's class.
        total: Parameters of the plain model, its head included.
        active: Trainable numbers of the active genotype, without the head; of several active ones in their order.
        supernet: Numbers of all support tensors, of which the active genotype uses a part.
        head: Module trained whole -> its parameters.
        sites: The kind of every site.
        adapters: Names of the adapters.
        notes: What is not adapted or not offered, and why.
    """

    model: str
    total: int
    active: tuple[int, ...]
    supernet: int
    head: Mapping[str, int]
    sites: tuple[str, ...]
    adapters: tuple[str, ...] = ("default",)
    notes: tuple[str, ...] = ()

    @property
    def trainable(self) -> int:
        """Numbers that a training step with what is active now may change, the head's included."""
        adapter = self.supernet if len(self.active) != 1 else self.active[0]
        return adapter + sum(self.head.values())

    def __str__(self) -> str:
        share = f"{self.trainable / self.total:.2%}" if self.total else "0%"
        trainable = f"{self.trainable:,} trainable ({share} of the model's {self.total:,})"
        return f"{trainable}: {self._active()}, head {self._head()}; {len(self.sites)} sites: {self._sites()}"

    def __repr__(self) -> str:
        return f"<{self}>"

    def table(self) -> str:
        """The same in lines, with the notes."""
        rows = [
            ("model", f"{self.model}, {self.total:,} parameters"),
            ("sites", f"{len(self.sites)}: {self._sites()}"),
            ("playing", self._active()),
            ("supernet", f"{self.supernet:,} numbers in all support tensors"),
            ("head", self._head()),
            ("trainable", f"{self.trainable:,} ({self.trainable / max(1, self.total):.2%} of the model)"),
            ("adapters", ", ".join(self.adapters)),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{name:<10} {text}" for name, text in rows)

    def _active(self) -> str:
        if len(self.active) == 1:
            return f"active genotype {self.active[0]:,}"
        if not self.active:
            return f"several adapters {self.supernet:,}"
        return f"{len(self.active)} genotypes of {min(self.active):,} to {max(self.active):,}"

    def _head(self) -> str:
        if not self.head:
            return "none"
        return f"{sum(self.head.values()):,} ({', '.join(self.head)})"

    def _sites(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in Counter(self.sites).items())
