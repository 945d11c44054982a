"""Training windows, drawn on the device from one long array of token ids.

Owns the shuffling of files, the three kinds of window (running text, text from a random line start,
single functions and classes) and the recognition of line starts and natural stops in token space.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

END_ID = 0  # <|endoftext|>


def load_ids(path: Path) -> np.ndarray:
    """The int64 ids of an encoded split."""
    if not path.exists():
        raise SystemExit(f"{path} is missing: run `tokenizer.py encode` first")
    return np.frombuffer(lzma.decompress(path.read_bytes()), dtype="<u2").astype(np.int64)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the trainer must know about tokens: booleans [V]."""

    ends_line: Tensor
    starts_column_0: Tensor
    opens_block: Tensor
    decorates: Tensor
    opens_stop: Tensor
    opens_body: Tensor

    @classmethod
    def read(cls, folder: Path, device: torch.device) -> Vocabulary:
        entries = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        names = [""] * (max(entries.values()) + 1)
        for name, index in entries.items():
            names[index] = name
        names[END_ID] = "\u010a"  # a file's end also ends a line; byte-level newline is U+010A
        blank = "\u010a\u0120\u0109"  # newline, space, tab
        block = {"def", "class", "@", "async"}

        def flags(values: list[bool]) -> Tensor:
            return torch.tensor(values, device=device)

        return cls(
            ends_line=flags([n.endswith("\u010a") for n in names]),
            starts_column_0=flags([bool(n) and n[0] not in blank + ")]}#" for n in names]),
            opens_block=flags([n in block or n.startswith("@") for n in names]),
            decorates=flags([n.startswith("@") for n in names]),
            opens_body=flags([n.endswith(":\u010a") for n in names]),
            opens_stop=flags([n in {"def", "class", "if"} or n.startswith("@") for n in names]),
        )

    def line_starts(self, ids: Tensor) -> Tensor:
        """True where a token is the first of a line; ids [N]."""
        starts = torch.zeros_like(ids, dtype=torch.bool)
        starts[1:] = self.ends_line[ids[:-1]]
        return starts

    def stops(self, ids: Tensor) -> Tensor:
        """True where a completion ends: <|endoftext|>, or def, class, if, @ in column 0; [B, T]."""
        stop = ids == END_ID
        stop[:, 1:] |= self.ends_line[ids[:, :-1]] & self.opens_stop[ids[:, 1:]]
        return stop


def ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Concatenated aranges: starts[i] ... starts[i] + lengths[i] - 1 for every i."""
    ends = lengths.cumsum(0)
    shift = starts - (ends - lengths)
    return torch.arange(int(ends[-1]), device=starts.device) + shift.repeat_interleave(lengths)


class Stream:
    """Batches of windows [rows, length + 1] on one device."""

    def __init__(self, ids: np.ndarray, words: Vocabulary, device: torch.device, seed: int) -> None:
        self.ids = torch.from_numpy(ids).to(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        ends = (self.ids == END_ID).nonzero()[:, 0] + 1
        self.starts = torch.cat((ends.new_zeros(1), ends[:-1]))
        self.lengths = ends - self.starts
        self.lines = words.line_starts(self.ids).nonzero()[:, 0]
        self.snippets = self._snippets(words)
        self.epoch = 0
        self._shuffle()

    def _snippets(self, words: Vocabulary, longest: int = 1500) -> Tensor:
        """Functions and classes in column 0, each followed by <|endoftext|>, shuffled."""
        top = words.line_starts(self.ids) & (words.starts_column_0[self.ids] | (self.ids == END_ID))
        at = top.nonzero()[:, 0]
        opens, decorates = words.opens_block[self.ids[at]], words.decorates[self.ids[at]]
        opens[1:] &= ~decorates[:-1]  # a block begins at its first decorator
        opens[-1] = False
        first = opens.nonzero()[:, 0]
        order = torch.arange(len(at), device=at.device)
        body = torch.where(decorates, len(at), order).flip(0).cummin(0).values.flip(0)
        lengths = at[(body[first] + 1).clamp(max=len(at) - 1)] - at[first]
        fits = (lengths >= 16) & (lengths <= longest)
        starts, lengths = at[first][fits], lengths[fits]
        order = torch.randperm(len(starts), generator=self.generator, device=starts.device)
        starts, lengths = starts[order], lengths[order]
        text = self.ids[ranges(starts, lengths + 1)]
        text[(lengths + 1).cumsum(0) - 1] = END_ID
        return text

    def _shuffle(self) -> None:
        order = torch.randperm(
            len(self.starts), generator=self.generator, device=self.starts.device
        )
        self.text = self.ids[ranges(self.starts[order], self.lengths[order])]
        self.cursor = int(
            torch.randint(2048, (), generator=self.generator, device=self.text.device)
        )
        self.epoch += 1

    def _draw(self, source: Tensor, starts: Tensor, length: int) -> Tensor:
        offsets = torch.arange(length + 1, device=source.device)
        return source[starts[:, None] + offsets]

    def _random(self, high: int, rows: int) -> Tensor:
        return torch.randint(high, (rows,), generator=self.generator, device=self.ids.device)

    def batch(self, rows: int, length: int) -> Tensor:
        """Three quarters running text, an eighth from a line start, an eighth snippets."""
        some = max(1, rows // 8)
        running = rows - 2 * some
        if self.cursor + running * length + 1 > len(self.text):
            self._shuffle()
        device = self.ids.device
        starts = self.cursor + length * torch.arange(running, device=device)
        self.cursor += running * length
        lines = self.lines[self._random(len(self.lines), some)].clamp(
            max=len(self.ids) - length - 1
        )
        from_line = self._draw(self.ids, lines, length)
        half = some // 2
        if half:  # half of them as if a file began there
            begun = from_line.new_full((half, 1), END_ID)
            from_line[:half] = torch.cat((begun, from_line[:half, :-1]), dim=1)
        at = self._random(len(self.snippets) - length - 1, some)
        parts = (
            self._draw(self.text, starts, length),
            from_line,
            self._draw(self.snippets, at, length),
        )
        return torch.cat(parts)
