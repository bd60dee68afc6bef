"""A server of one's own, played by a small one: waited for, its last words shown, and gone however we end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sepsis_jax.agent import guard, server
from sepsis_jax.errors import InputError

WELL = """
import http.server, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def play(text):
    return lambda number, port: [sys.executable, "-c", text, str(port)]


def is_open(url):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", int(url.split(":")[2].split("/")[0]))) == 0


def is_alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except OSError:
        return False


def gone(check, seconds=15):
    end = time.monotonic() + seconds
    while check() and time.monotonic() < end:
        time.sleep(0.02)
    return not check()


def children(folder):
    return [int(log.read_text().split()[1]) for log in sorted(folder.glob("*.log"))]


def test_replicas_are_well_and_gone_afterwards(tmp_path):
    with server.serving(play(WELL), tmp_path, replicas=2) as urls:
        assert len(set(urls)) == 2 and all(map(is_open, urls))
        pids = children(tmp_path)
        assert len(pids) == 2 and all(map(is_alive, pids))
    assert not any(map(is_open, urls)) and all(gone(lambda pid=pid: is_alive(pid)) for pid in pids)


def test_they_are_gone_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), server.serving(play(WELL), tmp_path) as urls:
        raise KeyboardInterrupt
    assert not is_open(urls[0])


@pytest.mark.parametrize(
    ("text", "wait_s", "message"),
    [
        ("import sys; print('why:'); print('no such model'); sys.exit(3)", 60, "code 3; it said last: no such model"),
        (
            "import time; print('loading', flush=True); time.sleep(600)",
            1.5,
            "no answer in 1.5 s; it said last: loading",
        ),
    ],
)
def test_the_last_words_of_a_server_that_does_not_start(tmp_path, capsys, text, wait_s, message):
    with pytest.raises(InputError, match=message), server.serving(play(text), tmp_path, wait_s=wait_s):
        raise AssertionError
    assert (tmp_path / "server0.log").read_text().strip() in capsys.readouterr().out


def test_a_killed_owner_leaves_nothing_behind(tmp_path):
    owner = (
        "import subprocess, sys, time\n"
        "guarded = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=open('log', 'wb'))\n"
        "time.sleep(600)"
    )
    port = server._free_ports(1)[0]
    process = subprocess.Popen(
        [sys.executable, "-c", owner, sys.executable, guard.__file__, *play(WELL)(0, port)], cwd=tmp_path
    )
    assert not gone(lambda: server._is_well(port), 0) or gone(lambda: not server._is_well(port))
    (child,) = [int((tmp_path / "log").read_text().split()[1])]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert gone(lambda: server._is_well(port)) and gone(lambda: is_alive(child))
