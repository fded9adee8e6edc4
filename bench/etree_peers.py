"""k-means-constrained, asked on stdin, in the peers' environment; a JSON line of seconds and inertia on stdout."""

import json
import sys
import time

import numpy as np
from k_means_constrained import KMeansConstrained

asked = json.load(sys.stdin)
x = np.load(asked["x"])
fit = KMeansConstrained(
    asked["k"], size_min=asked["low"], size_max=asked["high"], max_iter=asked["iterations"], n_init=1, random_state=0
)
begun = time.perf_counter()
fit.fit(x)
sizes = np.bincount(fit.labels_, minlength=asked["k"])
print(
    json.dumps(
        {
            "seconds": time.perf_counter() - begun,
            "inertia": float(fit.inertia_),
            "least": int(sizes.min()),
            "most": int(sizes.max()),
        }
    )
)
