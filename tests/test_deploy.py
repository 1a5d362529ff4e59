"""What is in deploy/ says what the package does."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest

from paged_stream.cli import make_parser
from paged_stream.engine.turn_counts import TurnCounts
from paged_stream.serve.serve_options import ServeOptions

DEPLOY = Path(__file__).parent.parent / "deploy"


def served(arguments):
    """The options of a command line of ``paged-stream``."""
    return vars(make_parser().parse_args(arguments))


def test_the_dashboard_asks_for_metrics_that_are_there():
    pytest.importorskip("prometheus_client")
    from dataclasses import fields

    from paged_stream.engine.outputs import EngineStats
    from paged_stream.serve.metrics import families

    numbers = {field.name: 1 for field in fields(EngineStats) if field.name != "turns"}
    stats = EngineStats(**numbers, turns=TurnCounts().stats())
    known = set()
    for family in families(stats, "model"):
        suffix = {"counter": "_total", "histogram": "_bucket"}.get(family.type, "")
        known.add(family.name + suffix)
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(targets) > 10
    for target in targets:
        names = re.findall(r"(?:paged_stream_|vllm:)\w+", target["expr"])
        assert names and set(names) <= known, target["expr"]


def test_the_unit_starts_a_service_that_drains_in_time():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "paged-stream.service")
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "paged-stream"
    options = served(arguments)
    assert float(options["drain_seconds"]) < int(unit["Service"]["TimeoutStopSec"])
    assert unit["Service"]["SuccessExitStatus"] == "130"
    assert ServeOptions().max_connections < int(unit["Service"]["LimitNOFILE"])


def test_the_image_starts_a_service():
    text = (DEPLOY / "Dockerfile").read_text()
    program, *arguments = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.M)[1])
    assert program == "paged-stream"
    assert f"EXPOSE {served(arguments)['port']}" in text
