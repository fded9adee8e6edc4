"""What rows of one or several tables are called in messages."""

from collections.abc import Iterable


class SourceRows:
    """What rows are called: the tables they come from, and those left out before them."""

    def __init__(self) -> None:
        self._tables: list[tuple[str, int, list[int]]] = []
        self.n_rows = 0

    def begin(self, name: str) -> None:
        """The rows that are added now are of this table."""
        self._tables.append((name, self.n_rows, []))

    def add(self, n_rows: int, left_out: Iterable[int]) -> None:
        """So many more rows; left_out: rows of the file, from 0, among them and not counted."""
        self._tables[-1][2].extend(sorted(left_out))
        self.n_rows += n_rows

    def name(self, row: int) -> str:
        """`row 5`, as it counts in its file from 1 after the header; with the file's name where there are several."""
        name, begin, left_out = next(table for table in reversed(self._tables) if table[1] <= row)
        row -= begin
        for other in left_out:
            if other > row:
                break
            row += 1
        return f"row {row + 1}" if len(self._tables) == 1 else f"row {row + 1} of {name}"
