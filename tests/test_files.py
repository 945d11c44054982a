"""Files: one message where one cannot be read, and none that is written half."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.errors import ConfigError
from paceline.files import read_text, write_whole


def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "one"
    with pytest.raises(ConfigError, match=r"one: cannot be read \(No such file or directory\)$"):
        read_text(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"one: cannot be read \(not UTF-8 text\); give another$"):
        read_text(file, "give another")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text(tmp_path)
    file.write_text("\ufeffa\n", encoding="utf-8")
    assert (read_text(file), read_text(file, encoding="utf-8-sig")) == ("\ufeffa\n", "a\n")


def test_nothing_is_written_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "one.json"
    write_whole(file, "first")
    write_whole(file, "second")

    def full(self: Path, text: str, **options: object) -> None:
        self.write_bytes(text[:2].encode())
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            write_whole(file, "third")
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]
    assert read_text(file) == "second"
