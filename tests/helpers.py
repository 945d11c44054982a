"""Tiny random checkpoints and a byte tokenizer, made with transformers, for tests of every layer.

Nothing here needs a network or the bundled pair. `tiny_checkpoint` and `tiny_tokenizer` write
into one folder, so that `Engine(folder)` and `AutoModelForCausalLM.from_pretrained(folder)` read
the same model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from paceline.lab.drafter_check import HostReads

BOS, EOS, PAD = 256, 257, 258
VOCAB_SIZE = 259
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def turns_of_others(work: Callable[[], object]) -> int:
    """How often another thread that sleeps a millisecond at a time came to run during `work`."""
    turns, done = [0], threading.Event()

    def other() -> None:
        while not done.is_set():
            time.sleep(0.001)
            turns[0] += 1

    thread = threading.Thread(target=other)
    thread.start()
    before = turns[0]
    work()
    after = turns[0]
    done.set()
    thread.join()
    return after - before


def tiny_model(
    family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Any:
    """Return a seeded random transformers model in eval mode.

    `overrides` are arguments of the family's transformers config. Norm weights and biases are
    random too, so that a permutation forgotten in loading shows in the logits.
    """
    config_class, model_class = FAMILIES[family]
    arguments: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "tie_word_embeddings": False,
    }
    if family == "mistral":
        arguments["sliding_window"] = None
    arguments.update(overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class(**arguments))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
                elif name.endswith("bias"):
                    parameter.copy_(0.2 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def tiny_checkpoint(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Write `tiny_model(...)` as a Hugging Face checkpoint, with the byte tokenizer; return it.

    max_shard_size: "20KB" makes several shards. Two folders with different `seed` are a target
    and an unrelated drafter of the same vocabulary.
    """
    model = tiny_model(family, seed=seed, dtype=dtype, **overrides)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        tiny_tokenizer(folder)
    return folder


def byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for bytes in a byte-level BPE, by byte value."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    alphabet, spare = [], 256
    for byte in range(256):
        if byte in printable:
            alphabet.append(chr(byte))
        else:
            alphabet.append(chr(spare))
            spare += 1
    return alphabet


def tiny_tokenizer(
    folder: Path,
    *,
    swap: tuple[int, int] | None = None,
    special: Sequence[str] = ("<|bos|>", "<|eos|>", "<|endoftext|>"),
    bos: bool = False,
) -> Path:
    """Write a byte-level tokenizer without merges: id b is byte b, then bos, eos and pad.

    It has a chat template and adds no special tokens by itself. swap: exchange two byte ids, for
    a tokenizer of the same size that differs. special: other names, fewer or more of them; the
    first is bos, the second eos, the last pad. bos: put bos before every text, as Llama's does.
    """
    alphabet = byte_alphabet()
    if swap is not None:
        a, b = swap
        alphabet[a], alphabet[b] = alphabet[b], alphabet[a]
    vocab = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A", special_tokens=[(special[0], BOS)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[-1],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return folder


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_ALTERNATE = ["full_attention", "sliding_attention"]

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "llama-all-kv-heads": ("llama", {"num_key_value_heads": 4}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 16}),
    "llama-linear": ("llama", {"rope_parameters": _LINEAR}),
    "llama-llama3": ("llama", {"rope_parameters": _LLAMA3, "head_dim": 16}),
    "llama-yarn": ("llama", {"rope_parameters": _YARN}),
    "mistral": ("mistral", {}),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "mistral-wide-heads": ("mistral", {"head_dim": 16, "rms_norm_eps": 1e-3}),
    "mistral-yarn": (
        "mistral",
        {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 8.0}},
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-untied": ("qwen2", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
    "qwen2-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen2-yarn": ("qwen2", {"rope_parameters": _YARN | {"attention_factor": 1.3}}),
    "qwen3": ("qwen3", {}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True, "head_dim": 16}),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
    "qwen3-window": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 6, "layer_types": _ALTERNATE},
    ),
    "qwen3-yarn": ("qwen3", {"rope_parameters": _YARN | {"truncate": False}}),
}
"""What the four families can differ in, by name: family and config overrides."""


class NoHostRead(HostReads):
    """Fails on an operation that reads the device or whose result's shape depends on values."""

    def tell(self, what: str) -> None:
        raise AssertionError(what)
