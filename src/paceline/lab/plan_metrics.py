"""Acceptance out of a server's /metrics, this package's or vLLM's, in Prometheus' text.

A server of this package counts tested and accepted tokens by position; vLLM counts drafts and
accepted tokens by position, which says the same: a position was tested as often as the one before
it was accepted. Neither counts the rounds of a text that had no draft: a server's rounds have many
texts each, so what its rounds by K leave over is no count of them, and a drafter that may have none
is refused (`Measured.with_acceptance`). Times are not read: they are sums over all loads.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path

from paceline import ConfigError
from paceline.files import read_text
from paceline.lab.plan_acceptance import Acceptance, Counts

_LINE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ACCEPTED = "spec_decode_num_accepted_tokens_per_pos"
_EVALUATED = "spec_decode_num_evaluated_tokens_per_pos"
_DRAFTS = "spec_decode_num_drafts"
_BY_K = "spec_decode_num_rounds_per_k"
# What begins a text, and a round of K = 0 with it where nothing else is being written.
_BEGINNINGS = ("request_success", "num_requests_running", "num_preemptions")
_ANSWERED = "http_requests"  # where paceline counts the prompts that were warmed, a token each
_TIMEOUT = 10.0
_MOST = 8 << 20  # bytes of an answer

Sample = tuple[dict[str, str], float]


def read(source: str) -> tuple[Acceptance, list[str]]:
    """The acceptance that a server counted, and what to doubt of it, in words. source: a URL
    (…/metrics, or the server's own) or a file with what it answered. Raises ConfigError."""
    text = _fetch(source) if source.startswith(("http://", "https://")) else read_text(Path(source))
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def parse(text: str) -> tuple[Acceptance, list[str]]:
    """The counts in Prometheus' text, and doubts. Raises ValueError where there are none."""
    found = _samples(text)
    accepted = _by_position(found.get(_ACCEPTED, []))
    if not accepted:
        raise ValueError(
            f"no {_ACCEPTED} in it: the server drafts nothing, or counts nothing by position"
        )
    evaluated = _by_position(found.get(_EVALUATED, []))
    if not evaluated:
        drafts = sum(value for _, value in found.get(_DRAFTS, []))
        evaluated = [int(drafts), *accepted[:-1]]
    if len(evaluated) < len(accepted):
        raise ValueError("positions were accepted that were not tested")
    accepted += [0] * (len(evaluated) - len(accepted))
    tested = Counts(tuple(evaluated), tuple(accepted))
    if not sum(evaluated):
        raise ValueError("no draft token has been tested yet: come again when texts have ended")
    return Acceptance((tested,)), _doubts(found)


def _doubts(found: dict[str, list[Sample]]) -> list[str]:
    """A line where the server chose K: it drafts more where drafts stand, so those tested, and the
    later positions most of all, are not of all its rounds."""
    rounds: dict[int, float] = {}
    for labels, value in found.get(_BY_K, []):
        k = labels.get("k", "")
        if k.isdecimal() and value:
            rounds[int(k)] = rounds.get(int(k), 0.0) + value
    begun = sum(value for name in _BEGINNINGS for _, value in found.get(name, []))
    answered = found.get(_ANSWERED, [])
    begun += sum(value for labels, value in answered if labels.get("path") == "/v1/warm")
    # One K has rounds of 0 too, before a text's first draft and where it has room for no other.
    chosen = {k for k, count in rounds.items() if k or count > 2 * begun}
    if len(chosen) <= 1:
        return []
    ks = ", ".join(str(k) for k in sorted(chosen))
    return [f"the server chose K round by round ({ks}), and more where drafts stand: its "
            "acceptance may be too high. Serve with one K (paceline serve --fixed), or let plan "
            "measure"]  # fmt: skip


def _samples(text: str) -> dict[str, list[Sample]]:
    """By name, without what stands before `:` and without `_total`."""
    found: dict[str, list[Sample]] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name = match["name"].rpartition(":")[2].removesuffix("_total")
        try:
            value = float(match["value"])
        except ValueError:
            continue
        found.setdefault(name, []).append((dict(_LABEL.findall(match["labels"] or "")), value))
    return found


def _by_position(samples: list[Sample]) -> list[int]:
    """Counts by position, over all models and engines of the server."""
    counts: dict[int, float] = {}
    for labels, value in samples:
        place = labels.get("position", "")
        if place.isdecimal():
            counts[int(place)] = counts.get(int(place), 0.0) + value
    return [int(counts.get(place, 0)) for place in range(max(counts, default=-1) + 1)]


def _fetch(url: str) -> str:
    where = url if url.rstrip("/").endswith("/metrics") else url.rstrip("/") + "/metrics"
    try:
        with urllib.request.urlopen(where, timeout=_TIMEOUT) as answer:
            body: bytes = answer.read(_MOST)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"{where}: no metrics there ({reason})") from error
    return body.decode("utf-8", errors="replace")
