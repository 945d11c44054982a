"""`paceline plan`: will speculation pay, with which drafter and K, at which load?

Gathers options and measurements; what is made of them is the lab's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline import ConfigError, sampling_params
from paceline.cli import common, plan_gather
from paceline.cli.common import write_json
from paceline.cli.plan_show import show, show_fleet
from paceline.lab import plan_measured, plan_serve, plan_vllm
from paceline.lab.fleet_answer import Fleet, Target, compare
from paceline.lab.fleet_traffic import read as read_traffic
from paceline.lab.plan_answer import Plan, Question, answer
from paceline.lab.plan_loop import Probe
from paceline.lab.plan_measured import Measured
from paceline.lab.plan_words import ASSUMPTIONS, checked, verdict

FROM, ASKED, FLEET, OUT = "Measurements", "Question", "Fleet", "Output"


def _option(panel: str, *names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def plan(
    target: common.Target = None,
    drafter: Annotated[list[str] | None, _option("Models", "--drafter", "-d", help="Drafter to "
        "consider; repeatable.", show_default="model where there is a draft, and ngram")] = None,
    draft: common.Draft = None,
    k: Annotated[int, _option("Models", "--k", "-k", help="Most draft tokens a round.", min=1,
        max=64)] = 8,
    rule: common.Rule = None,
    dtype: common.Dtype = None,
    device: common.Device = None,
    threads: common.Threads = None,
    max_length: common.MaxLength = None,
    file: Annotated[Path | None, _option(FROM, "--file", "-f", "--workload", "-w", help="Your "
        "prompts: a file or folder as paceline bench takes.", show_default="bundled ones")] = None,
    max_tokens: Annotated[int, _option(FROM, "--max-tokens", help="A text's most.", min=2)] = 128,
    temperature: Annotated[float, _option(FROM, "--temperature", help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, _option(FROM, "--top-p", help="1 is off.")] = 1.0,
    top_k: Annotated[int, _option(FROM, "--top-k", help="0 is off.")] = 0,
    seconds: Annotated[float, _option(FROM, "--seconds", help="That measuring takes, engines being "
        "opened not counted.", min=1, max=3600)] = 60.0,
    check: Annotated[bool, _option(FROM, "--check", help="Measure some points besides and compare "
        "them with what was predicted.")] = False,
    measured: Annotated[Path | None, _option(FROM, "--measured", help="Measurements that --save "
        "wrote, instead of measuring.")] = None,
    bench: Annotated[Path | None, _option(FROM, "--bench", help="Folder of a paceline bench run, "
        "instead of measuring.")] = None,
    metrics: Annotated[str | None, _option(FROM, "--metrics", help="Take the acceptance from a "
        "server's /metrics: a URL or a file.")] = None,
    save: Annotated[Path | None, _option(FROM, "--save", help="Keep the measurements.")] = None,
    loads: Annotated[str | None, _option(ASKED, "--loads", help="Texts at a time, commas between.",
        show_default="those measured before; else 1,2,4, on a GPU 1,4,16,64")] = None,
    tpot_ms: Annotated[float | None, _option(ASKED, "--tpot-ms", help="Wanted milliseconds a token "
        "at most.", min=0.001)] = None,
    same_text: Annotated[bool, _option(ASKED, "--same-text", help="The text at a seed must not "
        "depend on speculation.")] = False,
    uses: Annotated[list[str] | None, _option(ASKED, "--uses", help="Sampling parameter that "
        "requests use, as min_p; repeatable.")] = None,
    traffic: Annotated[Path | None, _option(FLEET, "--traffic", help="A day's requests: JSON lines "
        "with at, prompt_tokens, new_tokens.")] = None,
    rate: Annotated[float | None, _option(FLEET, "--rate", help="Requests a second instead, at "
        "random times.", min=1e-6)] = None,
    prompt_tokens: Annotated[str | None, _option(FLEET, "--prompt-tokens", help="Of a request at "
        "--rate: MEAN or MEAN:SPREAD.", show_default="the measured mean")] = None,
    new_tokens: Annotated[str | None, _option(FLEET, "--new-tokens", help="That it writes.",
        show_default="the measured mean")] = None,
    hours: Annotated[float | None, _option(FLEET, "--hours", help="That GPUs are paid for; and of "
        "--rate.", show_default="24", min=0.001, max=1000)] = None,
    gpus: Annotated[int | None, _option(FLEET, "--gpus", help="Replicas.", min=1, max=4096,
        show_default="1")] = None,
    slots: Annotated[int | None, _option(FLEET, "--slots", help="Texts that a replica writes at "
        "once.", show_default="the most load", min=1, max=4096)] = None,
    ttft_ms: Annotated[float | None, _option(FLEET, "--ttft-ms", help="Wanted milliseconds to the "
        "first token, for 95 of 100.", min=0.001)] = None,
    price: Annotated[float | None, _option(FLEET, "--price", help="Of a GPU hour.",
        min=0)] = None,
    out: Annotated[Path | None, _option(OUT, "--out", "-o", help="Write the setting for paceline "
        "serve --config here; not over a file.")] = None,
    json_: common.Json = False,
) -> None:  # fmt: skip
    """Say whether speculation pays, with which drafter and K, at which load.

    Measures your models on your prompts for a minute, or takes what was measured, and predicts all
    settings from it, with intervals. With --traffic or --rate it simulates a fleet.
    """
    _agree(measured, bench, file, check, traffic, rate, gpus, prompt_tokens, new_tokens, hours,
           slots, ttft_ms, price, out, save)  # fmt: skip
    kept = plan_gather.kept(measured, bench)
    place = common.settled(device) if kept is None else ""
    wanted_loads = plan_gather.loads(loads, place, kept)
    if kept is None:
        models = {"target": target, "draft": draft, "rule": rule, "dtype": dtype, "device": place,
                  "threads": threads, "max_length": max_length}  # fmt: skip
        params = sampling_params(max_tokens=max_tokens, temperature=temperature, top_p=top_p,
                                 top_k=top_k)  # fmt: skip
        if params.truncated and not temperature:
            raise ConfigError("--top-p and --top-k say how texts are drawn: give --temperature too")
        asked = plan_gather.prompts(file, target)
        probe = Probe(asked, params, wanted_loads, tuple(range(1, k + 1)), seconds)
        kept = plan_gather.measure(models, drafter, k, probe, check)
    elif any(given is not None for given in (target, draft, drafter, rule, dtype, device,
                                              threads)):  # fmt: skip
        raise ConfigError(
            "--measured and --bench say themselves which models they are of: leave --target, "
            "--draft, --drafter, --rule, --dtype, --device and --threads out"
        )
    if metrics is not None:
        kept = plan_gather.elsewhere(kept, metrics)
    if save is not None:
        plan_measured.save(kept, save)
    question = Question(wanted_loads, tuple(range(1, k + 1)),
                        None if tpot_ms is None else tpot_ms / 1e3)  # fmt: skip
    found = answer(kept, question)
    command = plan_vllm.command(plan_serve.wanted(found, kept, tuple(uses or ()), same_text))
    text = plan_serve.toml(found, kept)
    console = common.stderr if json_ else common.stdout
    fleets: tuple[Fleet, ...] = ()
    if traffic is not None or rate is not None:
        target_ = Target(question.tpot, None if ttft_ms is None else ttft_ms / 1e3)
        paid = (hours or 24.0) * 3600
        arrivals = plan_gather.arrivals(traffic, rate, paid, prompt_tokens, new_tokens, found)
        if traffic is not None and hours is None:
            paid = arrivals[-1].at
        replica = plan_gather.replica(kept, found, slots)
        with common.busy("simulating the fleet"):
            fleets = compare(replica, arrivals, gpus or 1, target_, price, paid)
        show_fleet(fleets, target_, len(arrivals), paid, console)
    else:
        show(found, command, kept.source, console)
    if out is not None:
        _write(out, text)
        console.print(f"paceline serve --config {out}", markup=False, soft_wrap=True)
    if json_:
        write_json(_plain(found, kept, command, text, fleets))


def _agree(
    measured: Path | None, bench: Path | None, file: Path | None, check: bool,
    traffic: Path | None, rate: float | None, gpus: int | None, prompt_tokens: str | None,
    new_tokens: str | None, hours: float | None, slots: int | None, ttft_ms: float | None,
    price: float | None, out: Path | None, save: Path | None,
) -> None:  # fmt: skip
    """Raise ConfigError for options that contradict each other, before anything takes time."""
    if measured is not None and bench is not None:
        raise ConfigError("give --measured or --bench, not both")
    if (measured or bench) is not None and (check or file is not None):
        raise ConfigError("--check and --file measure anew: leave --measured and --bench out")
    if traffic is not None and rate is not None:
        raise ConfigError("give --traffic or --rate, not both")
    if traffic is not None and (prompt_tokens or new_tokens):
        raise ConfigError("--traffic says its own lengths: leave --prompt-tokens and --new-tokens "
                          "out")  # fmt: skip
    fleet = {"--gpus": gpus, "--prompt-tokens": prompt_tokens, "--new-tokens": new_tokens,
             "--hours": hours, "--slots": slots, "--ttft-ms": ttft_ms,
             "--price": price}  # fmt: skip
    given = [name for name, value in fleet.items() if value is not None]
    if traffic is None and rate is None and given:
        raise ConfigError(f"{given[0]} is of a fleet: give --traffic or --rate too")
    if traffic is not None:
        read_traffic(traffic)
    for option, name in (("--out", out), ("--save", save)):
        if name is not None and name.exists():
            raise ConfigError(
                f"{option} {name}: there is a file already; remove it or name another"
            )


def _write(out: Path, text: str) -> None:
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror})") from error


def _plain(
    found: Plan, kept: Measured, command: plan_vllm.Command, toml: str, fleets: tuple[Fleet, ...]
) -> dict[str, Any]:
    told = dataclasses.asdict(found)
    told["verdict"], told["check"] = verdict(found), checked(found)
    told["assumptions"], told["source"] = list(ASSUMPTIONS), kept.source
    told["toml"], told["vllm"] = toml, dataclasses.asdict(command)
    told["vllm"]["version"] = plan_vllm.table()["version"]
    if fleets:
        told["fleet"] = [dataclasses.asdict(fleet) for fleet in fleets]
    return told | {"versions": kept.versions or common.versions()}
