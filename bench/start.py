"""How long `kvtools --help` and `kvtools tokenize-video --help` take; Markdown."""

import statistics
import subprocess
import time

print("### Start-up\n\n| command | ms, median (least – most of 15) |\n|---|---|")
for words in (["kvtools", "--help"], ["kvtools", "tokenize-video", "--help"], ["python", "-c", "pass"]):
    times = []
    for _ in range(15):
        begun = time.perf_counter()
        subprocess.run(words, capture_output=True, check=True)
        times.append(1000 * (time.perf_counter() - begun))
    print(f"| `{' '.join(words)}` | {statistics.median(times):.0f} ({min(times):.0f} – {max(times):.0f}) |")
