"""What the account of the architecture names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_file_that_is_named_exists() -> None:
    """By its path within the package, as `engine/round.py` or `lab/`, or within the clone."""
    named = set(re.findall(r"`([a-z_]+/(?:[a-z_]+(?:/[a-z_]+)*\.(?:py|md))?)`", TEXT))
    assert "engine/round.py" in named
    missing = [
        name
        for name in named
        if not any((at / name).exists() for at in (ROOT / "src/paceline", ROOT))
    ]
    assert missing == []
