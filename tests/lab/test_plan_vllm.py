"""Lines for vLLM: every one within the committed table, and refused where vLLM cannot do it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

import pytest

from paceline.lab.plan_vllm import Wanted, check, command, schedule, table

WANTED = Wanted("org/target", "model", "org/draft", (1, 4, 16, 64), (4, 4, 2, 0), slots=64,
                max_length=4096)  # fmt: skip


def config(line: str | None) -> dict[str, Any]:
    assert line is not None
    words = shlex.split(line)
    value = json.loads(words[words.index("--speculative-config") + 1])
    assert isinstance(value, dict)
    return value


def test_the_table_says_where_it_is_from() -> None:
    told = table()
    assert told["package"] == "vllm"
    assert told["file"].startswith(f"vllm-{told['version']}-")
    assert len(told["sha256"]) == 64
    assert "vllm/config/speculative.py" in told["read"]
    assert {"ngram", "draft_model", "suffix", "eagle3"} <= set(told["names"]["SpeculativeMethod"])
    assert {"standard", "block"} <= set(told["names"]["RejectionSampleMethod"])


def test_a_draft_model_with_k_by_load() -> None:
    made = command(WANTED)
    assert check(made.line or "") == []
    assert (made.line or "").startswith("vllm serve org/target --dtype bfloat16")
    assert "--max-num-seqs 64" in (made.line or "")
    assert config(made.line) == {
        "method": "draft_model",
        "model": "org/draft",
        "draft_sample_method": "probabilistic",
        "num_speculative_tokens": 4,
        "num_speculative_tokens_per_batch_size": [[1, 4, 4], [5, 16, 2], [17, 64, 0]],
    }
    assert any("keeps the distribution, not the text" in note for note in made.notes)


def test_one_k_needs_no_schedule_and_block_is_named() -> None:
    made = config(command(replace(WANTED, ks=(4, 4, 4, 4), rule="block")).line)
    assert "num_speculative_tokens_per_batch_size" not in made
    assert made["rejection_sample_method"] == "block"


def test_an_ngram_drafter_with_its_own_lengths() -> None:
    made = command(replace(WANTED, drafter="ngram:min=3,max=5", draft=None))
    assert check(made.line or "") == []
    assert config(made.line)["prompt_lookup_min"] == 3
    assert config(made.line)["prompt_lookup_max"] == 5
    assert config(made.line)["method"] == "ngram"


def test_plain_decoding_needs_nothing() -> None:
    made = command(replace(WANTED, drafter=None, draft=None, ks=(0, 0, 0, 0)))
    assert "--speculative-config" not in (made.line or "--speculative-config")
    assert check(made.line or "") == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"drafter": "ngram+model"}, "cannot mix ngram and model"),
        ({"drafter": "predicted"}, "no drafter like predicted"),
        ({"sampling": ("min_p",)}, "refuses requests with min_p"),
        ({"sampling": ("top_p", "logit_bias")}, "refuses requests with logit_bias"),
        ({"same_text": True}, "same text at the same seed"),
        ({"draft": None}, "needs the draft model"),
        ({"dtype": "float64"}, "no dtype float64"),
        ({"target": "mini-target"}, "give the folder of a checkpoint"),
    ],
)
def test_refused_with_the_reason(changed: dict[str, Any], words: str) -> None:
    made = command(replace(WANTED, **changed))
    assert made.line is None
    assert words in (made.why or "")
    assert table()["version"] in (made.why or "")


def test_without_speculation_nothing_of_it_is_refused() -> None:
    plain = replace(WANTED, drafter=None, ks=(0, 0, 0, 0), sampling=("min_p",), same_text=True)
    assert command(plain).line is not None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("vllm bench x", "not vllm serve"),
        ("vllm serve m --no-such-option 3", "unknown option --no-such-option"),
        ("vllm serve m --dtype float64", "--dtype float64"),
        ("vllm serve m --max-num-seqs --dtype", "--max-num-seqs has no value"),
        ("vllm serve m --max-num-seqs many", "--max-num-seqs many"),
        ("vllm serve m --speculative-config {", "not JSON"),
        ("vllm serve m --speculative-config []", "not an object"),
        ("""vllm serve m --speculative-config '{"metod": "ngram"}'""", "no field metod"),
        ("""vllm serve m --speculative-config '{"method": "ngrams"}'""", "method is no"),
        ("""vllm serve m --speculative-config '{"num_speculative_tokens": 0}'""", "is no int"),
        ("""vllm serve m --speculative-config '{"num_speculative_tokens": true}'""", "is no int"),
        (
            "vllm serve m --speculative-config "
            """'{"num_speculative_tokens_per_batch_size": [[2, 4, 3]]}'""",
            "is no list",
        ),
        (
            "vllm serve m --speculative-config "
            """'{"num_speculative_tokens_per_batch_size": [[1, 4, 3], [4, 8, 2]]}'""",
            "is no list",
        ),
    ],
)
def test_a_wrong_line_is_found(line: str, words: str) -> None:
    assert any(words in problem for problem in check(line)), check(line)


def test_a_schedule_covers_every_load_once() -> None:
    assert schedule((2, 8), (3, 3)) == [[1, 8, 3]]
    assert schedule((1, 2, 3), (5, 0, 5)) == [[1, 1, 5], [2, 2, 0], [3, 3, 5]]
