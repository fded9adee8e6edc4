"""How long `--help` takes; Markdown.

Usage: start.py [KVTOOLS]      KVTOOLS: the program of another version, measured in turn with ours
"""

import statistics
import subprocess
import sys
import time

ROUNDS = 15
PROGRAMS = {"ours": "kvtools"} | ({"other": sys.argv[1]} if sys.argv[1:] else {})

print(f"### Start-up\n\n| command | program | ms, median (least – most of {ROUNDS}) |\n|---|---|---|")
for words in (["--help"], ["tokenize-video", "--help"], ["etree-train", "--help"]):
    times = {name: [] for name in PROGRAMS}
    for _ in range(ROUNDS):
        for name, program in PROGRAMS.items():
            start = time.perf_counter()
            subprocess.run([program, *words], capture_output=True, check=True)
            times[name].append(1000 * (time.perf_counter() - start))
    for name, ms in times.items():
        print(f"| `kvtools {' '.join(words)}` | {name} | {statistics.median(ms):.0f} ({min(ms):.0f} – {max(ms):.0f}) |")
