"""Servers of one's own for a model: started, waited for, and stopped whatever happens."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sepsis_jax import cli
from sepsis_jax.agent import guard
from sepsis_jax.errors import InputError

HOST = "127.0.0.1"
_TAIL = 15
_POLL_S = 0.2
_STOP_S = guard.GRACE_S + 10.0


@contextlib.contextmanager
def serving(
    command: Callable[[int, int], Sequence[str]], logs: Path, *, replicas: int = 1, wait_s: float = 300.0
) -> Iterator[list[str]]:
    """Run servers on free ports of this machine and yield their base URLs once each says that it is well.

    They are stopped at the end of the block, and also if this process is killed.

    Args:
      command: (number from 0, port) -> command line of a server that answers `/health` and serves `/v1`.
      logs: folder for what they print. wait_s: how long they may take to start.

    Raises:
      InputError: a server ends or stays silent. The last lines that it printed are shown before.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        running = []
        for number, port in enumerate(_free_ports(replicas)):
            log = logs / f"server{number}.log"
            process = stack.enter_context(_guarded(list(command(number, port)), log))
            running.append((process, port, log))
        _wait(running, wait_s)
        yield [f"http://{HOST}:{port}/v1" for _, port, _ in running]


@contextlib.contextmanager
def _guarded(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, guard.__file__, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(running: list[tuple[subprocess.Popen[bytes], int, Path]], wait_s: float) -> None:
    began, waiting = time.monotonic(), list(running)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), transient=True) as progress:
        task = progress.add_task("waiting for the server", total=None)
        while waiting:
            waiting = [one for one in waiting if not _is_well(one[1])]
            late = time.monotonic() - began > wait_s
            for process, _, log in waiting:
                if not late and process.poll() is None:
                    continue
                cli.console.print(_tail(log), markup=False)
                found = f"no answer in {wait_s:g} s" if late else f"its end, code {process.returncode}"
                raise InputError(log, expected="a server that starts", found=f"{found}; it said last: {_tail(log, 1)}")
            for _, _, log in waiting[:1]:
                progress.update(task, description=f"waiting for the server: {_tail(log, 1)[:100]}")
                time.sleep(_POLL_S)


_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _is_well(port: int) -> bool:
    try:
        with _DIRECTLY.open(f"http://{HOST}:{port}/health", timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):  # nobody, or somebody else's server
        return False


def _tail(log: Path, lines: int = _TAIL) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in held:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in held]
