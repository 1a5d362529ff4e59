"""Progress where it is read later: a line at the start, one at the end, no carriage return."""

from __future__ import annotations

import logging

from paged_stream.system import progress_bar as module
from paged_stream.system.progress_bar import progress_bar


def test_a_redirected_bar_writes_lines(capsys):
    with progress_bar(total=4, desc="dense", unit=" tok") as bar:
        for _ in range(4):
            bar.update()
    err = capsys.readouterr().err
    assert "\r" not in err and err.endswith("\n")
    lines = err.splitlines()
    assert [line.split(" [")[0] for line in lines] == ["dense: 0%, 0/4 tok", "dense: 100%, 4/4 tok"]


def test_a_redirected_bar_writes_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    for _ in progress_bar(range(3), desc="dense", unit=" tok"):
        pass
    shown = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["0%,", "33%,", "67%,", "100%,"]


def test_what_is_over_soon_needs_no_line(capsys):
    for _ in progress_bar(range(3), delay=1000.0):
        pass
    assert not capsys.readouterr().err


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for _ in progress_bar(range(3), desc="dense"):
        pass
    assert "\rdense: 100%|" in capsys.readouterr().err


def test_a_library_loads_a_model_quietly(make_engine, capsys):
    logging.getLogger("paged_stream.models").setLevel(logging.NOTSET)
    make_engine()
    assert capsys.readouterr().err == ""
