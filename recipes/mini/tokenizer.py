"""The pair's tokenizer: byte-level BPE with 8192 entries, trained on the training text.

Owns the vocabulary, the split of text into words and the chat template. The split keeps a run of
line ends apart from the indentation after it, so that a prompt that stops at a line end is cut into
the same tokens as in training.

    python recipes/mini/tokenizer.py train   # .data/tokenizer/
    python recipes/mini/tokenizer.py encode  # .data/train.u16.xz, .data/held_out.u16.xz
    python recipes/mini/tokenizer.py part    # .data/part.u16.xz: two fifths of it, to travel light
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from corpus import read

VOCAB = 8192
END = "<|endoftext|>"
SPECIALS = [END, "<|pad|>", "<|im_start|>", "<|im_end|>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG = {
    "add_prefix_space": False,
    "bos_token": None,
    "chat_template": CHAT_TEMPLATE,
    "clean_up_tokenization_spaces": False,
    "eos_token": END,
    "model_max_length": 2048,
    "pad_token": "<|pad|>",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": None,
}
ODD_TEXTS = (
    "",
    "\n",
    "a\r\nb\n\n\n  \t x",
    "def f(x):\n    return 'é', \"日本語\", '🙂'\n",
    "\x00\x7f\u200b",
)


def sample(path: Path, share: float) -> Iterator[str]:
    """A seeded share of the training files."""
    draw = random.Random(0)
    return (source.text for source in read(path) if draw.random() < share)


def train(data: Path, share: float) -> None:
    """Learn the merges and write tokenizer.json and tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=32,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(data / "train.jsonl.xz", share), trainer)
    if tokenizer.get_vocab_size() != VOCAB:
        raise SystemExit(f"{tokenizer.get_vocab_size()} entries, not {VOCAB}: use a larger --share")
    for text in (*ODD_TEXTS, *sample(data / "held_out.jsonl.xz", 0.2)):
        if tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) != text:
            raise SystemExit(f"the tokenizer does not give back {text[:60]!r}")
    folder = data / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")


def store(path: Path, ids: np.ndarray) -> None:
    with lzma.open(path, "wb", preset=4) as out:
        out.write(ids.astype("<u2").tobytes())


def part(data: Path, share: float) -> dict[str, float]:
    """A seeded share of the encoded training files, in their order."""
    ids = np.frombuffer(lzma.decompress((data / "train.u16.xz").read_bytes()), dtype="<u2")
    ends = np.flatnonzero(ids == 0) + 1
    files = np.split(ids, ends[:-1])
    draw = random.Random(1)
    kept = np.concatenate([file for file in files if draw.random() < share])
    store(data / "part.u16.xz", kept)
    return {"tokens": len(kept)}


def encode(data: Path, name: str) -> dict[str, float]:
    """Encode one split as uint16 ids, every file followed by <|endoftext|>."""
    tokenizer = Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    chunks: list[np.ndarray] = []
    characters = 0
    for source in read(data / f"{name}.jsonl.xz"):
        characters += len(source.text)
        file = tokenizer.encode(source.text).ids
        chunks.append(np.asarray([*file, end], dtype=np.uint16))
    ids = np.concatenate(chunks)
    store(data / f"{name}.u16.xz", ids)
    return {"tokens": len(ids), "characters_per_token": characters / len(ids)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("step", choices=("train", "encode", "part"))
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--share", type=float, default=0.15, help="of the files the merges see")
    args = parser.parse_args()
    if args.step == "train":
        train(args.data, args.share)
        return
    if args.step == "part":
        print(json.dumps(part(args.data, 0.4)))
        return
    report = {name: encode(args.data, name) for name in ("held_out", "train")}
    results = Path(__file__).resolve().parent / "results"
    (results / "tokens.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
