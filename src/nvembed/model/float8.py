"""Linear layers with FP8 products, for inference on GPUs that have them.

Shapes: N tokens, K inputs, M outputs.

``y = s_n t_m sum_k q_nk p_mk (+ b_m)``: weights ``p`` and activations ``q`` are rounded to float8_e4m3fn,
with one scale per output and one per token, so that a text's vector does not depend on the texts beside it.
Sums are float32, the result is bfloat16.
"""

import torch
from torch import Tensor, nn

from nvembed.errors import InputError

LARGEST = 448.0  # of float8_e4m3fn
CAPABILITY = (8, 9)  # Ada; Hopper and Blackwell are later
_TINY = 1e-30  # smallest scale: a row of zeros stays zero


class Float8Rows:
    """Token states rounded to FP8 with one scale per token; stands in for the (N, K) tensor."""

    def __init__(self, codes_NK: Tensor, scale_N1: Tensor) -> None:
        self.codes_NK = codes_NK
        self.scale_N1 = scale_N1

    def __len__(self) -> int:
        return len(self.codes_NK)

    @classmethod
    def of(cls, x_NK: Tensor) -> "Float8Rows":
        return cls(*float8_rows(x_NK))


def float8_rows(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes (N, K) float8_e4m3fn and scales (N, 1) float32; a row's largest code is ``LARGEST``."""
    x_NK = x_NK.float()
    scale_N1 = (x_NK.abs().amax(1, keepdim=True) / LARGEST).clamp_min(_TINY)
    codes_NK = (x_NK / scale_N1).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes_NK, scale_N1


class Float8Linear(nn.Module):
    """``nn.Linear`` with FP8 weights; takes float states or ``Float8Rows``."""

    stored = ""  # no checkpoint has them

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self.register_buffer("codes", None)
        self.register_buffer("scale", None)

    def load(self, codes_MK: Tensor, scale_M1: Tensor) -> None:
        self.codes, self.scale = codes_MK, scale_M1.t().contiguous()

    def forward(self, x: Tensor | Float8Rows) -> Tensor:
        rows = x if isinstance(x, Float8Rows) else Float8Rows.of(x)
        y_NM = torch._scaled_mm(
            rows.codes_NK, self.codes.t(), rows.scale_N1, self.scale, out_dtype=torch.bfloat16
        )
        return y_NM if self.bias is None else y_NM.add_(self.bias)


def fits_float8(linear: nn.Linear) -> bool:
    """Whether the kernels take its sizes, which are multiples of 16."""
    return linear.in_features % 16 == 0 and linear.out_features % 16 == 0


def check_float8(device: torch.device) -> None:
    """Refuse a device without FP8 products.

    Raises:
        InputError: it is a CPU or an older GPU.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY:
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    raise InputError(
        "dtype is fp8: expected a GPU with FP8 products (compute capability 8.9 or later, such as L4 or H100)"
        f", got {name}. Use bfloat16 or int8"
    )
