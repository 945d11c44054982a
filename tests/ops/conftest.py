"""Without a GPU, Triton kernels run in its interpreter: a flag that is read when they are made."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
