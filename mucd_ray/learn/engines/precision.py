"""Float32 products that are float32. A clip norm is kept to 4e-6; operands rounded to ten bits (TF32) or seven (bfloat16) exceed it by 1e-3.

Libraries do that on request: of their variables, of torch's flags in this process, or of their own defaults.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mucd_ray.errors import MucdError

# Variables by which coarse products can be forced from outside, and the values that forbid them. The libraries of NVIDIA and oneDNN read
# theirs once, before their first product. Torch's makes TF32 the initial value of the flag that is set below.
VARIABLES = {
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0", "NVIDIA_TF32_OVERRIDE": "0", "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT", "DNNL_DEFAULT_FPMATH_MODE": "STRICT",
}
SIDE = 128


def forbid_coarse_products() -> None:
    """Set variables and flags against them; to be called before a process uses its GPU."""
    os.environ.update(VARIABLES)
    # Torch has two interfaces, an older one below, and fails where they were set to different values.
    backends: Any = torch.backends
    for part in (backends, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn):
        part.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = False


def require_float32_products(device: torch.device, convolutions: bool = False) -> None:
    """Forbid coarse products, then multiply on the device to see that there are none, whatever variables and flags say.

    Raises:
        MucdError: operands or sums of a product have fewer bits than float32.
    """
    forbid_coarse_products()
    generator = torch.Generator().manual_seed(0)
    # Factors of one, of numbers that need all 24 bits; and whole numbers whose sums need nearly as many.
    full = 1 + torch.randint(1, 1 << 23, (SIDE, SIDE), generator=generator) * 2.0**-23
    whole = torch.randint(-300, 301, (2, SIDE, SIDE), generator=generator)
    exact = (whole[0] @ whole[1]).to(torch.float32).to(device)
    full, one, (left, right) = full.to(device), torch.eye(SIDE, device=device), whole.to(torch.float32).to(device)
    products: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch.mm": torch.mm, "torch.bmm": lambda a, b: torch.bmm(a[None], b[None])[0]}
    if convolutions:
        # A kernel of one pixel multiplies matrices: [rows, channels] of an image's pixels by [channels, outputs].
        products["torch.conv2d"] = lambda a, b: torch.conv2d(a.t()[None, :, :, None], b.t()[:, :, None, None])[0, :, :, 0].t()
    for name, product in products.items():
        if not (torch.equal(product(full, one), full) and torch.equal(product(one, full), full) and torch.equal(product(left, right), exact)):
            raise MucdError(
                f"{name} on {device} is coarser than float32 (TF32 or bfloat16), so that clipped vectors would exceed the clip norm: unset {', '.join(VARIABLES)} and what "
                "else asks for it, then start a new process"
            )
