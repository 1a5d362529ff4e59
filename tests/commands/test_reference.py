"""Help and reference show every option, from the one place where it is written."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from paged_stream.cli import main
from paged_stream.commands.all_commands import COMMANDS
from paged_stream.commands.options import flag
from paged_stream.commands.reference import command_reference, settings_table
from paged_stream.commands.settings import CLASSES
from paged_stream.scheduler.settings import settings_of


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_shows_every_setting_with_its_default(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # an option on a line
    with pytest.raises(SystemExit) as exit_info:
        main([command.name, "--help"])
    assert exit_info.value.code == 0
    out = re.sub(r"\n {20,}", " ", capsys.readouterr().out)  # help of options with long names
    assert f"usage: paged-stream {command.name} [OPTION ...]" in out
    assert f"example:\n  {command.example.splitlines()[0]}" in out
    assert ("--config FILE" in out and "\nsettings:\n" in out) == bool(command.groups)
    for group in command.groups:
        assert f"\n{group.title}:\n" in out
        for name, setting in group.settings.items():
            label = group.label(name)
            match = re.search(rf"^  {re.escape(label)}\b.*; (default: .*|required)\)$", out, re.M)
            assert match, label
            assert f" ({setting.kind.allowed}" in match[0]
            if isinstance(setting.default, int | float | str):
                assert match[1].lower() == f"default: {setting.default}".lower()
    assert "`" not in out.partition("example:")[0], "marks of a docstring"


def test_help_without_docstrings():
    command = [sys.executable, "-OO", "-m", "paged_stream", "generate", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (
        "--window-size N" in result.stdout and "(int >= 1 or none; default: none)" in result.stdout
    )


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from paged_stream.cli import make_parser; make_parser().format_help();"
        "print({'torch', 'transformers', 'ray', 'pyarrow'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr


def test_the_reference_has_every_command_and_every_field():
    page = "\n".join(command_reference())
    for command in COMMANDS:
        assert f"\n## {command.name}\n" in f"\n{page}"
        assert command.example in page
    for cls in CLASSES:
        table = "\n".join(settings_table(cls))
        assert table in page
        for name, setting in settings_of(cls).items():
            [row] = re.findall(rf"^\| `{name}` \| (.*)$", table, re.M)
            assert setting.kind.allowed in row
            assert len(re.findall(r"(?<!\\)\|", row)) == 3
    for word in ("--file FILE", "--dry-run", "--max-num-seqs", "--max-tokens 512", "TEXT"):
        assert f"`{word}`" in page
    assert flag("chunk_size") + " 256" in page  # a batch's own default
