"""Command lines, one after another in this process: `mpiexec -n 4 python series.py FILE` starts four ranks once.

The first line that fails ends it with its exit code.
"""

import shlex
import sys
from pathlib import Path

from kvtools.cli import run

if __name__ == "__main__":
    for line in Path(sys.argv[1]).read_text().splitlines():
        if code := run(shlex.split(line)[1:]):
            sys.exit(code)
