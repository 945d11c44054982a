"""A check for authors of drafters: does it keep to the interface, and what does it gain?

Runs a drafter on the bundled pair beside plain decoding and watches `propose` and `observe` for
what a recorded round may not do. Drives the public engine only.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from paceline import Completion, Drafter, Engine, SamplingParams, create_drafter
from paceline.types import (
    Draft,
    Limits,
    MemoryPart,
    Needs,
    Request,
    Rows,
    TargetOut,
    Verdict,
    Window,
)

T = TypeVar("T")

_READS = ("_local_scalar_dense", "item", "equal", "is_nonzero")
_SHAPES = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive")
# On a CPU these pass the dispatcher by.
_UNSEEN: tuple[tuple[Any, str, str], ...] = (
    (torch.Tensor, "tolist", "reads the device"),
    (torch.Tensor, "numpy", "reads the device"),
    (torch.Tensor, "__array__", "reads the device"),
    (torch.Tensor, "cpu", "reads the device"),
    (torch.Tensor, "new_tensor", "copies to the device"),
    (torch, "tensor", "copies to the device"),
    (torch, "from_numpy", "copies to the device"),
)

PROMPTS = (
    "def area(width, height):\n    return width * height\n\n\ndef volume(width, height",
    "x = [",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item",
    "import json\n\nwith open(path) as file:\n    ",
)
SETTINGS = (SamplingParams(), SamplingParams(temperature=0.8, seed=7))


class HostReads(TorchDispatchMode):
    """Meanwhile notices operations that read the device, copy to it from the host, or whose
    result's shape depends on values: none of them can be recorded. calls: operations met."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.calls = 0
        self.found: list[str] = []
        self._before: list[Any] = []
        self._number: Tensor | None = None  # made of a number of Python's, last

    def tell(self, what: str) -> None:
        """An operation was met."""
        self.found.append(what)

    def __enter__(self) -> Self:
        self._before = [vars(owner).get(name) for owner, name, _ in _UNSEEN]
        for owner, name, does in _UNSEEN:
            setattr(owner, name, self._watched(f"{name} {does}", getattr(owner, name)))
        super().__enter__()  # type: ignore[no-untyped-call]  # torch's
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]  # torch's
        for (owner, name, _), before in zip(_UNSEEN, self._before, strict=True):
            if before is None:  # it is inherited
                delattr(owner, name)
            else:
                setattr(owner, name, before)

    def _watched(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            self.tell(what)
            return function(*given, **named)

        return watched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        name = func.overloadpacket.__name__
        # A mask as an index is a hidden nonzero.
        mask = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype is torch.bool for one in args[1]
        )
        # Without the sum of its counts it reads them.
        counted = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if mask or counted or name in _SHAPES:
            self.tell(f"{func} reads the device for its result's shape")
        elif name in _READS:
            self.tell(f"{func} reads the device")
        elif name == "index_put_" and args[2] is self._number:
            self.tell("x[index] = number copies to the device; x.index_fill_ does not")
        result = func(*args, **(kwargs or {}))
        if name == "lift_fresh":
            self._number = result
        return result


@dataclass(frozen=True, slots=True)
class DrafterCheck:
    """What `check_drafter` found. texts: compared with plain decoding; different: those that are
    not the plain one; problems: what `propose` and `observe` may not do, each once; accepted /
    evaluated: of the draft tokens that were tested, those that stood; tokens_per_round: of a
    text, 1 for plain decoding."""

    drafter: str
    texts: int
    different: int
    problems: tuple[str, ...]
    evaluated: int
    accepted: int
    tokens_per_round: float

    @property
    def acceptance_rate(self) -> float | None:
        """accepted / evaluated, or None where nothing was drafted."""
        return self.accepted / self.evaluated if self.evaluated else None

    @property
    def passed(self) -> bool:
        """Whether every text is the plain one and nothing was done that may not be."""
        return not self.problems and not self.different

    def __str__(self) -> str:
        rate = self.acceptance_rate
        gain = "nothing drafted" if rate is None else f"acceptance {rate:.3f}"
        same = f"{self.texts - self.different} of {self.texts} texts as plain decoding's"
        line = f"{self.drafter}: {same}; {gain}, {self.tokens_per_round:.2f} tokens a round"
        return "\n".join((line, *self.problems))


def check_drafter(
    drafter: str | Drafter,
    *,
    target: str = "mini-target",
    draft: str = "mini-draft",
    prompts: Sequence[str] = PROMPTS,
    k: int = 4,
    tokens: int = 32,
    dtype: str | None = None,
    device: str = "cpu",
) -> DrafterCheck:
    """Write `tokens` tokens after each prompt, greedily and drawn, with the drafter and without.

    drafter: a name as commands take it (`package.module.Class:option=value`), or one that was
    made; draft: the model of drafters that have one; dtype: None for one in which texts must be
    the same, float64 on a CPU and bfloat16 on a GPU, whose kernels fix every sum. On a CPU rounds
    are not recorded; what would keep a GPU from recording them is told as a problem, unless the
    drafter declares `Needs.host`. Raises what `Engine` raises, and what the drafter does.
    """
    dtype = dtype or ("float64" if device == "cpu" else "bfloat16")
    made = drafter
    if isinstance(made, str):
        made = create_drafter(made, path=draft, dtype=dtype)
    watched = _Watched(made)
    settings = [replace(params, max_tokens=tokens, ignore_eos=True) for params in SETTINGS]
    written: list[list[Completion]] = []
    for one in (None, watched):
        with Engine(
            target, drafter=one or "none", k=k, slots=4, dtype=dtype, device=device,
            max_length=512, threads=1, adaptive=False,
        ) as engine:  # fmt: skip
            written.append(
                [text for params in settings for text in engine.generate(prompts, params)]
            )
    plain, texts = written
    stats = [text.stats for text in texts]
    return DrafterCheck(
        drafter="+".join(made.sources),
        texts=len(texts),
        different=sum(a.token_ids != b.token_ids for a, b in zip(plain, texts, strict=True)),
        problems=tuple(dict.fromkeys(watched.problems)),
        evaluated=sum(one.evaluated for one in stats),
        accepted=sum(one.accepted for one in stats),
        tokens_per_round=sum(one.emitted for one in stats) / sum(one.rounds for one in stats),
    )


class _Watched(Drafter):
    """Another drafter, and what it does that it may not."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self.name = drafter.name  # type: ignore[misc]  # a class's, but this one is any drafter
        self.problems: list[str] = []

    @property
    def needs(self) -> Needs:  # type: ignore[override]  # a drafter may set its own; this may not
        """The drafter's own, which may be known only once it is bound."""
        return self._drafter.needs

    @property
    def sources(self) -> tuple[str, ...]:
        return self._drafter.sources

    def memory(self, limits: Limits) -> tuple[MemoryPart, ...]:
        return self._drafter.memory(limits)

    def check(self, target: Any) -> None:
        self._drafter.check(target)

    def bind(self, target: Any, limits: Limits) -> None:
        self._vocab_size = limits.vocab_size
        self._drafter.bind(target, limits)

    def admit(self, slot: int, request: Request) -> None:
        self._drafter.admit(slot, request)

    def release(self, slot: int) -> None:
        self._drafter.release(slot)

    def observe(
        self, window: Window, out: TargetOut | None, verdict: Verdict | None, rows: Rows
    ) -> None:
        self._watch("observe", lambda: self._drafter.observe(window, out, verdict, rows))

    def propose(self, rows: Rows, k: int, draw: Any) -> Draft:
        draft = self._watch("propose", lambda: self._drafter.propose(rows, k, draw))
        if rows.length.is_cuda:
            return draft  # reading it would break the recording
        wrong = self._wrong(draft, rows, k)
        if wrong is None:
            return draft
        self.problems.append(f"propose: {wrong}")
        none = torch.zeros_like(rows.length)
        return Draft(rows.length.new_zeros(rows.length.shape[0], k), none, none)

    def _watch(self, method: str, call: Callable[[], T]) -> T:
        if self.needs.host:
            return call()
        with _Located() as reads:
            result = call()
        self.problems += [f"{method}: {what}" for what in reads.found]
        return result

    def _wrong(self, draft: Draft, rows: Rows, k: int) -> str | None:
        """What is not as `Drafter.propose` promises it."""
        size = rows.length.shape[0]
        for name, expected, most in (
            ("tokens", (size, k), self._vocab_size - 1),
            ("count", (size,), k),
            ("source", (size,), len(self.sources) - 1),
        ):
            given: torch.Tensor = getattr(draft, name)
            if tuple(given.shape) != expected or given.dtype is not torch.int64:
                shape = list(given.shape)
                return f"{name} are {given.dtype} {shape}, not torch.int64 {list(expected)}"
            if given.numel() and not 0 <= int(given.min()) <= int(given.max()) <= most:
                return f"{name} hold a number outside of 0 to {most}"
        return None


class _Located(HostReads):
    """Says where in the drafter it was."""

    def tell(self, what: str) -> None:
        """Append it, with file and line of the innermost code that is neither torch nor this."""
        library = str(Path(torch.__file__).parent)
        for frame in reversed(traceback.extract_stack()):
            if frame.filename != __file__ and not frame.filename.startswith(library):
                what = f"{what} ({Path(frame.filename).name}, line {frame.lineno})"
                break
        super().tell(what)
