"""The benchmarks by name."""

from kvtools.keye.bench.benchmark import Bench


def open_bench(name: str) -> Bench:
    """The benchmark of that name, which --bench lists."""
    from kvtools.keye.bench.choice import ChoiceBench
    from kvtools.keye.bench.kcmm import KCMMBench
    from kvtools.keye.bench.tempcompass import TempCompassBench

    benches: dict[str, type[KCMMBench | ChoiceBench | TempCompassBench]] = {
        "kcmm": KCMMBench, "choice": ChoiceBench, "tempcompass": TempCompassBench,
    }  # fmt: skip
    return benches[name]()
