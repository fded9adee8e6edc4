"""Other people's code, in their environment, asked on stdin; a JSON line of seconds, and of what came out, on stdout.

`k-means`: k-means-constrained on x.npy. `flwr`, `pfl`: rounds of FedAvg over all devices, from start.npz, on the samples whose
numbers are in rows.npy (rounds, devices, samples), in that order; the last weights go to NAME.npz. Seconds are those of each
round after the first, which warms up: no start, no evaluation. Flower runs as its users run it, a Ray worker a core.
"""

import json
import os
import sys
import time
from functools import cache

import numpy as np


def k_means(asked):
    from k_means_constrained import KMeansConstrained

    x = np.load(asked["x"])
    fit = KMeansConstrained(
        asked["k"], size_min=asked["low"], size_max=asked["high"], max_iter=asked["iterations"], n_init=1, random_state=0
    )
    begun = time.perf_counter()
    fit.fit(x)
    sizes = np.bincount(fit.labels_, minlength=asked["k"])
    return {
        "seconds": time.perf_counter() - begun,
        "inertia": float(fit.inertia_),
        "least": int(sizes.min()),
        "most": int(sizes.max()),
    }


@cache
def inputs(top):
    """Samples, labels, rows and the first weights; mapped, so that workers share them."""
    x, y, rows = (np.load(os.path.join(top, f"{name}.npy"), mmap_mode="r") for name in ("x", "y", "rows"))
    return x, y, rows, dict(np.load(os.path.join(top, "start.npz")))


def net_of(start):
    from torch import nn

    shapes = [array.shape for name, array in start.items() if name.endswith("weight")]
    layers = [part for n_out, n_in in shapes for part in (nn.Linear(n_in, n_out), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def train(net, top, round_number, device, batch, rate):
    """One pass of plain SGD over a device's samples; how many there were."""
    import torch

    x, y, rows, _ = inputs(top)
    order = np.asarray(rows[round_number, device])
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    for begin in range(0, len(order), batch):
        some = order[begin : begin + batch]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(torch.from_numpy(x[some])), torch.from_numpy(y[some])).backward()
        optimizer.step()
    return len(order)


def flwr(asked):
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    top, batch, rate = asked["top"], asked["batch"], asked["rate"]
    _, _, rows, start = inputs(top)
    n_rounds, n_devices, _ = rows.shape
    client, ends, last = ClientApp(), [], []

    @client.train()
    def _(message, context):
        net = net_of(inputs(top)[3])
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        number = int(message.content["config"]["server-round"]) - 1
        n = train(net, top, number, int(context.node_config["partition-id"]), batch, rate)
        content = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": n})}
        return Message(content=RecordDict(content), reply_to=message)

    server = ServerApp()

    @server.main()
    def _(grid, _context):
        import torch

        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=n_devices)
        first = ArrayRecord({name: torch.from_numpy(array) for name, array in start.items()})
        result = strategy.start(
            grid=grid, initial_arrays=first, num_rounds=n_rounds,
            evaluate_fn=lambda *_: ends.append(time.perf_counter()),
        )  # fmt: skip
        last.append(result.arrays.to_torch_state_dict())

    config = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"include_dashboard": False}}
    run_simulation(server, client, n_devices, backend_config=config)
    np.savez(os.path.join(top, "flwr.npz"), **{name: array.numpy() for name, array in last[0].items()})
    return {"seconds": np.diff(ends)[1:].tolist()}  # the first end is that of the start, the second of warming up


def pfl(asked):
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.internal.ops import pytorch_ops
    from pfl.internal.ops.selector import set_framework_module
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    set_framework_module(pytorch_ops)
    top = asked["top"]
    x, y, rows, start = inputs(top)
    n_rounds, n_devices, _ = rows.shape

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net_of(start)
            self.net.load_state_dict({name: torch.from_numpy(array) for name, array in start.items()})

        def loss(self, x, y, **_):
            return torch.nn.functional.cross_entropy(self.net(x), y.long())

        def metrics(self, *_, **__):
            return {}

    ends = []

    class Clock(TrainingProcessCallback):
        def on_train_begin(self, **_):
            ends.append(time.perf_counter())
            return Metrics()

        def after_central_iteration(self, *_, **__):
            ends.append(time.perf_counter())
            return False, Metrics()

    turn = iter(range(n_rounds * n_devices + n_devices))

    def dataset_of(number):
        order = np.asarray(rows[min(number // n_devices, n_rounds - 1), number % n_devices])
        return Dataset([x[order], y[order]], user_id=str(number))

    data = FederatedDataset(dataset_of, lambda: next(turn))
    net = Net()
    model = PyTorchModel(
        net, lambda parameters, lr: torch.optim.SGD(parameters, lr=lr), torch.optim.SGD(net.parameters(), lr=1.0)
    )
    FederatedAveraging().run(
        NNAlgorithmParams(n_rounds, 10**9, n_devices, 0),
        SimulatedBackend(data, data, [WeightByDatapoints()]),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=asked["rate"], local_batch_size=asked["batch"]),
        NNEvalHyperParams(local_batch_size=asked["batch"]),
        [Clock()],
    )
    np.savez(os.path.join(top, "pfl.npz"), **{name: array.numpy() for name, array in net.net.state_dict().items()})
    return {"seconds": np.diff(ends)[1:].tolist()}


if __name__ == "__main__":
    # Ray's workers find what they are to run by its module's name, which __main__ is not there
    here = os.path.dirname(os.path.abspath(__file__))
    os.environ["PYTHONPATH"] = here
    sys.path.insert(0, here)
    import etree_peers

    told = json.load(sys.stdin)
    answer = {"k-means": etree_peers.k_means, "flwr": etree_peers.flwr, "pfl": etree_peers.pfl}[told["what"]](told)
    print("\n" + json.dumps(answer), flush=True)
