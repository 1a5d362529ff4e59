"""Files that are written whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from paged_stream.system import whole_files
from paged_stream.system.whole_files import read_regular, write_whole


@pytest.fixture(params=["unnamed", "named"])
def kind(request, monkeypatch):
    """With files that have no name, and as where there are none."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE")
    return request.param


def test_a_file_is_written_and_replaced(tmp_path, kind):
    path = tmp_path / "a"
    write_whole(path, [b"one", memoryview(b"two"), bytearray(b"")])
    assert read_regular(path) == b"onetwo"
    write_whole(path, [b"three"])
    assert read_regular(path) == b"three"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, kind, monkeypatch, failing):
    path = tmp_path / "a"
    write_whole(path, [b"one"])

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(whole_files.os, failing, fail)
        with pytest.raises(OSError, match="No space left") as caught:
            write_whole(path, [b"two"])
    assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_bytes() == b"one"


def test_a_real_disk_that_is_full(tmp_path):
    """The limit of a file's size stands for it: the write fails within."""
    code = """
import resource, signal, sys
from pathlib import Path
from paged_stream.system.whole_files import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_whole(Path(sys.argv[1]), [b"x" * 600, b"y" * 600])
except OSError as error:
    print(error)
"""
    path = tmp_path / "a"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"[Errno 27] File too large: {str(path)!r}"
    assert not os.listdir(tmp_path)


KILLED = """
import os, sys
from pathlib import Path
from paged_stream.system import whole_files
if sys.argv[2] == "named":
    del os.O_TMPFILE
def wait(*args):
    print("waits", flush=True)
    sys.stdin.read()
setattr(whole_files.os, sys.argv[3], wait)
whole_files.write_whole(Path(sys.argv[1]), [b"two"])
"""


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_process_that_is_killed(tmp_path, kind, where):
    path = tmp_path / "a"
    write_whole(path, [b"one"])
    command = [sys.executable, "-c", KILLED, str(path), kind, where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"waits\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"one"
    if kind == "unnamed" and where == "fsync":
        assert os.listdir(tmp_path) == ["a"]
    write_whole(path, [b"three"])
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_bytes() == b"three"


def test_another_writer_that_lives_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE")
    path = tmp_path / "a"
    command = [sys.executable, "-c", KILLED, str(path), "named", "replace"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"waits\n"
        write_whole(path, [b"one"])
        assert len(os.listdir(tmp_path)) == 2
        process.communicate()
    assert process.returncode == 0


def test_many_writers_of_one_path(tmp_path, kind):
    path = tmp_path / "a"
    contents = [bytes([65 + index]) * 1000 for index in range(4)]

    def write(content: bytes) -> None:
        for _ in range(50):
            write_whole(path, [content])
            assert path.read_bytes() in contents

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    failures = []
    threading.excepthook, hook = failures.append, threading.excepthook
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = hook
    assert not failures
    assert os.listdir(tmp_path) == ["a"]


def make_socket(path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, make_socket, os.mkdir])
def test_what_is_no_regular_file(tmp_path, make, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    path = tmp_path / "x"
    make("x")
    with pytest.raises(OSError, match="no regular file|No such device"):
        read_regular(path)


def test_devices_and_links_to_them(tmp_path):
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in ("/dev/zero", tmp_path / "zero", "/dev/tty"):
        with pytest.raises(OSError, match="no regular file|No such device"):
            read_regular(path)
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "link") == b"content"
