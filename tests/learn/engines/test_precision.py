"""Coarse float32 products: refused where they show, forbidden before they can."""

import json
import os
import subprocess
import sys

import pytest
import torch
from problems import rounded

from mucd_ray.errors import MucdError
from mucd_ray.learn.engines import precision
from mucd_ray.learn.engines.precision import require_float32_products

CPU = torch.device("cpu")


@pytest.mark.parametrize("coarse", [
    lambda a, b: a.bfloat16().float() @ b, lambda a, b: a @ rounded(b, 10), lambda a, b: rounded(a @ b, 18), lambda a, b: (a.half() @ b.half()).float(),
    lambda a, b: torch.stack([torch.stack([rounded((x * y).view(8, -1).sum(1), 14).sum() for y in b.t()]) for x in a]),
])
def test_coarse_operands_and_coarse_sums_show(coarse, monkeypatch):
    monkeypatch.setattr(precision, "SIDE", 32)
    require_float32_products(CPU, convolutions=True)
    monkeypatch.setattr(torch, "mm", coarse)
    with pytest.raises(MucdError, match="coarser"):
        require_float32_products(CPU)


SCRIPT = """
import json, os, torch
{before}
from mucd_ray.learn.engines.precision import VARIABLES, require_float32_products
require_float32_products(torch.device("cuda" if torch.cuda.is_available() else "cpu"), convolutions=True)
b = torch.backends
parts = (b, b.cuda.matmul, b.cudnn, b.cudnn.conv, b.cudnn.rnn, b.mkldnn, b.mkldnn.matmul, b.mkldnn.conv)
assert {{part.fp32_precision for part in parts}} <= {{"ieee", "none"}}, [part.fp32_precision for part in parts]
print(json.dumps([b.cuda.matmul.allow_tf32, b.cudnn.allow_tf32, torch.get_float32_matmul_precision(), [os.environ[name] for name in VARIABLES]]))
"""


@pytest.mark.parametrize("before,given", [
    ("", {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "NVIDIA_TF32_OVERRIDE": "1", "ONEDNN_DEFAULT_FPMATH_MODE": "ANY"}),
    ("torch.backends.fp32_precision = torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.fp32_precision = 'tf32'", {}),
    ("torch.backends.cudnn.conv.fp32_precision = 'tf32'; torch.backends.mkldnn.matmul.fp32_precision = 'bf16'", {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}),
    ("torch.set_float32_matmul_precision('medium'); torch.backends.cudnn.allow_tf32 = True", {}),
])
def test_variables_and_flags_from_outside_are_overruled(before, given):
    """In a process of its own, since they count at the start."""
    result = subprocess.run([sys.executable, "-c", SCRIPT.format(before=before)], env=os.environ | given, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [False, False, "highest", list(precision.VARIABLES.values())]
