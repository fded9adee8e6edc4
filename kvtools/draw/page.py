"""A figure of panels as an image: no display, no date, the same bytes for the same numbers."""

import io
from typing import Any

FORMATS = ("png", "svg", "pdf")


def page(n_rows: int, n_columns: int, title: str) -> tuple[Any, Any]:
    """A matplotlib figure with a title, and its axes as an array (n_rows, n_columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * n_columns, 3.4 * n_rows + 0.4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def image(figure: Any, form: str) -> bytes:
    """The figure in one of FORMATS."""
    import matplotlib as mpl

    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None, "Producer": None}}
    with io.BytesIO() as file, mpl.rc_context({"svg.hashsalt": "kvtools"}):
        figure.savefig(file, format=form, dpi=120, metadata=undated[form])
        return file.getvalue()
