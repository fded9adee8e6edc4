"""Expected efficiency of many ranks, by the formulas of scale.md; Markdown tables on stdout.

Usage: scale.py [NAME=VALUE]...      at once
Names, of a rank, in 1e9 of their unit: flops (4e5 GFLOP/s: a GPU in bfloat16, sustained), network (40 GB/s), tokens (16384 a
microbatch), rounds (1: microbatches a step); core (50 GFLOP/s: a core in float32), ethernet (2 GB/s), width (256), codes
(8192), sum_parts (3: numbers that a sum is made of), iterations (25), levels (3), vectors (1 billion), disk (1 GB/s).
"""

import sys

PARAMETERS = {"0.6b": 694_706_688, "8b": 8_643_841_648}
RANKS = (8, 64, 512)
BUCKET_BYTES = 25 << 20
GIGA = 1e9
GIVEN = {
    "flops": 4e5, "network": 40, "tokens": 16384, "rounds": 1, "core": 50, "ethernet": 2, "width": 256, "codes": 8192,
    "sum_parts": 3, "iterations": 25, "levels": 3, "vectors": 1, "disk": 1,
}  # fmt: skip


def ring(n_bytes, p):
    """What a rank receives of the sum of an array on p ranks."""
    return 2 * n_bytes * (p - 1) / p


def training(mode, n, p, given):
    """Bytes that a rank receives a step, and the efficiency. mode: whole, zero (a part of the optimiser a rank), parts."""
    compute_s = 6 * n * given["tokens"] / (given["flops"] * GIGA)  # of a microbatch, two thirds of it in the backward pass
    one = 4 * n * (p - 1) / p
    if mode == "parts":  # weights for the forward and again for the backward pass, gradients after each
        n_bytes = 3 * one * given["rounds"]
        hidden_s, rest = given["rounds"] * compute_s, 4 * n / 36  # the first layer's weights: nothing is computed meanwhile
    else:
        n_bytes = 2 * one + (one if mode == "zero" else 0)
        hidden_s, rest = 2 / 3 * compute_s, BUCKET_BYTES + (one if mode == "zero" else 0)
    sent_s, rest_s = n_bytes / (given["network"] * GIGA), rest / (given["network"] * GIGA)
    work_s = given["rounds"] * compute_s
    return n_bytes, work_s / (work_s + max(rest_s, sent_s - hidden_s))


def semid(p, given):
    """Bytes that a rank receives an iteration, the efficiency of iterations, and that of the whole fit with its serial parts.

    Serial, one after the other: rank 0 reads the vectors, and sends others theirs; in the end all ranks sum the codes.
    """
    n, d, k = given["vectors"] * GIGA, given["width"], given["codes"]
    compute_s = 2 * n * d * k / p / (given["core"] * GIGA)
    n_bytes = ring(k * (8 * d * given["sum_parts"] + 8), p)
    sent_s = n_bytes / (given["ethernet"] * GIGA)
    n_iterations = given["iterations"] * given["levels"]
    sent_bytes = 4 * n * d * (p - 1) / p + ring(4 * n * given["levels"], p)
    serial_s = 4 * n * d / (given["disk"] * GIGA) + sent_bytes / (given["ethernet"] * GIGA)
    whole_s = n_iterations * (compute_s + sent_s) + serial_s
    return n_bytes, compute_s / (compute_s + sent_s), n_iterations * compute_s / whole_s


def main():
    given = GIVEN | {name: float(value) for name, _, value in (word.partition("=") for word in sys.argv[1:])}
    assert given.keys() == GIVEN.keys(), given
    print("| model | exchange | GB a step | " + " | ".join(f"{p} ranks" for p in RANKS) + " |\n|---|---|---|---|---|---|")
    for size, n in PARAMETERS.items():
        for mode in ("whole", "zero", "parts"):
            found = [training(mode, n, p, given) for p in RANKS]
            cells = " | ".join(f"{efficiency:.2f}" for _, efficiency in found)
            print(f"| {size} | {mode} | {found[-1][0] / GIGA:.1f} | {cells} |")
    print("\n| semid-build | MB an iteration | iterations alone | with reading, sending and codes |\n|---|---|---|---|")
    for p in RANKS:
        n_bytes, alone, whole = semid(p, given)
        print(f"| {p} ranks | {n_bytes / 1e6:.1f} | {alone:.3f} | {whole:.2f} |")


main()
