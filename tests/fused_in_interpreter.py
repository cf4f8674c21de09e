"""The kernels of nnunet_ssl.fused on a CPU, by Triton's interpreter, against the formula in float64.

Run by test_fused.py as ``TRITON_INTERPRET=1 python -m tests.fused_in_interpreter``: Triton reads the variable when it
is imported. Prints a JSON list, an entry a case.
"""

import itertools
import json
from functools import partial

import torch

from nnunet_ssl import fused
from nnunet_ssl.losses import info_nce
from tests.test_info_nce import pairs, relative, terms_written_out, value_and_gradient, written_out

launched = []


def noted(kernel, *tensors, launch=fused._launch):
    launched.append(kernel.__name__)
    launch(kernel, *tensors)


def weighted(loss, weights):
    """A loss of which every pair has its own weight."""
    return lambda a, b, temperature: (loss(a, b, temperature) * weights.to(a.dtype)).sum()


def each_pair_written_out(z_a, z_b, temperature):
    return terms_written_out(z_a, z_b, temperature).view(2, -1).mean(0)


def entry(n, d, temperature, noise, ours, formula):
    launched.clear()
    z_a, z_b = pairs(n, d, noise, seed=n, dtype=torch.float32)
    value, gradient = value_and_gradient(formula, z_a.double(), z_b.double(), temperature)
    v, g = value_and_gradient(ours, z_a, z_b, temperature)
    return {"case": f"{n} x {d}, {temperature}, {noise}", "launched": list(launched), "value": value, "found": v,
            "error": relative(g, gradient) if gradient.any() else float(g.abs().max())}  # fmt: skip


def main():
    fused.usable = lambda vectors: True
    fused._launch = noted
    loss = partial(info_nce, precision="fused")
    sizes = [(1, 4), (2, 16), (32, 16), (61, 24), (200, 128), (70, 200)]
    found = [entry(*size, temperature, noise, loss, written_out)
             for size, temperature, noise in itertools.product(sizes, (0.1, 0.53), (0.3, 5.0))]  # fmt: skip
    weights = torch.linspace(-1, 2, 50) ** 3
    found.append(entry(50, 20, 0.2, 1.0, weighted(partial(loss, reduction="none"), weights),
                       weighted(each_pair_written_out, weights)))  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
