"""Tiny random checkpoints and a byte tokenizer, made with transformers, for tests of every layer.

Nothing here needs a network or the bundled pair. `tiny_checkpoint` and `tiny_tokenizer` write
into one folder, so that `Engine(folder)` and `AutoModelForCausalLM.from_pretrained(folder)` read
the same model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
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


def tiny_tokenizer(folder: Path, *, swap: tuple[int, int] | None = None) -> Path:
    """Write a byte-level tokenizer without merges: id b is byte b, then bos, eos and pad.

    It has a chat template and adds no special tokens by itself. swap: exchange two byte ids, for
    a tokenizer of the same size that differs.
    """
    alphabet = byte_alphabet()
    if swap is not None:
        a, b = swap
        alphabet[a], alphabet[b] = alphabet[b], alphabet[a]
    vocab = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|bos|>", "<|eos|>", "<|endoftext|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return folder
