"""Contestant process of cpu_pair.py: transformers' eager `generate`, plain and assisted.

Models as `from_pretrained` gives them: its default attention (SDPA), dynamic cache, no compile.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from cpu_worker import Run, Stamps, serve
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.streamers import BaseStreamer


class Stopwatch(BaseStreamer):
    """Notes when `generate` hands out tokens; the first `put` is the prompt."""

    def __init__(self) -> None:
        self.stamps = Stamps(time.perf_counter())
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take one piece."""
        if not self._prompt:
            self.stamps.pieces.append((time.perf_counter(), value.numel()))
        self._prompt = False

    def end(self) -> None:
        """Do nothing; the caller notes the end."""


class Transformers:
    """One target and one assistant."""

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load both models in the dtype that is timed."""
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_interop_threads(1)
        torch.set_num_threads(request["threads"])
        dtype = getattr(torch, request["dtype"])
        load = AutoModelForCausalLM.from_pretrained
        self.target = load(request["target"], dtype=dtype).eval()
        self.draft = load(request["draft"], dtype=dtype).eval()
        self.eos = self.target.generation_config.eos_token_id
        return {
            "threads": torch.get_num_threads(),
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "attention": self.target.config._attn_implementation,
        }

    def run(self, request: dict[str, Any]) -> Run:
        """Write one text; assisted with k = 0 takes the assistant's defaults."""
        eos = None if request["ignore_eos"] else self.eos
        self.target.config.eos_token_id = eos
        self.target.generation_config = GenerationConfig(
            max_new_tokens=request["max_tokens"], do_sample=False, eos_token_id=eos, pad_token_id=1
        )
        extra: dict[str, Any] = {}
        if request["mode"] == "assisted":
            extra["assistant_model"] = self.draft
            self.draft.config.eos_token_id = eos
            self.draft.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=1)
            if request["k"]:
                self.draft.generation_config.num_assistant_tokens = request["k"]
                self.draft.generation_config.num_assistant_tokens_schedule = "constant"
                self.draft.generation_config.assistant_confidence_threshold = 0.0
        ids = torch.tensor([request["ids"]])
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            watch = Stopwatch()
            out = self.target.generate(ids, attention_mask=mask, streamer=watch, **extra)
            ended = time.perf_counter()
        return watch.stamps.run(out[0, ids.shape[1] :].tolist(), ended)


if __name__ == "__main__":
    serve(Transformers)
