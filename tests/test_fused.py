import json
import os
import re
import subprocess
import sys
from functools import partial
from importlib import util
from pathlib import Path

import pytest
import torch

from nnunet_ssl import fused
from nnunet_ssl.losses import info_nce
from tests.test_info_nce import pairs, value_and_gradient

needs_triton = pytest.mark.skipif(util.find_spec("triton") is None, reason="Triton is not installed (make venv does)")


@needs_triton
def test_kernels_equal_the_formula():
    """By Triton's interpreter, which runs what a GPU would on a CPU: widths that are and are not powers of two,
    numbers of pairs that do and do not fill a block, both ways to start a kernel, weights of either sign."""
    run = subprocess.run([sys.executable, "-m", "tests.fused_in_interpreter"], cwd=Path(__file__).parents[1],
                         env={**os.environ, "TRITON_INTERPRET": "1"}, stdin=subprocess.DEVNULL, capture_output=True,
                         encoding="utf-8", timeout=600)  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == 25
    for entry in found:
        assert entry["launched"] == ["sums", "gradients"], entry
        assert entry["found"] == pytest.approx(entry["value"], rel=1e-3, abs=1e-6), entry
        assert entry["error"] < 2e-3, entry  # float16; the bfloat16 products of "reduced" are off by up to 5e-3


@needs_triton
@pytest.mark.parametrize("capability", [80, 86, 90])
@pytest.mark.parametrize("width", [16, 128, 256])
@pytest.mark.parametrize("name", ["sums", "gradients"])
def test_kernels_compile_and_keep_to_their_registers(tmp_path, name, width, capability):
    """No GPU is needed to compile for one: what a spilled register or too much shared memory would cost shows here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from nnunet_ssl import kernels

    kernel, how = getattr(kernels, name), fused.NARROW if width <= 128 else fused.WIDE
    constants = {"WIDTH": width, "ROWS": how.rows, "COLUMNS": how.columns}
    types = {"vectors": "*fp16", "count": "i32", "pairs": "i32", **dict.fromkeys(constants, "constexpr")}
    signature = {argument: types.get(argument, "*fp32") for argument in kernel.arg_names}
    place = kernel.arg_names.index
    aligned = {(place(a),): [["tt.divisibility", 16]] for a, kind in signature.items() if kind[0] == "*"}
    source = ASTSource(kernel, signature, {(place(a),): value for a, value in constants.items()}, aligned)
    compiled = compile(source, target=GPUTarget("cuda", capability, 32),
                       options={"num_warps": how.warps, "num_stages": how.stages})  # fmt: skip
    assert compiled.metadata.shared <= 99 * 1024  # what capability 8.6 gives a block, the least of them
    assert ("wgmma" if capability == 90 else "mma.sync") in compiled.asm["ptx"]
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", tmp_path / "kernel.cubin"], stdin=subprocess.DEVNULL,
                           capture_output=True, encoding="utf-8", check=True).stdout  # fmt: skip
    assert re.search(rf"{name}.*\n.* REG:\d+ STACK:0 .* LOCAL:0 ", usage), usage


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_kernels_do_not_run_it_is_as_reduced(dtype):
    z = pairs(40, 12, dtype=dtype)
    assert not fused.usable(z[0])
    expected, found = (value_and_gradient(partial(info_nce, precision=kind), *z, 0.1) for kind in ("reduced", "fused"))
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])


def test_short_numbers_are_refrained_from_where_they_would_cost_more(monkeypatch):
    """Unit vectors at a temperature of 0.05: no kernel, and what float32 gives."""
    monkeypatch.setattr(fused, "usable", lambda vectors: pytest.fail("asked for"))
    z = pairs(30, 8, dtype=torch.float32)
    expected = value_and_gradient(info_nce, *z, 0.05)
    found = value_and_gradient(partial(info_nce, precision="fused"), *z, 0.05)
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("n", "d"), [(61, 24), (1000, 128), (300, 200)])
def test_on_a_gpu_it_equals_float32(n, d):
    z = tuple(part.cuda() for part in pairs(n, d, dtype=torch.float32))
    assert fused.usable(z[0])
    expected, found = (value_and_gradient(partial(info_nce, precision=kind), *z, 0.1) for kind in ("float32", "fused"))
    assert found[0] == pytest.approx(expected[0], rel=1e-3)
    assert (found[1] - expected[1]).norm() < 2e-3 * expected[1].norm()
