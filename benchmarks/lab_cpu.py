"""The lab on the mini pair: paceline, transformers and a served paceline on held-out code.

Starts `paceline serve`, runs `paceline bench` beside it and writes the page. With --kill the run is
ended by SIGKILL once and started again, which measures only what was missing. Started again after
any other end it goes on, too. Progress on stderr; the last line of stdout is the summary as JSON.
See README.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
PACELINE = [sys.executable, "-m", "paceline"]
DRAFTERS = (
    "paceline:plain",
    "paceline",
    "paceline:drafter=ngram",
    "paceline:drafter=ngram+model",
    "paceline:adaptive",
    "transformers",
    "transformers:assisted",
)
SERVER = """
target = "mini-target"
draft = "mini-draft"
drafter = "predicted+model"
prefix_cache = false
"""
READY_SECONDS = 600
SCREEN = "1200,1600"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--prompts", type=int, default=20)
    add("--repeats", type=int, default=2)
    add("--max-tokens", type=int, default=256)
    add("--threads", type=int, default=2, help="of every contestant, the same")
    add("--seed", type=int, default=0)
    add("--port", type=int, default=8321, help="of the server; a run is resumed on the same one")
    add("--kill", type=float, metavar="SECONDS", help="end the run by SIGKILL once, so long in")
    add("--screenshot", type=Path, help="a picture of the page; needs chromium")
    add("--out", type=Path, default=HERE / "results" / "lab_cpu")
    return parser.parse_args()


@contextmanager
def served(options: argparse.Namespace) -> Iterator[str]:
    """A paceline server as it is by default, but for its prefix cache: two contestants ask it for
    the same prompts. Yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "paceline.toml"
        file.write_text(SERVER, encoding="utf-8")
        command = [*PACELINE, "serve", "--config", str(file), "--adaptive"]
        command += ["--port", str(options.port), "--threads", str(options.threads)]
        with serving(command, options.port) as url:
            yield url


@contextmanager
def serving(command: list[str], port: int) -> Iterator[str]:
    """Run a server until the block ends; yields its address once it takes requests."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            until = time.monotonic() + READY_SECONDS
            while not answers(f"{url}/health/ready"):
                if server.poll() is not None or time.monotonic() > until:
                    sys.exit(f"the server did not start; try: {' '.join(command[1:])}")
                time.sleep(0.5)
            yield f"{url}/v1"
        finally:
            server.send_signal(signal.SIGTERM)


def answers(url: str) -> bool:
    """Whether a request there succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def picture(page: Path, file: Path) -> None:
    """What a browser shows of the page's beginning."""
    browser = shutil.which("chromium") or sys.exit("--screenshot needs chromium")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               f"--screenshot={file.resolve()}", f"--window-size={SCREEN}",
               page.resolve().as_uri()]  # fmt: skip
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def main() -> int:
    """Run it; the exit status is the bench's."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends, too
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    began = time.monotonic()
    with served(options) as url:
        off = 'body.speculative={"enabled": false}'
        command = [
            *PACELINE, "bench", *DRAFTERS,
            f"url:{url},label=served", f"url:{url},label=served plain,plain,{off}",
            "--prompts", str(options.prompts), "--repeats", str(options.repeats),
            "--max-tokens", str(options.max_tokens), "--threads", str(options.threads),
            "--seed", str(options.seed), "--out", str(options.out), "--json",
        ]  # fmt: skip
        if options.kill:
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as first:
                time.sleep(options.kill)
                first.kill()
            lines = (options.out / "records.jsonl").read_bytes().count(b"\n")
            say(f"ended by SIGKILL after {options.kill:g} s with {lines} lines kept; again")
        status = subprocess.run(command, check=False).returncode
    page = [*PACELINE, "report", str(options.out)]
    subprocess.run(page, check=True, stdout=subprocess.DEVNULL)
    if options.screenshot:
        picture(options.out / "report.html", options.screenshot)
    say(f"{time.monotonic() - began:.0f} s in all; {options.out / 'report.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
