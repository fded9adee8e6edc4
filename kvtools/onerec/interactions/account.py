"""What was read: which columns as what, how many rows were kept, and what decides the order. For one line, and for a report."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kvtools.skipped import SkippedRows

STREAM = "a stream"  # what messages call the form of a stream


@dataclass(frozen=True)
class TableAccount:
    """One input. columns: role → column. notes: clauses about columns that are not used."""

    name: str
    form: str  # as messages call it: `gzip CSV`
    columns: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """As a sentence without its full stop."""
        roles = ", ".join(f"{column} ({role})" if role != column else column for role, column in self.columns.items())
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{self.form}{f', columns {roles}' if roles else ''}{unused}{notes}"


@dataclass(frozen=True)
class Account:
    """All inputs of a command together. ties: users whose held-out items a tie of times decides."""

    tables: tuple[TableAccount, ...]
    n_read: int
    n_kept: int
    n_users: int
    n_items: int
    order: str  # "time", or "rows" where there are no times
    split: str  # "column", "files", "shares" of time, or "last" where each user's last two are held out
    ties: int
    findings: SkippedRows

    def line(self) -> str:
        """One line that says all."""
        tables = ". ".join(f"{table.name}: {table.line()}" for table in self.tables)
        by_reason = "; ".join(f"{reason}: {count:,}" for reason, count in self.findings.counts.items())
        lost = f" ({by_reason})" if by_reason else ""
        order = "of time" if self.order == "time" else "of rows, since there are no times"
        held = {
            "column": "a column says what is held out",
            "files": "the files say what is held out",
            "shares": "the latest are held out, by time",
        }.get(self.split, f"a tie decides what is held out of {self.ties:,} of them" if self.ties else "")
        return (
            f"{tables}. {self.n_read:,} {'row' if self.n_read == 1 else 'rows'} read, {self.n_kept:,} kept{lost}. "
            f"{self.n_users:,} {'user' if self.n_users == 1 else 'users'}, {self.n_items:,} "
            f"{'item' if self.n_items == 1 else 'items'}, in the order {order}{f'; {held}' if held else ''}."
        )

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        tables = [{**asdict(table), "unused": list(table.unused), "notes": list(table.notes)} for table in self.tables]
        counts = {"rows": self.n_read, "kept": self.n_kept, "users": self.n_users, "items": self.n_items}
        order = {"order": self.order, "held_out_by": self.split, "held_out_by_tie": self.ties}
        return {"inputs": tables, **counts, **order, "findings": self.findings.to_json()}


def tell(account: Account | None, log: Callable[[str], None]) -> None:
    """Log what was read from files. Streams were told of when they were made."""
    if account is not None and all(table.form != STREAM for table in account.tables):
        log(account.line())
