"""The benchmarks by name."""

from kvtools.keye.bench.benchmark import Bench


def open_bench(name: str) -> Bench:
    """The benchmark of that name, which --bench lists."""
    from kvtools.keye.bench.kcmm import KCMMBench

    return {"kcmm": KCMMBench}[name]()
