"""`paceline demo` and `paceline info` on a tiny random pair; the figures mean nothing here."""

from __future__ import annotations

import io
import json

import pytest
from commands import Call, Pair, one_line_error
from rich.console import Console

from paceline.cli.panels import Writing, coloured, render

KEYS = {
    "identical", "speedup", "acceptance_rate", "draft_efficiency", "tokens_per_round", "k",
    "tok_s_plain", "tok_s_speculative", "dtype", "seed", "prompts", "repeats", "versions",
}  # fmt: skip
SMALL = ["--prompts", "2", "--repeats", "2", "--max-tokens", "8"]


@pytest.fixture
def long_pair(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Shorten the bundled prompts to what the tiny models' context holds."""
    from paceline.cli import demo

    whole = demo.draw
    monkeypatch.setattr(
        demo,
        "draw",
        lambda seed, count: [row | {"prompt": row["prompt"][:99]} for row in whole(seed, count)],
    )
    return pair


def test_json_is_the_only_line_of_standard_output(call: Call, long_pair: Pair) -> None:
    done = call("demo", *long_pair.options, *SMALL, "--json", "-k", "4")
    assert done.status == 0, done
    result = json.loads(done.out)
    assert result.keys() >= KEYS
    assert result["identical"] is True
    assert (result["k"], result["prompts"], result["repeats"]) == (4, 2, 2)
    assert result["dtype"] == "float32"
    assert len(result["acceptance_by_position"]) <= 4
    assert 1 <= result["tokens_per_round"] <= 5
    assert "speed-up" in done.err


def test_piped_table_has_no_colour(call: Call, long_pair: Pair) -> None:
    done = call("demo", *long_pair.options, *SMALL, "--temperature", "0.8")
    assert done.status == 0, done
    assert "\x1b" not in done.out
    for row in ("plain", "speed-up", "acceptance rate", "tokens per round", "identical"):
        assert row in done.out


def test_the_seed_draws_the_prompts() -> None:
    from paceline.cli.demo import draw

    assert draw(1, 3) == draw(1, 3)
    assert draw(1, 3) != draw(2, 3)


def test_a_text_that_differs_is_told_and_fails(
    call: Call, long_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from paceline import Engine

    real = Engine.generate

    def spoiled(self: Engine, *args: object, k: int | None = None, **more: object) -> object:
        done = real(self, *args, k=k, **more)
        return [replace(d, token_ids=(*d.token_ids, 1)) if k else d for d in done]

    monkeypatch.setattr(Engine, "generate", spoiled)
    done = call("demo", *long_pair.options, *SMALL, "--json")
    assert done.status == 1
    assert json.loads(done.out)["identical"] is False


def test_options_that_cannot_be(call: Call, pair: Pair) -> None:
    assert "K = 0" in one_line_error(call("demo", *pair.options, "-k", "0"))
    assert call("demo", "--prompts", "1000").status == 2


def test_panels_colour_what_was_accepted() -> None:
    text = "naïve 🙂 end"
    ids = list(text.encode())
    sources = ["model" if i % 3 else "target" for i in range(len(ids))]

    def decode(some: object) -> str:
        return bytes(some).decode(errors="replace")  # type: ignore[call-overload, no-any-return]

    writing = Writing("speculative", 1.5, ids, sources, text)
    shown = coloured(writing, decode)
    assert shown.plain == text
    assert {span.style for span in shown.spans} == {"green"}
    # A stop string is among the tokens and not in the text.
    cut = Writing("speculative", 1.5, ids, sources, text[:-4])
    assert coloured(cut, decode).plain == text[:-4]
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=20)
    console.print(render(console, "def f():\n", [Writing("plain"), writing], decode))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "speculative" in output
    assert f"{len(ids)} tokens, 1.50 s" in output


def test_info(call: Call) -> None:
    found = json.loads(call("info", "--json").out)
    assert {"versions", "device", "cores", "torch_threads", "memory_gb", "models"} <= found.keys()
    assert "torch" in call("info").out
