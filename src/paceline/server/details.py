"""What a streamed chunk says of its round on request: `stream_options.include_timing`.

Pure. It stands beside OpenAI's fields under the key `paceline`, where their clients leave it alone.
"""

from __future__ import annotations

from paceline import Event

KEY = "paceline"


def details(event: Event, seconds: float) -> dict[str, object]:
    """seconds: since the request came. In the answer `seconds` as well as `round.seconds` are in
    seconds; `sources` and `pieces` have an entry a token, and the pieces join to the event's text
    but for what an end from outside lets out; `round` is null where no round was the cause."""
    report = event.round
    told = None
    if report is not None:
        told = {
            "k": report.k,
            "drafted": report.drafted,
            "evaluated": report.evaluated,
            "accepted": report.accepted,
            "drafter": report.drafter,
            "seconds": round(report.seconds, 6),
        }
    return {
        "seconds": round(seconds, 6),
        "tokens": len(event.token_ids),
        "sources": event.sources,
        "pieces": event.pieces,
        "round": told,
    }
