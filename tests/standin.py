"""A stand-in for KC-MMBench from small clips made here, by the script among the examples."""

import runpy
import sys

from conftest import ROOT, make_clip


def make_clips(folder, n):
    """So many small clips of different widths."""
    for number in range(n):
        make_clip(folder / f"clip_{number}.mp4", n_frames=20 + number, width=96 + 16 * number)


def make_standin(folder, name, *more):
    """Run the script on the clips of a folder; the set is a folder of that name in it, whose path comes back."""
    before, sys.argv = sys.argv, ["make_kcmm_standin.py", str(folder), "-o", str(folder / name), *more]
    try:
        runpy.run_path(str(ROOT / "examples/make_kcmm_standin.py"), run_name="__main__")
    finally:
        sys.argv = before
    return str(folder / name)
