"""One model's tokenizer: text to ids and back, chat messages to text.

Wraps the fast tokenizer of a Hugging Face checkpoint. Owns every question about single tokens
(which bytes, special or not); transformers is imported only when a tokenizer is loaded. Whether
two are the same is in likeness.py.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from paceline.errors import CheckpointError, RequestError

Message = Mapping[str, Any]
"""One chat message as the template wants it: at least `role` and `content`."""

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")

# Names of the class that reads a tokenizer.json as it stands, and types of models whose checkpoints
# transformers believes when they name it. (For some it knows better than the files.)
_GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")
_AS_SAID = ("llama", "mistral")

# Characters from which on a text is encoded as a batch of one: that lets go of Python's lock, so
# that other threads (an event loop, the engine) go on meanwhile.
_LONG = 1 << 12

# Stands before a text that goes on, and joins with nothing.
_BEFORE = "\u263a"


def _byte_alphabet() -> dict[str, int]:
    """Return the characters that stand for bytes in a byte-level vocabulary (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in set(plain))
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()
_HEX = frozenset("0123456789abcdefABCDEF")


def same_files(one: Path, other: Path) -> bool:
    """Whether two checkpoint folders hold the same tokenizer, byte by byte, so that neither need
    be loaded to be compared."""
    names = (*_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    return all(_content(one / name) == _content(other / name) for name in names)


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


class Tokenizer:
    """A checkpoint's tokenizer. Make one with `Tokenizer.load`."""

    def __init__(self, fast: Any, name: str) -> None:
        """fast: a transformers tokenizer with a `tokenizers` backend; name: for messages."""
        self._fast = fast
        self._backend: Any = fast.backend_tokenizer
        self.name = name
        added = self._backend.get_added_tokens_decoder()
        self.added_ids = frozenset(added)
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.special = {added[i].content: i for i in self.special_ids}
        self.byte_level = _is_byte_level(self._backend.decoder)
        self._token_bytes: dict[int, bytes] = {}

    @property
    def fast(self) -> Any:
        """The transformers tokenizer behind it, for libraries that want one."""
        return self._fast

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load the tokenizer of a checkpoint folder.

        Raises CheckpointError where the folder has none, or one that cannot be read.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; give a checkpoint's folder")
        if not any((folder / name).is_file() for name in _FILES):
            raise CheckpointError(
                f"{folder}: no tokenizer ({', '.join(_FILES)}); copy the files of the model's "
                "tokenizer into the folder"
            )
        try:
            fast = _reader(folder).from_pretrained(folder, local_files_only=True)
            if getattr(fast, "backend_tokenizer", None) is None:
                raise ValueError("it has no fast form")
            return cls(fast, folder.name)
        # The readers of a broken file raise whatever their parser raises, Rust's bare Exception
        # included; there is no narrower class.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{folder}: the tokenizer cannot be loaded ({reason}); download the checkpoint "
                "again, or save the tokenizer as tokenizer.json with transformers"
            ) from error

    def __len__(self) -> int:
        """Return the number of token ids, added tokens included."""
        return len(self._fast)

    @property
    def vocab_size(self) -> int:
        """The number of token ids; the model's own may be larger (padding)."""
        return len(self._fast)

    @property
    def vocabulary(self) -> dict[int, str]:
        """Every id's token, in the vocabulary's own spelling. Takes long: nothing is kept."""
        return {i: token for token, i in self._backend.get_vocab().items()}

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokenizer's end-of-sequence ids; a checkpoint's configuration may name more."""
        eos = self._fast.eos_token_id
        return () if eos is None else (int(eos),)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._fast.chat_template)

    def use_chat_template(self, template: str) -> None:
        """Let chats be written by another template, a Jinja text, from now on."""
        self._fast.chat_template = template

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text`. Raises RequestError for text that is not valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text has a lone surrogate at character {error.start}, which no tokenizer "
                "can read; decode it as UTF-8 with errors='replace'"
            ) from None
        if len(text) < _LONG:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        else:
            [encoding] = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def encode_on(self, text: str) -> list[int]:
        """Return the ids of `text` as of one that goes on: without the space that some tokenizers
        put before every text."""
        before = self.encode(_BEFORE, add_special_tokens=False)
        ids = self.encode(_BEFORE + text, add_special_tokens=False)
        if ids[: len(before)] != before:  # it joins what follows, as no tokenizer known here does
            return self.encode(text, add_special_tokens=False)
        return ids[len(before) :]

    @property
    def lead(self) -> list[int]:
        """The special tokens that `encode` puts before every text."""
        bare, whole = self.encode("a", add_special_tokens=False), self.encode("a")
        starts = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[: next(starts, 0)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token(self, token_id: int) -> str | None:
        """Return the vocabulary's own spelling of one id, or None for an id without a token."""
        token: str | None = self._backend.id_to_token(token_id)
        return token

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by the vocabulary's own spelling, or None where it has none."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one id of a byte-level tokenizer; empty for special tokens."""
        assert self.byte_level
        known = self._token_bytes.get(token_id)
        if known is None:
            token = None if token_id in self.special_ids else self.token(token_id)
            known = _bytes_of(token) if token is not None else b""
            self._token_bytes[token_id] = known
        return known

    def is_byte_fallback(self, token_id: int) -> bool:
        """Whether the id is a single byte of a sentencepiece vocabulary, such as `<0xE2>`."""
        token = self.token(token_id) or ""
        form = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        return form and _HEX.issuperset(token[3:5])

    def fallback_byte(self, token_id: int) -> int:
        """Return the byte that an id stands for of which `is_byte_fallback` is true."""
        assert self.is_byte_fallback(token_id)
        return int((self.token(token_id) or "")[3:5], 16)

    @cached_property
    def word_id(self) -> int | None:
        """An id that is text by itself: no special token, no byte, nothing that a decode drops.
        None where the vocabulary has no such id."""
        for token_id in range(len(self)):
            ordinary = token_id not in self.special_ids and not self.is_byte_fallback(token_id)
            if ordinary and self.decode([token_id]):
                return token_id
        return None

    def chat_template(self, tools: bool = False) -> str:
        """The template of chats, or of chats with tools; empty where there is none."""
        if not self.has_chat_template:
            return ""
        try:
            template: str = self._fast.get_chat_template(tools=[{}] if tools else None)
        except ValueError:  # several templates, and none of them the default one
            return ""
        return template

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        answer: bool = True,
        go_on: bool = False,
        add_special_tokens: bool = False,
    ) -> list[int]:
        """Return the ids of a chat, ready for the assistant's answer. options: variables of the
        template's own, such as `enable_thinking`. answer: let the template begin the answer.
        go_on: the last message is left open for more of it, and nothing is begun.
        add_special_tokens: as in `encode`, beside what the template itself writes.

        Raises RequestError where the tokenizer has no chat template or the template refuses the
        messages.
        """
        if not self.has_chat_template:
            raise RequestError(
                f"{self.name}: the tokenizer has no chat template; use an instruction-tuned "
                "checkpoint, put a chat_template.jinja into its folder, or pass a plain prompt"
            )
        if not messages:
            raise RequestError("no messages; a chat needs at least one")
        own = inspect.signature(self._fast.apply_chat_template).parameters
        for name in options or ():
            if name in own:  # the client's own template among them
                raise RequestError(f"{name!r} is not a chat template's variable; leave it out")
        try:
            text = self._fast.apply_chat_template(
                [dict(message) for message in messages],
                **{
                    **(options or {}),
                    "tools": [dict(tool) for tool in tools] if tools else None,
                    "tokenize": False,
                    "add_generation_prompt": answer and not go_on,
                    "continue_final_message": go_on,
                },
            )
        # A template is a program of the checkpoint's author: it raises what it likes.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise RequestError(
                f"the chat template refuses these messages ({reason}); see the model's card "
                "for the roles it knows and their order"
            ) from error
        # A template writes the special tokens itself.
        return self.encode(text, add_special_tokens)


def _reader(folder: Path) -> Any:
    """The transformers class to read a folder's tokenizer with.

    `AutoTokenizer` imports the model's own configuration and with it torch's compiler, which takes
    longer than all else a start does in Python. Where the files name the general class, and the
    model is of a type for which it would come to that class whatever else there is, the class
    is taken at once.
    """
    if (folder / "tokenizer.json").is_file() and not (folder / "tekken.json").exists():
        model, own = (_object_in(folder / f"{n}.json") for n in ("config", "tokenizer_config"))
        plain = own.get("tokenizer_class") in _GENERAL and "auto_map" not in own
        if plain and model.get("model_type") in _AS_SAID and "auto_map" not in model:
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _object_in(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where it cannot be read, of which others tell."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _is_byte_level(decoder: Any) -> bool:
    """Whether ids decode to bytes one by one, so that text is the bytes' concatenation."""
    if decoder is None:
        return False
    state = json.loads(decoder.__getstate__())
    parts = state["decoders"] if state.get("type") == "Sequence" else [state]
    return bool(parts) and all(part.get("type") == "ByteLevel" for part in parts)


def _bytes_of(token: str) -> bytes:
    """Return a byte-level token's bytes; an added token outside the alphabet stands for itself."""
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return token.encode()
