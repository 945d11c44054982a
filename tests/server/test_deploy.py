"""What lies in deploy/: it names metrics, options and files that there are."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.server.tools import Call
from typer.testing import CliRunner

from paceline.cli import app as command
from paceline.config import load_toml
from paceline.server.file import settle

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BOARD = json.loads((DEPLOY / "grafana/dashboards/paceline.json").read_text())


def queries() -> Iterator[tuple[str, str]]:
    """Every query of the board and of the alerts, with the panel's or the alert's name."""
    for panel in BOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """Filled by the first test that asks: sample names of /metrics with their labels' names."""
    return {}


@pytest.fixture
def samples(app: Callable[..., Call], exposed: dict[str, set[str]]) -> dict[str, set[str]]:
    if exposed:
        return exposed
    call = app(queue=0)
    body: dict[str, Any] = {
        "model": "mini", "prompt": "def add(a, b):", "max_tokens": 30,
        "seed": 7, "ignore_eos": True,
    }  # fmt: skip
    assert call("POST", "/v1/completions", body).status == 200
    for line in call("GET", "/metrics").body.decode().splitlines():
        if not line.startswith("#"):
            name, _, labels = line.rpartition(" ")[0].partition("{")
            exposed.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return exposed


def test_the_manual_has_every_metric_and_no_other(samples: dict[str, set[str]]) -> None:
    manual = (ROOT / "docs/server.md").read_text()
    section = manual[manual.index("### Watching it") : manual.index("### Recording requests")]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    labels = set().union(*samples.values())
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)} - labels
    suffix = re.compile(r"_(total|bucket|count|sum|created)$")
    families = {suffix.sub("", name.removeprefix("paceline:")) for name in samples}
    assert named == families


@pytest.mark.parametrize(("title", "query"), list(queries()))
def test_queries_name_metrics_and_labels_that_there_are(
    title: str, query: str, samples: dict[str, set[str]]
) -> None:
    query = query.replace("$prefix", "paceline")
    names = set(re.findall(r"[a-z_]+:\w+|process_\w+", query))
    assert names or query.startswith("up{"), query
    assert not names - set(samples), f"{title}: no such metric"
    # Prometheus itself adds these two when it scrapes.
    known = {"job", "instance"}.union(*(samples[name] for name in names))
    used = set(re.findall(r'(\w+)\s*=~?\s*"', query))
    for group in re.findall(r"by \(([^)]*)\)", query):
        used |= {label.strip() for label in group.split(",")}
    if query.startswith("label_values("):
        used.add(query.rstrip(")").rpartition(",")[2].strip())
    assert used <= known, f"{title}: no such label"


def test_the_board_hangs_together() -> None:
    variables = {variable["name"] for variable in BOARD["templating"]["list"]}
    assert {"datasource", "prefix"} <= variables
    text = json.dumps(BOARD["panels"])
    used = set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval"}
    assert used <= variables
    numbers = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    cells = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        area = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not area & cells, f"{panel['title']} lies on another panel"
        cells |= area
        assert all(t["datasource"]["uid"] == "${datasource}" for t in panel.get("targets", ()))


@pytest.mark.parametrize("name", [file.relative_to(DEPLOY) for file in DEPLOY.rglob("*.yml")])
def test_yaml_is_read(name: Path) -> None:
    assert isinstance(yaml.safe_load((DEPLOY / name).read_text()), dict)


def test_the_example_configuration_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PACELINE_API_KEYS", raising=False)
    file = DEPLOY / "paceline.toml"
    assert load_toml(file).drafter == "predicted+model"
    settings, host, port = settle(file, {}, "x")
    assert (settings.name, host, port) == ("mini-target", "127.0.0.1", 8000)
    assert tomllib.loads(file.read_text())["server"]["drain"] == settings.drain


def test_the_unit_starts_a_command_that_there_is() -> None:
    unit = (DEPLOY / "paceline.service").read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.M)
    program, *arguments = shlex.split(line)
    assert program.endswith("/paceline")
    shown = CliRunner().invoke(command, [arguments[0], "--help"], env={"COLUMNS": "200"})
    for option in (word for word in arguments if word.startswith("--")):
        assert option in re.sub(r"\x1b\[[\d;]*m", "", shown.stdout)
    grace = float(tomllib.loads((DEPLOY / "paceline.toml").read_text())["server"]["drain"])
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    assert float(stop) > grace + 10, "systemd would kill it while it drains"


def test_the_container_copies_what_there_is() -> None:
    recipe = (DEPLOY / "Containerfile").read_text()
    allowed = {
        line[1:] for line in (ROOT / ".containerignore").read_text().split() if line[0] == "!"
    }
    copied = {
        word
        for line in re.findall(r"^COPY (?!--)(.*)$", recipe, re.M)
        for word in line.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert (ROOT / ".dockerignore").read_text() == (ROOT / ".containerignore").read_text()


def test_the_probes_ask_for_what_there_is(app: Callable[..., Call]) -> None:
    (told,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/server.md").read_text(), re.M | re.S)
    probes = yaml.safe_load(told)
    assert set(probes) == {"startupProbe", "livenessProbe", "readinessProbe"}
    call, settings = app(), settle(None, {}, "x")[0]
    for probe in probes.values():
        assert probe["httpGet"]["port"] == 8000
        assert call("GET", probe["httpGet"]["path"]).status == 200
    (grace,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", told)
    assert float(grace) > settings.drain + 10
