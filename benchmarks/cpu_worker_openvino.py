"""Contestant process of cpu_pair.py: OpenVINO GenAI, plain and speculative.

Runs in an environment of its own (requirements-openvino.txt). Every pipeline reads the same
converted checkpoints; prefix caching is off, since no other contestant keeps earlier prompts.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import numpy
import openvino
import openvino_genai as genai
from cpu_worker import Run, serve

PRECISION = {"bfloat16": "bf16", "float32": "f32"}


class OpenVINO:
    """One pipeline for each (backend, cache precision, speculative or not)."""

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Compile the pipelines named in request["pipelines"]; tell which cannot be."""
        self.pipelines, failed = {}, {}
        for pipeline in request["pipelines"]:
            try:
                self.pipelines[pipeline["key"]] = self._open(request, pipeline)
            except RuntimeError as error:
                failed[pipeline["key"]] = str(error).splitlines()[-1]
        names = ("openvino", "openvino-genai", "openvino-tokenizers", "optimum-intel")
        versions = {name: version(name) for name in names}
        return {"threads": request["threads"], "versions": versions, "failed": failed}

    def _open(self, request: dict[str, Any], pipeline: dict[str, Any]) -> genai.LLMPipeline:
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": PRECISION[request["dtype"]],
            "INFERENCE_NUM_THREADS": request["threads"],
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Otherwise products of some weights are quantised behind the caller's back.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        }
        if pipeline["kv"] != "default":
            properties["KV_CACHE_PRECISION"] = pipeline["kv"]
        options = {**properties, "ATTENTION_BACKEND": pipeline["backend"]}
        if pipeline["backend"] == "PA":
            scheduler = genai.SchedulerConfig()
            scheduler.enable_prefix_caching = False
            scheduler.cache_size = 1
            # Whole prompts in one pass, as the pipeline does when no scheduler is given.
            scheduler.max_num_batched_tokens = 4096
            options["scheduler_config"] = scheduler
        if pipeline["speculative"]:
            options["draft_model"] = genai.draft_model(request["draft"], "CPU", **properties)
        return genai.LLMPipeline(request["target"], "CPU", **options)

    def run(self, request: dict[str, Any]) -> Run:
        """Write one text from token ids; the first piece's time is the engine's own metric."""
        config = genai.GenerationConfig()
        config.max_new_tokens = request["max_tokens"]
        config.ignore_eos = request["ignore_eos"]
        config.do_sample = False
        if not config.ignore_eos:
            config.eos_token_id = request["eos"]
            config.stop_token_ids = {request["eos"]}
        if request["k"]:
            config.num_assistant_tokens = request["k"]
        pipeline = self.pipelines[request["key"]]
        prompt = openvino.Tensor(numpy.array([request["ids"]], dtype=numpy.int64))
        began = time.perf_counter()
        out = pipeline.generate(prompt, config)
        seconds = time.perf_counter() - began
        sizes = list(out.perf_metrics.raw_metrics.m_batch_sizes)
        run = Run(
            ids=[int(token) for token in out.tokens[0]],
            seconds=seconds,
            first_seconds=out.perf_metrics.get_ttft().mean / 1000,
            first_tokens=int(sizes[0]) if sizes else 0,
            rounds=len(sizes),
        )
        counts = getattr(out, "extended_perf_metrics", None)
        if request["k"] and counts is not None:
            # It does not tell how many of the drafted tokens were tested before the first miss.
            run.drafted = counts.get_num_draft_tokens()
            run.accepted = counts.get_num_accepted_tokens()
        return run


if __name__ == "__main__":
    serve(OpenVINO)
