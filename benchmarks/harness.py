"""A benchmark's parts in processes of their own, and its JSON, written after each of them.

A part that fails, hangs or breaks the device's context leaves the others alone, and what it had
measured is kept. Knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_common import BEGAN, REFERENCE_RATE, Bench, digits, free, say

import paceline

Parts = dict[str, Callable[[Bench], dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Job:
    """A benchmark. together: its parts run in one process, which a new one takes over from where
    one fails, because they share an engine. passed: figures of a part that the processes behind it
    are given as options."""

    name: str
    script: str
    parts: Parts
    summary: Callable[[dict[str, Any]], dict[str, Any]]
    together: bool = False
    passed: dict[str, str] = field(default_factory=dict)


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between."""
    return [int(part) for part in text.split(",")]


def add_options(parser: argparse.ArgumentParser, parts: Parts, limit: float) -> None:
    """The options that every benchmark of this form has. limit: seconds of one process."""
    add = parser.add_argument
    add("--parts", default="all", help=f"some of {', '.join(parts)}, comma between, or all")
    add("--device", default="cuda")
    add("--dtype", default="bfloat16")
    add("--out", type=Path, help="write the JSON there, after each part")
    add("--small", action="store_true", help="as little of everything as there can be")
    add("--part-limit", type=float, default=limit, help="seconds of one process, then it is ended")
    add("--one-process", action="store_true", help="run the parts in this process")


def shrink(options: argparse.Namespace, small: dict[str, Any]) -> None:
    """With --small, what is in `small` instead of what was given; its dtype on a CPU alone, where
    weights of others are packed and cannot be written in place."""
    if options.small:
        on_cpu = options.device == "cpu"
        vars(options).update({k: v for k, v in small.items() if k != "dtype" or on_cpu})


def choose_parts(
    parser: argparse.ArgumentParser, options: argparse.Namespace, parts: Parts
) -> None:
    """Turn --parts into a list, in the parts' own order."""
    chosen = list(parts) if options.parts == "all" else options.parts.split(",")
    if unknown := set(chosen) - set(parts):
        parser.error(f"--parts: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    options.parts = [name for name in parts if name in chosen]


def measure(job: Job, options: argparse.Namespace) -> None:
    """Run the chosen parts, write --out, print the summary; exit with 1 where a part failed."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("PACELINE_CACHE", folder)  # costs that are this run's own
        failed = _measure(job, options)
    if failed:
        sys.exit(1)


def _measure(job: Job, options: argparse.Namespace) -> bool:
    os.environ.setdefault(BEGAN, str(time.time()))
    device = torch.device(options.device)
    parts: dict[str, Any] = {}
    results: dict[str, Any] = {
        "benchmark": job.name,
        "command": shlex.join([Path(job.script).name, *sys.argv[1:]]),
        "settings": _settings(options),
        "machine": machine(device),
        "parts": parts,
    }

    def save() -> None:
        if options.out:
            written = options.out.with_suffix(".part")
            written.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            written.replace(options.out)

    if options.one_process:
        bench = Bench(options, device, getattr(options, "rate", REFERENCE_RATE))
        for name in options.parts:

            def keep(result: dict[str, Any], name: str = name) -> None:
                parts[name] = result | {"unfinished": True}
                save()

            keep({})
            bench.keep = keep
            parts[name] = _run(bench, name, job.parts[name])
            save()
            if job.together and "error" in parts[name]:
                break  # what the parts share may be broken: the others go to another process
    else:
        _apart(job, options, parts, save)
    print(json.dumps(job.summary(results)))
    return any("error" in part for part in parts.values())


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options, without this machine's paths."""
    settings = {k: v for k, v in vars(options).items() if k != "out"}
    for name, value in settings.items():
        if isinstance(value, Path) or (isinstance(value, str) and "/" in value):
            settings[name] = "/".join(Path(value).parts[-2:])
    return settings


def machine(device: torch.device) -> dict[str, Any]:
    """The device and the versions. source: a hash of the package's files, which says more than a
    version while it is worked on."""
    result: dict[str, Any] = {"system": platform.system(), "python": platform.python_version()}
    result |= {"torch": torch.__version__, "transformers": transformers.__version__}
    result |= {"paceline": paceline.__version__, "source": _source()}
    try:
        import triton

        result["triton"] = triton.__version__
    except ImportError:
        result["triton"] = None
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        result |= {"device": about.name, "multiprocessors": about.multi_processor_count}
        result |= {"memory_gib": digits(about.total_memory / 2**30), "cuda": torch.version.cuda}
    else:
        result |= {"device": "cpu", "cores": os.cpu_count()}
    return result


def _source() -> str:
    whole = hashlib.sha256()
    for file in sorted(Path(paceline.__file__).parent.rglob("*.py")):
        whole.update(file.read_bytes())
    return whole.hexdigest()[:12]


# --- one process for all ------------------------------------------------------------------------


def _run(bench: Bench, name: str, part: Callable[[Bench], dict[str, Any]]) -> dict[str, Any]:
    """One part's figures, or what it had and what went wrong."""
    say(f"part {name}")
    began, result = time.perf_counter(), dict[str, Any]()
    told, keep = result, bench.keep

    def kept(so_far: dict[str, Any]) -> None:
        nonlocal told
        told = so_far
        keep(so_far)

    bench.keep = kept
    try:
        result = part(bench)
    except Exception as error:
        say(traceback.format_exc())
        result = told | {"error": repr(error)[:2000]}
    try:
        free(bench)
        if bench.cuda:
            result["peak_gib"] = digits(torch.cuda.max_memory_allocated(bench.device) / 2**30)
            torch.cuda.reset_peak_memory_stats(bench.device)
    except Exception as error:
        result["error_after"] = repr(error)[:2000]
    result["part_seconds"] = digits(time.perf_counter() - began, 4)
    say(f"part {name} took {result['part_seconds']} s")
    return result


class Lines(logging.Handler):
    """What the package logs while this is open, for the JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Lines:
        logger = logging.getLogger("paceline")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("paceline").removeHandler(self)


# --- a process for each -------------------------------------------------------------------------


def _apart(
    job: Job, options: argparse.Namespace, parts: dict[str, Any], save: Callable[[], None]
) -> None:
    waiting, more = list(options.parts), dict[str, str]()
    while waiting:
        names = waiting if job.together else waiting[:1]
        told = _child(options, job.script, names, more)
        for name, part in told.items():
            parts[name] = part
            more |= {job.passed[k]: str(v) for k, v in part.items() if k in job.passed}
        waiting = [name for name in waiting if name not in told]
        save()


def _child(
    options: argparse.Namespace, script: str, names: list[str], more: dict[str, str]
) -> dict[str, Any]:
    """What a process made of these parts: at least one of them, with an error where it came to no
    end; those that it did not begin are left out."""
    with tempfile.TemporaryDirectory() as folder:
        # Beside --out, where what there is outlives this process being ended too.
        out = Path(folder) / "out.json"
        if options.out:
            out = options.out.with_suffix(f".{names[0]}.json")
        command = [sys.executable, script, *sys.argv[1:], "--parts", ",".join(names)]
        command += ["--one-process", "--out", str(out)]
        command += [word for pair in more.items() for word in pair]
        began, error = time.perf_counter(), None
        out.unlink(missing_ok=True)
        try:
            code = subprocess.run(
                command, stdout=subprocess.DEVNULL, timeout=options.part_limit, check=False
            ).returncode
            error = f"the process ended with {code}" if code else None
        except subprocess.TimeoutExpired:
            error = f"ended after {options.part_limit:g} s"
        told: dict[str, Any] = {names[0]: {}}
        if out.exists():
            told = json.loads(out.read_text(encoding="utf-8"))["parts"] or told
            out.unlink()
    last = told[list(told)[-1]]
    if error is not None and (
        last.get("unfinished") or not any("error" in part for part in told.values())
    ):
        last["error"] = error
        say(f"part {list(told)[-1]}: {error}")
    last.setdefault("part_seconds", digits(time.perf_counter() - began, 4))
    return told
