"""Which number formats a processor computes fast."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Say whether a device computes bfloat16 at least as fast as float32.

    A processor without AVX-512 BF16 or AMX emulates it: LiteMedSAM's encoder then takes seven times as long.
    """
    if torch.device(device).type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return True
