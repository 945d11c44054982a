"""`paceline plan`: a probe of a tiny pair end to end, kept measurements, and every mistake."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Call, Done, Pair, one_line_error
from plan_tools import measured, run

from paceline import SamplingParams
from paceline.cli import plan_gather
from paceline.config import load_toml
from paceline.lab.plan_loop import Probe
from paceline.lab.plan_measured import Measured, load, save
from paceline.lab.plan_vllm import check


def told(done: Done) -> dict[str, Any]:
    assert done.status == 0, done
    value = json.loads(done.out.splitlines()[-1])
    assert isinstance(value, dict)
    return value


@pytest.fixture
def kept(tmp_path: Path) -> str:
    """Measurements on disk."""
    file = tmp_path / "kept.json"
    save(measured(0.7, wider=0.0008), file)
    return str(file)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"prompt": "def f(x):"}\n\n{"messages": [{"role": "user", "content": "hi"}]}\n'
    )
    return str(file)


def test_a_probe_from_models_to_a_served_setting(
    call: Call, pair: Pair, prompts: str, tmp_path: Path
) -> None:
    out, keep = tmp_path / "paceline.toml", tmp_path / "kept.json"
    arguments = ["plan", *pair.options, "--file", prompts, "--seconds", "2", "--max-tokens", "12",
                 "--max-length", "128", "-k", "3", "--loads", "1,2", "--check", "--save", str(keep),
                 "--out", str(out), "--json"]  # fmt: skip
    found = told(call(*arguments))
    assert {one["drafter"] for one in found["settings"]} == {"model", "ngram"}
    assert [(c["drafter"], c["load"], c["k"]) for c in found["checks"]] == [
        (drafter, 1, k) for drafter in ("model", "ngram") for k in (1, 3)
    ]
    assert found["memory"]["model"] > found["memory"]["ngram"] == 0
    assert found["assumptions"]
    assert found["check"].startswith("Checked at 4 points")
    config = load_toml(out)
    assert out.read_text() == found["toml"]
    assert config.target == pair.target
    assert config.drafter == (found["drafter"] or "none")
    assert config.slots == 2
    # A checkpoint in a folder can be given to vLLM as it is; the tiny one is float32.
    if found["drafter"] != "predicted":
        assert check(found["vllm"]["line"]) == []
    # The same measurements give the same answer without a model.
    again = told(call("plan", "--measured", str(keep), "--loads", "1,2", "-k", "3", "--json"))
    assert again["verdict"] == found["verdict"]
    assert len(load(keep).drafters) == 2


def test_it_measures_under_the_sampling_asked_for(
    call: Call, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = []

    def measure(models: Any, drafters: Any, k: int, probe: Probe, check: bool) -> Measured:
        probes.append(probe)
        return load(Path(kept))

    monkeypatch.setattr(plan_gather, "measure", measure)
    told(call("plan", "--temperature", "0.6", "--top-p", "0.95", "--top-k", "20", "--json"))
    (probe,) = probes
    assert probe.params == SamplingParams(
        temperature=0.6, top_p=0.95, top_k=20, max_tokens=probe.params.max_tokens
    )


def test_where_the_fit_saw_everything_there_is_nothing_to_check(
    call: Call, pair: Pair, prompts: str
) -> None:
    done = call("plan", *pair.options, "--drafter", "model", "--file", prompts, "--seconds", "1",
                "--max-tokens", "8", "--max-length", "128", "-k", "1", "--loads", "1", "--check",
                "--json")  # fmt: skip
    assert told(done)["check"] is None
    assert "model: nothing to check" in done.err


def test_the_verdict_comes_first(call: Call, kept: str) -> None:
    done = call("plan", "--measured", kept, "--loads", "1,4,16,64", "--tpot-ms", "20")
    assert done.status == 0, done
    first = done.out.splitlines()[0]
    assert first.startswith("Use the drafter model with K up to")
    assert "Assumed:" in done.out
    assert "vllm serve org/target" in done.out
    assert "--speculative-config" in done.out


def test_loads_are_those_that_were_measured(call: Call, kept: str, tmp_path: Path) -> None:
    """And a fleet's replicas have slots for the most of them, wherever the plan is made."""
    found = told(call("plan", "--measured", kept, "--json"))
    assert [point["load"] for point in found["plain"]] == [1, 4, 16, 64]
    assert "slots = 64" in found["toml"]
    day = tmp_path / "day.jsonl"
    lines = [{"at": 0.0, "prompt_tokens": 100, "new_tokens": 100} for _ in range(32)]
    day.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fleet = ["plan", "--measured", kept, "--traffic", str(day), "--gpus", "1", "--json"]
    first, second = (told(call(*fleet, *more))["fleet"] for more in ([], ["--slots", "4"]))
    assert first[0]["ttft"][1] < second[0]["ttft"][1]  # nobody waits for a slot
    few = told(call("plan", "--measured", kept, "--loads", "2,8", "--json"))
    assert [point["load"] for point in few["plain"]] == [2, 8]


def test_acceptance_from_a_servers_metrics(call: Call, kept: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.txt"
    file.write_text(
        'vllm:spec_decode_num_drafts_total{model_name="m"} 1000.0\n'
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 20.0\n'
    )
    found = told(call("plan", "--measured", kept, "--metrics", str(file), "--json"))
    assert found["acceptance"]["model"] == pytest.approx([0.02], abs=0.01)
    assert "metrics.txt" in found["source"]
    assert "Speculation does not pay" in found["verdict"][0]
    with file.open("a") as more:
        for k in (2, 4):
            more.write(f'paceline:spec_decode_num_rounds_per_k_total{{k="{k}"}} 9.0\n')
    doubted = call("plan", "--measured", kept, "--metrics", str(file))
    assert doubted.status == 0
    assert "the server chose K round by round (2, 4)" in doubted.err


def test_what_vllm_cannot_do_is_said(call: Call, kept: str) -> None:
    for option, words in (
        (["--same-text"], "same text at the same seed"),
        (["--uses", "min_p"], "min_p"),
    ):
        done = call("plan", "--measured", kept, *option)
        assert done.status == 0
        assert "No line for vLLM" in done.out
        assert words in done.out


@pytest.mark.parametrize(
    ("acceptance", "rule", "paced"),
    [(0.85, "match", True), (0.85, "reject", False), (0.02, "match", False)],
)
def test_a_fleet_works_at_the_pace_of_engines_that_choose_k(
    acceptance: float, rule: str, paced: bool, call: Call, tmp_path: Path
) -> None:
    """And at the model's where nothing is drafted, and where one K is served."""
    kept, slow = tmp_path / "kept.json", tmp_path / "slow.json"
    found = measured(acceptance)
    found = replace(found, engine=found.engine | {"rule": rule})
    (one,) = found.drafters
    some = replace(run(one.fitted().machine, 4, 8, acceptance), by_k=(50, 50))
    one = replace(one, adaptive=(some,))
    assert one.pace() > 1.05
    save(found, kept)
    save(replace(found, drafters=(one,)), slow)
    first, second = (
        told(
            call("plan", "--measured", str(file), "--loads", "1,4", "--rate", "0.05", "--hours",
                 "0.5", "--gpus", "1", "--json")
        )["fleet"]
        for file in (kept, slow)
    )  # fmt: skip
    assert first[0] == second[0]
    ratio = second[1]["tpot"][0] / first[1]["tpot"][0]
    assert ratio == pytest.approx(one.pace() if paced else 1.0, rel=0.02)


def test_a_fleet_with_and_without_speculation(call: Call, tmp_path: Path) -> None:
    kept = str(tmp_path / "kept.json")
    save(measured(0.85), Path(kept))
    arguments = ["plan", "--measured", kept, "--loads", "1,4,16", "--rate", "20", "--hours",
                 "0.01", "--gpus", "2", "--price", "3", "--ttft-ms", "400", "--prompt-tokens",
                 "100:0.5", "--new-tokens", "80"]  # fmt: skip
    found = told(call(*arguments, "--json"))
    plain, fast = found["fleet"]
    assert fast["needed"] <= plain["needed"]
    assert fast["tpot"][1] < plain["tpot"][1]
    assert fast["per_million"] <= plain["per_million"]
    shown = call(*arguments)
    assert shown.out.startswith("For the target: without speculation")
    # A trace of the same kind.
    day = tmp_path / "day.jsonl"
    day.write_text(
        "".join(
            json.dumps({"at": n / 10, "prompt_tokens": 100, "new_tokens": 50}) + "\n"
            for n in range(50)
        )
    )
    found = told(call("plan", "--measured", kept, "--traffic", str(day), "--gpus", "1", "--json"))
    assert found["fleet"][0]["needed"] is None  # no target was given
    assert found["fleet"][0]["tpot"][0] > 0


def test_a_fleets_texts_that_are_longer_than_was_seen(call: Call, tmp_path: Path) -> None:
    file, found = tmp_path / "kept.json", measured(0.7)
    runs = tuple(
        replace(run, texts=(replace(run.texts[0], new=300, whole=False), *run.texts[1:]))
        for run in found.drafters[0].runs
    )
    save(replace(found, drafters=(replace(found.drafters[0], runs=runs),)), file)
    fleet = ["plan", "--measured", str(file), "--rate", "1", "--hours", "0.01", "--json"]
    done = call(*fleet)
    assert "Texts are reckoned as" in done.err
    assert any(line.startswith("Texts are reckoned as") for line in told(done)["verdict"])
    assert "Texts are reckoned as" not in call(*fleet, "--new-tokens", "250").err


MISTAKES: list[tuple[list[str], str]] = [
    (["--measured", "none.json"], "cannot be read"),
    (["--measured", "KEPT", "--bench", "x"], "--measured or --bench, not both"),
    (["--measured", "KEPT", "--check"], "leave --measured and --bench out"),
    (["--measured", "KEPT", "--target", "x"], "say themselves which models"),
    (["--measured", "KEPT", "--device", "cuda"], "say themselves which models"),
    (["--measured", "KEPT", "--loads", "1,x"], "--loads must be numbers"),
    (["--measured", "KEPT", "--loads", "0"], "--loads must be numbers"),
    (["--measured", "KEPT", "--gpus", "2"], "--gpus is of a fleet"),
    (["--measured", "KEPT", "--price", "2"], "--price is of a fleet"),
    (["--measured", "KEPT", "--rate", "1", "--traffic", "d"], "--traffic or --rate, not both"),
    (["--measured", "KEPT", "--traffic", "none.jsonl"], "none.jsonl: cannot be read"),
    (["--measured", "KEPT", "--rate", "1", "--new-tokens", "x"], "--new-tokens must be MEAN"),
    (["--measured", "KEPT", "--rate", "1e6"], "too many"),
    (["--measured", "KEPT", "--metrics", "none.txt"], "none.txt: cannot be read"),
    (["--measured", "KEPT", "--out", "KEPT"], "there is a file already"),
    (["--bench", "none"], "there is no such run"),
    (["--target", "elsewhere"], "give your own prompts with --file"),
    (["--file", "none.jsonl"], "none.jsonl: cannot be read"),
    (["--file", "BAD"], 'BAD, line 1: no "prompt"'),
    (["--workload", "EMPTY"], "no prompt that could be used"),
    (["--top-p", "0.9"], "give --temperature too"),
    (["--top-p", "1.5", "--temperature", "1"], "top_p must be"),
    (["--top-k", "-1", "--temperature", "1"], "top_k must be"),
    (["--drafter", "none"], "leave --drafter none out"),
    (["--drafter", "modle", "--seconds", "1"], "modle"),
    (["--max-tokens", "1"], "greater than or equal to 2"),
    (["--wat"], "no such option"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[m[1][:30] for m in MISTAKES])
def test_a_mistake_is_one_line(
    call: Call, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str],
    words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BAD").write_text('{"promt": "x"}\n')
    (tmp_path / "EMPTY").write_text("\n")
    line = one_line_error(call("plan", *(kept if a == "KEPT" else a for a in arguments)))
    assert words.lower() in line.lower()


def test_a_file_that_holds_no_plain_decoding(call: Call, tmp_path: Path) -> None:
    found = measured()
    one = replace(found.drafters[0], runs=tuple(r for r in found.drafters[0].runs if r.k))
    file = tmp_path / "kept.json"
    save(replace(found, drafters=(one,)), file)
    assert "plain decoding" in one_line_error(call("plan", "--measured", str(file)))
