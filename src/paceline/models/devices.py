"""Which device is meant where nobody names one, and what a GPU must have for a dtype.

Asked of torch and the driver alone, before anything is opened.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec

import torch

from paceline.errors import ConfigError

log = logging.getLogger(__name__)

AUTO = "auto"
_BFLOAT16 = (8, 0)  # the first compute capability whose products take it


def choose(dtype: str) -> str:
    """The device that "auto" means here, "cuda" or "cpu", for weights of a dtype (by its name): a
    GPU that torch sees, where its kernels can be compiled and it computes in that dtype. Logs
    which, and why."""
    if not torch.cuda.is_available():
        log.info("device auto is cpu: torch sees no CUDA device")
        return "cpu"
    device = torch.device("cuda")
    if not has_triton():
        log.warning("device auto is cpu: the GPU's kernels need triton, which is not installed")
        return "cpu"
    reason = lacking(device, dtype)
    if reason is not None:
        log.warning("device auto is cpu: %s; dtype float32 would run there", reason)
        return "cpu"
    log.info("device auto is cuda: %s", torch.cuda.get_device_name(device))
    return "cuda"


def check_device(device: torch.device, dtype: str) -> None:
    """Raise ConfigError where `device` does not compute in the dtype of that name."""
    reason = lacking(device, dtype)
    if reason is not None:
        raise ConfigError(f"device {device}: {reason}; give dtype float32, or device cpu")


def lacking(device: torch.device, dtype: str) -> str | None:
    """Why a dtype cannot be computed in on `device`, or None where it can."""
    if device.type != "cuda" or dtype != "bfloat16":
        return None
    found = torch.cuda.get_device_capability(device)
    if found >= _BFLOAT16:
        return None
    name = torch.cuda.get_device_name(device)
    return f"{name} has compute capability {_dotted(found)} and bfloat16 needs {_dotted(_BFLOAT16)}"


def has_triton() -> bool:
    """Whether triton can be imported; looked for, not imported."""
    try:
        return find_spec("triton") is not None
    except ValueError:  # a module that was put in its place without a spec
        return False


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
