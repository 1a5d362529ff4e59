"""A chat as a user has it: questions and commands, through a pipe and on a terminal."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import stat
import subprocess
import sys

import pytest

from paged_stream.cli import main
from paged_stream.commands.chat import COMMANDS, run_command
from paged_stream.commands.conversations import Conversations
from paged_stream.scheduler.sampling_params import SamplingParams

ENGINE = ["--window-size", "200", "--dtype", "float32", "--kv-cache-memory-bytes", "4000000"]
SAMPLING = ["--max-tokens", "5", "--seed", "1", "--ignore-eos"]
PARAMS = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)


@pytest.fixture
def engine(make_engine):
    return make_engine(window_size=200)


@pytest.fixture
def chat(engine):
    return Conversations(engine, None)


def ask(chat, text="hello"):
    return [token for delta in chat.ask(text, PARAMS) for token in delta.delta_token_ids]


def length(chat):
    return chat.current.stream.position


# What the commands do


def test_rewind_forgets_whole_turns(chat):
    first = ask(chat, "one")
    after_one = length(chat)
    second = ask(chat, "two")
    ask(chat, "three")
    assert run_command(chat, "/rewind 2") == "forgot 2 turns"
    assert length(chat) == after_one
    assert ask(chat, "two") == second
    run_command(chat, "/rewind 2")
    assert length(chat) == 0  # even though sink tokens cannot be rewound
    assert ask(chat, "one") == first


def test_rewind_after_a_turn_has_left_the_window(chat):
    ask(chat, "a" * 90)
    ask(chat, "b" * 90)
    ask(chat, "c" * 90)
    ask(chat, "d")
    with pytest.raises(ValueError, match="2 turns can be taken back, not 3"):
        run_command(chat, "/rewind 3")
    run_command(chat, "/rewind 2")
    with pytest.raises(ValueError, match="0 turns can be taken back, not 1"):
        run_command(chat, "/rewind")


def test_the_first_turn_can_be_taken_back_when_it_is_half_gone(chat):
    answer = ask(chat, "a" * 300)
    ask(chat)
    run_command(chat, "/rewind 2")
    assert length(chat) == 0 and ask(chat, "a" * 300) == answer


def test_forks_go_their_own_ways(chat):
    ask(chat, "one")
    common = length(chat)
    assert run_command(chat, "/fork trip") == "trip goes on from here; main stays as it is"
    in_fork = ask(chat, "two")
    run_command(chat, "/switch main")
    assert length(chat) == common
    assert ask(chat, "two") == in_fork
    run_command(chat, "/rewind")
    run_command(chat, "/switch trip")
    assert length(chat) > common
    assert run_command(chat, "/fork").startswith("2 goes on")
    with pytest.raises(ValueError, match="there is a conversation 'main' already"):
        run_command(chat, "/fork main")
    with pytest.raises(ValueError, match="no conversation 'x', only main, trip, 2"):
        run_command(chat, "/switch x")
    assert run_command(chat, "/switch") == "2, of main, trip, 2"
    chat.close()


def test_a_pinned_text_stays_visible(engine, chat):
    system = [{"role": "system", "content": "be kind"}]
    with engine.open_stream(pin=system) as stream:
        deltas = list(stream.chat("hello", PARAMS))
        expected = [token for delta in deltas for token in delta.delta_token_ids]
    run_command(chat, "/pin be kind")
    assert chat.names == ["main"]  # nothing had been said
    assert ask(chat) == expected
    run_command(chat, "/rewind")
    assert ask(chat) == expected
    assert run_command(chat, "/pin and brief") == "pinned; 2 begins anew, main stays as it is"
    assert chat.current.system == "be kind\nand brief"
    run_command(chat, "/switch main")
    assert length(chat) > 0


def test_cut_moves_the_turns_before_it(chat):
    ask(chat, "one")
    two = length(chat)
    ask(chat, "two")
    three = length(chat)
    ask(chat, "three")
    assert run_command(chat, f"/cut {two + 2} {two + 8}") == "cut 6 tokens out"
    assert chat.current.turns[1:] == [two + 6, three]
    run_command(chat, "/rewind 2")
    assert length(chat) == two + 6
    with pytest.raises(ValueError, match="start and end must be a span within"):
        run_command(chat, "/cut 0 3")


def test_a_saved_conversation_goes_on(chat, tmp_path):
    ask(chat, "one")
    path = tmp_path / "a file"
    run_command(chat, f"/save {path}")
    expected = ask(chat, "two")
    assert "goes on, after" in run_command(chat, f"/load {path}")
    assert ask(chat, "two") == expected
    run_command(chat, "/rewind")
    with pytest.raises(ValueError, match="0 turns can be taken back"):
        run_command(chat, "/rewind")


def test_a_command_that_fails_changes_nothing(chat, tmp_path):
    ask(chat)
    before = length(chat), chat.current.turns[:], chat.names
    (tmp_path / "broken").write_bytes(b"x" * 100)
    for line in [
        "/save",
        "/stats now",
        "/rewind many",
        "/rewind 0",
        "/cut 1",
        "/cut a b",
        "/pin",
        f"/load {tmp_path / 'nowhere'}",
        f"/load {tmp_path / 'broken'}",
        f"/save {tmp_path / 'nowhere' / 'file'}",
        "/nothing",
    ]:
        with pytest.raises((ValueError, OSError)):
            run_command(chat, line)
        assert (length(chat), chat.current.turns, chat.names) == before


def test_help_explains_each_command(chat):
    text = run_command(chat, "/help")
    assert all(f"{n} {c.usage}".strip() in text and c.help in text for n, c in COMMANDS.items())
    with pytest.raises(ValueError, match="no command /hlp; did you mean /help?"):
        run_command(chat, "/hlp")


def test_stats_give_the_positions_of_the_turns(chat):
    assert "0 tokens" in run_command(chat, "/stats")
    ask(chat)
    end = length(chat)
    ask(chat)
    text = run_command(chat, "/stats")
    assert f"2 back    positions 0 to {end}\n" in text
    assert f"1 back    positions {end} to {length(chat)}" in text


# Through a pipe


def talk_through_a_pipe(folder, text):
    command = [sys.executable, "-m", "paged_stream", "chat", "--model", str(folder)]
    return subprocess.run(
        [*command, *ENGINE, *SAMPLING], input=text, capture_output=True, text=True
    )


def test_lines_from_a_pipe(folder):
    done = talk_through_a_pipe(
        folder, "hello\n\n/fork\n//not a command\n/nothing\n/exit\nignored\n"
    )
    assert done.returncode == 0
    assert "2 goes on from here" in done.stdout and "\n2> " in done.stdout
    assert done.stderr.count("tokens, ") == 2  # two answers
    assert "error: there is no command /nothing" in done.stderr
    assert "prompt_toolkit" not in done.stderr


def test_the_end_of_a_pipe_ends_the_chat(folder):
    done = talk_through_a_pipe(folder, "hello")
    assert done.returncode == 0 and done.stderr.count("tokens, ") == 1


def test_a_refused_question_does_not_end_the_chat(folder, capsys, monkeypatch):
    lines = iter(["\udc80", "fine", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", "--model", str(folder), *ENGINE, *SAMPLING]) == 0
    err = capsys.readouterr().err
    assert "error: prompt is not valid text" in err and err.count("tokens, ") == 1


# On a terminal


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, command, **environ):
        self.pid, self._file = pty.fork()
        if not self.pid:
            os.execvpe(command[0], command, {**os.environ, **environ})
        self.text = ""
        self._status: int | None = None

    def read_until(self, pattern):
        """Read until the pattern is in what came since the last call; returns that."""
        while not (match := re.search(pattern, self.text)):
            self.text += self._read()
        seen, self.text = self.text[: match.end()], self.text[match.end() :]
        return seen

    def _read(self):
        content = os.read(self._file, 1 << 16).decode(errors="replace")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", content)

    def write(self, text):
        os.write(self._file, text.encode())

    def wait(self):
        """Returns the exit status."""
        try:
            while os.read(self._file, 1 << 16):
                pass
        except OSError:
            pass  # what Linux says at the end
        return self.close()

    def close(self):
        """End the process if it is there still; returns the exit status."""
        if self._status is None:
            os.close(self._file)  # hangs up, which ends it
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status


@pytest.fixture
def chat_on_terminal(folder, tmp_path):
    terminals = []

    def start(**environ):
        command = [sys.executable, "-m", "paged_stream", "chat", "--model", str(folder)]
        environ = {"XDG_STATE_HOME": str(tmp_path), "PROMPT_TOOLKIT_NO_CPR": "1", **environ}
        terminals.append(Terminal([*command, *ENGINE, *SAMPLING], TERM="xterm", **environ))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


needs_prompt_toolkit = pytest.mark.skipif(
    importlib.util.find_spec("prompt_toolkit") is None, reason="prompt_toolkit is an extra"
)


@needs_prompt_toolkit
def test_a_chat_on_a_terminal(chat_on_terminal, tmp_path):
    terminal = chat_on_terminal()
    terminal.read_until("/help lists the commands")
    terminal.read_until(">")
    terminal.write("helo\x1b[Dl\r")  # a letter is put in before the last one
    terminal.read_until(r"\[5 tokens, .*evicted\]")
    terminal.read_until(">")
    terminal.write("\x1b[200~two\nlines\x1b[201~")  # pasted
    terminal.read_until("lines")
    terminal.write("\r")
    terminal.read_until(r"\[5 tokens, .*evicted\]")  # one answer to both
    terminal.read_until(">")
    terminal.write("\x03")
    terminal.read_until(r"\(Ctrl-D or /exit leaves\)")
    terminal.read_until(">")
    terminal.write("/exit\r")
    assert terminal.wait() == 0
    history = tmp_path / "paged_stream" / "chat_history"
    entries = [line for line in history.read_text().splitlines() if line.startswith("+")]
    assert entries == ["+hello", "+two", "+lines", "+/exit"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


@needs_prompt_toolkit
def test_a_history_that_cannot_be_kept(chat_on_terminal):
    terminal = chat_on_terminal(XDG_STATE_HOME="/dev/null")
    terminal.read_until("warning: the history is not kept")
    terminal.read_until(">")
    terminal.write("\x04")
    assert terminal.wait() == 0


def test_a_terminal_without_prompt_toolkit(chat_on_terminal, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name == 'prompt_toolkit' else find(name, *a)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    terminal = chat_on_terminal(PYTHONPATH=path)
    terminal.read_until(r'an extra: pip install "paged-stream\[chat\]"')
    terminal.read_until(">")
    terminal.write("hello\n")
    terminal.read_until(r"\[5 tokens, .*evicted\]")
    terminal.read_until(">")
    terminal.write("\x04")
    assert terminal.wait() == 0
