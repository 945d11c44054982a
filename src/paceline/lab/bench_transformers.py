"""Contestant: transformers' `generate` in this process, plain, assisted or with prompt lookup.

Models as `from_pretrained` gives them: its own attention, a dynamic cache, no compile. It writes
one text at a time; whoever asks meanwhile waits, and that wait is part of what is measured.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.stopping_criteria import (
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer

from paceline import ConfigError, checkpoint_folder
from paceline.lab.bench_ask import Answer, Ask
from paceline.lab.bench_gpu import used
from paceline.lab.bench_record import Contestant, Opening


@dataclass(slots=True)
class _Watch(BaseStreamer):
    """Notes when `generate` hands out tokens; the first `put` is the prompt."""

    began: float
    prompt: bool = True
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def put(self, value: Any) -> None:
        if not self.prompt:
            self.times.append(time.perf_counter() - self.began)
            self.tokens.append(int(value.numel()))
        self.prompt = False

    def end(self) -> None: ...


class _Until(StoppingCriteria):
    """Ends a text at a moment, or where whoever asked has gone."""

    def __init__(self, at: float, gone: threading.Event) -> None:
        self.at, self.gone, self.passed = at, gone, False

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.passed = self.passed or time.perf_counter() > self.at or self.gone.is_set()
        return torch.full((len(input_ids),), self.passed, device=input_ids.device)


class TransformersPlayer:
    """One target, and an assistant where the mode wants one."""

    def __init__(self, contestant: Contestant) -> None:
        """Load the models. Raises PacelineError, and whatever transformers raises."""
        self._contestant, options = contestant, contestant.options
        self._mode = options["mode"]
        self._device = torch.device(options.get("device", "cpu"))
        dtype = getattr(torch, options.get("dtype", "bfloat16"), None)
        if not isinstance(dtype, torch.dtype):
            raise ConfigError(f"contestant {contestant.name!r}: no such dtype {options['dtype']!r}")
        told: Any = transformers.utils.logging
        told.disable_progress_bar()
        told.set_verbosity_error()
        if "threads" in options:
            torch.set_num_threads(int(options["threads"]))
        began = time.perf_counter()
        folder = checkpoint_folder(contestant.model)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._target = self._load(folder, dtype)
        self._draft = self._load(checkpoint_folder(contestant.draft), dtype) \
            if contestant.draft else None  # fmt: skip
        self._seconds = time.perf_counter() - began
        self._turn = asyncio.Lock()

    def _load(self, folder: Any, dtype: torch.dtype) -> Any:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return model.to(self._device).eval()

    @property
    def chats(self) -> bool:
        return bool(self._tokenizer.chat_template)

    async def ask(self, ask: Ask) -> Answer:
        """Write one text, after those that were asked for before."""
        began, gone = time.perf_counter(), threading.Event()
        async with self._turn:
            if time.perf_counter() - began > ask.timeout:
                waited = f"waited {ask.timeout:g} s for the texts before it"
                return Answer(wall=time.perf_counter() - began, error=waited)
            try:
                return await asyncio.to_thread(self._write, ask, began, gone)
            except asyncio.CancelledError:
                gone.set()
                raise
            # transformers and the models' own code raise what they like.
            except Exception as error:
                told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                return Answer(wall=time.perf_counter() - began, error=told)

    def _write(self, ask: Ask, began: float, gone: threading.Event) -> Answer:
        ids = self._encode(ask)
        watch, until = _Watch(began), _Until(began + ask.timeout, gone)
        inputs = torch.tensor([ids], device=self._device)
        if ask.sampling.seed is not None:
            torch.manual_seed(ask.sampling.seed)
        with torch.inference_mode():
            out = self._target.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                streamer=watch,
                stopping_criteria=StoppingCriteriaList([until, *self._stops(ask)]),
                **self._settings(ask),
            )
            new = out[0, len(ids) :].tolist()
        wall = time.perf_counter() - began
        tokens, text, finish = self._cut(ask, new)
        return Answer(
            text=text,
            wall=wall,
            event_times=tuple(watch.times),
            event_tokens=tuple(watch.tokens),
            prompt_tokens=len(ids),
            new_tokens=len(tokens),
            token_ids=tuple(tokens),
            finish=finish,
            error=f"no end after {ask.timeout:g} s" if until.passed else None,
        )

    def _encode(self, ask: Ask) -> list[int]:
        if ask.prompt is not None:
            ids: list[int] = self._tokenizer(ask.prompt)["input_ids"]
            return ids
        text = self._tokenizer.apply_chat_template(
            [dict(m) for m in ask.messages], tokenize=False, add_generation_prompt=True
        )
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _settings(self, ask: Ask) -> dict[str, Any]:
        sampling, pad = ask.sampling, self._tokenizer.pad_token_id
        settings: dict[str, Any] = {"max_new_tokens": sampling.max_tokens}
        settings["pad_token_id"] = pad if pad is not None else self._eos()[0]
        if sampling.ignore_eos:
            settings["eos_token_id"] = None
        if sampling.temperature > 0:
            settings |= {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "min_p": sampling.min_p or None,
            }
        else:
            settings["do_sample"] = False
        k = self._contestant.k
        if self._mode == "lookup":
            settings["prompt_lookup_num_tokens"] = k
        if self._draft is not None:
            settings["assistant_model"] = self._draft
            if k:
                generation = self._draft.generation_config
                generation.num_assistant_tokens = k
                generation.num_assistant_tokens_schedule = "constant"
                generation.assistant_confidence_threshold = 0.0
        return settings

    def _stops(self, ask: Ask) -> list[StoppingCriteria]:
        """The criterion for stop texts. Not `stop_strings`: `generate` would hand those on to its
        assistant, and refuse them there for want of a tokenizer."""
        if not ask.sampling.stop:
            return []
        return [StopStringCriteria(self._tokenizer, list(ask.sampling.stop))]

    def _eos(self) -> list[int]:
        eos = self._target.generation_config.eos_token_id
        return [0] if eos is None else [eos] if isinstance(eos, int) else list(eos)

    def _cut(self, ask: Ask, new: list[int]) -> tuple[list[int], str, str]:
        """The tokens that stand, the text without what ended it, and why it ended.

        A speculating `generate` looks for a stop text only once a round, and may have written on.
        """
        sampling, eos = ask.sampling, set(self._eos())
        end = next((n for n, token in enumerate(new) if token in eos), None)
        if end is not None and not sampling.ignore_eos:
            new = new[: end + 1]
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        found = [place for stop in sampling.stop if (place := text.find(stop)) >= 0]
        if found:
            for count in range(1, len(new) + 1):
                shown = self._tokenizer.decode(new[:count], skip_special_tokens=True)
                if any(stop in shown for stop in sampling.stop):
                    return new[:count], text[: min(found)], "stop"
        ended = end is not None and not sampling.ignore_eos
        return new, text, "stop" if ended else "length"

    def opening(self) -> Opening:
        facts = {
            "threads": str(torch.get_num_threads()),
            "device": str(self._device),
            **used(str(self._device)),
            "dtype": str(self._target.dtype).removeprefix("torch."),
            "attention": str(self._target.config._attn_implementation),
        }
        versions = {"transformers": transformers.__version__, "torch": version("torch")}
        return Opening(self._contestant, self._seconds, versions, facts)

    async def close(self) -> None: ...
