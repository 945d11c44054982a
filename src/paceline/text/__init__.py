"""Text in and out: the tokenizer, the incremental detokenizer, stop strings.

Host world: plain Python, no tensors. Knows nothing of requests, rounds or drafters; what it
writes depends on the token ids alone and never on how they were split over rounds.
"""

from paceline.text.detokenizer import Detokenizer
from paceline.text.lead import Lead
from paceline.text.stop import StopStrings
from paceline.text.tokenizer import Message, Tokenizer, same_files

__all__ = [
    "Detokenizer",
    "Lead",
    "Message",
    "StopStrings",
    "Tokenizer",
    "same_files",
]
