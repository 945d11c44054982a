"""What drafters are lent of the target, and which of their needs can be met.

Knows no drafter by name, and nothing of rounds.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paceline.drafters.base import Drafter
from paceline.errors import ConfigError
from paceline.models.decoder import Decoder
from paceline.text import Tokenizer, same_files


@dataclass(frozen=True)
class LentText:
    """See `drafters.base.TargetText`. loading: the tokenizer, on its way."""

    folder: Path
    loading: Future[Tokenizer]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.loading.result()

    def tokenizer_lies_in(self, folder: Path) -> bool:
        return same_files(self.folder, folder)


@dataclass(frozen=True)
class Lent(LentText):
    """See `drafters.base.TargetInfo`."""

    decoder: Decoder

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.decoder.hidden_size

    @property
    def layers(self) -> int:
        return self.decoder.spec.layers

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.dtype

    @property
    def embedding(self) -> Tensor:
        return self.decoder.embedding

    def head(self, hidden: Tensor) -> Tensor:
        return self.decoder.head(hidden)


def check_needs(drafter: Drafter, target: Decoder, recorded: bool) -> None:
    """Refuse what a drafter needs and this engine does not give. After `bind`: some know what they
    need only then. recorded: rounds become CUDA graphs. Raises ConfigError."""
    needs, said = drafter.needs, f"drafter {drafter.name!r}"
    for layer in needs.features:
        if not 0 <= layer <= target.spec.layers:
            raise ConfigError(
                f"{said} reads the features of layer {layer}; the target has 0 to "
                f"{target.spec.layers}: choose a drafter made for this target"
            )
    if needs.features and needs.catch_up != "observe":
        raise ConfigError(
            f'{said} reads features with catch_up="{needs.catch_up}", so nobody would show it '
            'any: declare Needs(features=…, catch_up="observe")'
        )
    if needs.host and recorded:
        raise ConfigError(
            f"{said} computes on the host (Needs.host), and a recorded round would repeat its "
            "first draft for ever: give capture=False, which runs every round at once"
        )
