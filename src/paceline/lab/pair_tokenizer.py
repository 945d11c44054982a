"""The tokenizer of calibrated pairs: byte-level BPE over invented words, of any size.

Words are a space and two or three syllables ("␣kamo", "␣batiru"), built by merges, so that every
token can be reached from text and a text of words is read back as the same tokens. The last four
ids are the special tokens.
"""

from __future__ import annotations

import json
from itertools import islice, product
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from paceline.errors import ConfigError
from paceline.lab.pair_law import Ints

SPECIAL = ("<|unk|>", "<|bos|>", "<|eos|>", "<|pad|>")
_SYLLABLES = ["".join(pair) for pair in product("bcdfghjklmnpqrstvwxyz", "aeiou")]
_SPACE = "Ġ"  # how byte-level tokenizers write a space
_BYTES = 256
_BUILDING = _BYTES + 2 * len(_SYLLABLES)  # bytes, syllables, and syllables behind a space
LEAST = _BUILDING + len(SPECIAL) + 32
MOST = _BUILDING + len(_SYLLABLES) ** 2 + len(_SYLLABLES) ** 3 + len(SPECIAL)


def special_ids(vocab: int) -> dict[str, int]:
    """Return the ids that config.json and generation_config.json name."""
    return {"bos_token_id": vocab - 3, "eos_token_id": vocab - 2, "pad_token_id": vocab - 1}


def words(vocab: int) -> Ints:
    """Return the ids of the words: every token that is neither special nor a part of words.

    Raises ConfigError for a vocabulary that is too small or too large.
    """
    if not LEAST <= vocab <= MOST:
        raise ConfigError(
            f"a vocabulary of {vocab} tokens cannot be made; set vocab_size in config.json to "
            f"{LEAST} to {MOST}"
        )
    return np.arange(_BUILDING, vocab - len(SPECIAL), dtype=np.int64)


def write_tokenizer(folder: Path, vocab: int, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json for a vocabulary of `vocab` tokens."""
    merges = [(syllable[0], syllable[1]) for syllable in _SYLLABLES]
    merges += [(_SPACE, syllable) for syllable in _SYLLABLES]
    begun = [_SPACE + syllable for syllable in _SYLLABLES]
    two = [a + b for a, b in product(begun, _SYLLABLES)]
    longer = [*product(begun, _SYLLABLES), *islice(product(two, _SYLLABLES), vocab)]
    merges += longer[: len(words(vocab))]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    assert tokenizer.get_vocab_size() == vocab, "every id has a token"
    tokenizer.save(str(folder / "tokenizer.json"))
    unk, bos, eos, pad = SPECIAL
    config = {
        # The name that transformers 4 and 5 both know.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": unk,
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
