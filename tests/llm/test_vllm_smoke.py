"""One run with a real vLLM server, which it installs, starts and stops itself, and with a model that knows nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import finish, start, tiny_inputs
from vllm_here import ENVIRONMENT, install, make_tiny, only_where_vllm_runs

from sepsis_jax.agent import transcripts

ASKED = (
    "--agent.backend=llm",
    "--llm.model=tiny",
    "--agent.split=all",
    "--planner.samples=4",
    "--planner.horizon=2",
    "--llm.rationale=false",
)


def servers_of(model):
    """Command lines of its servers that still run."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has just ended
            continue
    return [line for line in found if "vllm.entrypoints" in line and str(model) in line]


@pytest.mark.slow
@only_where_vllm_runs
def test_the_whole_way_with_a_real_server(tmp_path):
    install()
    model, inputs, out = make_tiny(tmp_path), tiny_inputs(tmp_path, 3, 3), tmp_path / "out"
    words = (*inputs, *ASKED, f"--serve={model}", f"--llm.vllm={ENVIRONMENT}", f"--out={out}")
    assert "Serving" in finish(start("agent_loop.py", *words, "--agent.stays=2"))
    assert servers_of(model) == []
    for one in transcripts.read(out / transcripts.FILE):
        assert one["failed"] is None and one["decisions"] and one["usage"]["malformed"] == {}
        assert len(one["decisions"]) <= one["usage"]["requests"]
    assert (out / "report.html").is_file()
