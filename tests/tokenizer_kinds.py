"""Small tokenizers of every kind that the text layer tells apart, made on the spot."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from paceline.text import Tokenizer

CORPUS = [
    "def load(path: str) -> int:\n    return 1\n\n\ndef store(path: str) -> None:\n    pass\n",
    "The quick brown fox jumps over the lazy dog. It isn't here; it's there.",
    "日本語の文章です。日本の言葉。 naïve café — “quoted” …",
]
SPECIAL = ["<s>", "</s>", "<unk>"]


def marked(kind: str, names: list[str], *, special: bool, bos: bool = False) -> Tokenizer:
    """A tokenizer of a kind with added tokens; bos: it puts <s> before every text."""
    backend = MAKERS[kind]()
    backend.add_tokens([AddedToken(name, special=special) for name in names])
    if bos:
        token = backend.token_to_id("<s>")
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", token)]
        )
    return wrap(backend, kind)


def wrap(backend: Backend, name: str, **options: Any) -> Tokenizer:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        **options,
    )
    return Tokenizer(fast, name)


def byte_level(*, added: bool = True) -> Backend:
    """Return a byte-level BPE as in Llama 3, Qwen and the bundled pair."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    if added:  # a token that is shown, with a character outside the byte alphabet
        backend.add_tokens([AddedToken("<think→>", special=False)])
    return backend


def sentencepiece() -> Backend:
    """Return a BPE with byte fallback and leading spaces, as in Llama 2 and Mistral."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=[*SPECIAL, *byte_tokens], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return _unspecial(backend)


def metaspace() -> Backend:
    """Return a Unigram with a Metaspace decoder, as in T5 and newer sentencepiece exports."""
    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _unspecial(backend: Backend) -> Backend:
    """Make the byte tokens ordinary vocabulary, as sentencepiece exports have them."""
    import json

    state = json.loads(backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in SPECIAL]
    return Backend.from_str(json.dumps(state))


MAKERS = {"byte_level": byte_level, "sentencepiece": sentencepiece, "metaspace": metaspace}


@cache
def tokenizer(kind: str) -> Tokenizer:
    return wrap(MAKERS[kind](), kind)
