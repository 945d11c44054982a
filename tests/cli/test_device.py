"""`--device` in every command that opens models, on a machine without a GPU."""

from __future__ import annotations

import pytest
import torch
from commands import Call, Pair, one_line_error

if torch.cuda.is_available():
    pytest.skip("there is a CUDA device", allow_module_level=True)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tpu"])
@pytest.mark.parametrize("command", ["generate", "demo", "audit"])
def test_a_device_that_is_not_there(call: Call, pair: Pair, command: str, device: str) -> None:
    text = ["x"] if command == "generate" else []
    done = call(command, "--target", pair.target, "--draft", pair.draft, "--device", device, *text)
    line = one_line_error(done)
    assert f"'{device}'" in line
    assert "no CUDA device here; use cpu" in line or "must be auto, cpu or cuda" in line


def test_verbose_tells_seconds_and_memory(call: Call, pair: Pair) -> None:
    done = call("generate", *pair.options, "--max-length", "64", "--verbose", "--max-tokens", "2",
                "x")  # fmt: skip
    assert done.status == 0, done
    assert "1 texts of up to 64 positions" in done.err
    assert "target weights 0.00, draft weights 0.00, target cache" in done.err
    assert "million parameters, float32) in " in done.err
