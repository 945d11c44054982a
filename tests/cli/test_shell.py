"""The command in a process of its own: exit status, pipes, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from commands import Call, Pair, one_line_error


def test_version_and_help(shell: Call, call: Call) -> None:
    assert shell("--version").out.startswith("paceline ")
    assert "generate" in call("--help").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--temprature", "1", "x"], "--temperature"),
        (["generte"], "generate"),
        (["generate", "--k", "many", "x"], "--k"),
        (["--nonsense"], "--help"),
        (["demo", "--prompts", "0"], "demo --help"),
    ],
)
def test_misspelt(call: Call, arguments: list[str], words: str) -> None:
    done = call(*arguments)
    one_line_error(done)
    assert words in done.err


def test_a_mistake_is_one_line_and_no_traceback(shell: Call) -> None:
    one_line_error(shell("generate", "--target", "nowhere-to-be-found", "hello"))


def test_piped_output_has_no_colour(shell: Call, pair: Pair) -> None:
    done = shell("generate", *pair.options, "--max-tokens", "3", "--logit-bias", "65=99", "x")
    assert (done.status, done.out, done.err) == (0, "AAA\n", "")


def test_a_closed_pipe_is_quiet(pair: Pair) -> None:
    command = [sys.executable, "-m", "paceline", "generate", *pair.options, "--ignore-eos", "x"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stderr is not None
    with writer.stdout, writer.stderr:
        writer.stdout.read(1)
        writer.stdout.close()
        assert writer.stderr.read() == b""
    assert writer.wait(timeout=300) in (0, 141)  # 0: all was written before the reader left


def test_interrupt() -> None:
    """In the midst of a text that takes seconds."""
    command = [sys.executable, "-m", "paceline", "generate", "--target", "mini-target", "-k", "0",
               "--device", "cpu", "--threads", "1", "--ignore-eos", "--max-tokens", "1900",
               "x"]  # fmt: skip
    # Tests started in a shell's background inherit that Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    assert writer.stdout is not None
    assert writer.stdout.read(1)  # it writes by now
    time.sleep(0.05)
    os.kill(writer.pid, signal.SIGINT)
    _, err = writer.communicate(timeout=300)
    assert err.decode() == "interrupted\n"
    assert writer.returncode == 130
