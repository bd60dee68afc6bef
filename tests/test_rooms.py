"""The house: a room imports only rooms above it, the public root stays small, and the package speaks of itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sepsis_jax

PACKAGE = Path(sepsis_jax.__file__).parent
ROOMS = (
    "clinical",
    "data",
    "dynamics",
    "plotting",
    "simulation",
    "policies",
    "ope",
    "agent",
    "curriculum",
    "evaluation",
)
FREE = ("errors", "files", "cli", "checkpoints")  # for every room
TOP = (
    "config",
    "pipeline",
    "released_run",
    "agent_run",
    "ablation",
    "__init__",
)  # may see every room; no room may see them
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(dotted):
    parts = dotted.split(".")
    return parts[1] if parts[0] == "sepsis_jax" and len(parts) > 1 else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_up(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    seen = {room_of(name) for name in imports_of(path)} - {None, own, *FREE}
    if own in TOP:
        return
    assert own in ROOMS + FREE, f"{own} is no room"
    allowed = set(ROOMS[: ROOMS.index(own)]) if own in ROOMS else set()
    assert seen & set(ROOMS + TOP) <= allowed


def test_files_stay_readable_in_one_sitting():
    assert [str(path) for path in MODULES if len(path.read_text().splitlines()) > 340] == []


def test_the_root_is_small():
    assert len(sepsis_jax.__all__) <= 25
    for name in sepsis_jax.__all__:
        assert getattr(sepsis_jax, name).__doc__
