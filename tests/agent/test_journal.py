"""Runs that survive: a kill at any byte loses at most the case that was being written, and no case is there twice."""

from __future__ import annotations

import json

import pytest

from sepsis_jax.agent import journal, transcripts
from sepsis_jax.errors import InputError

WHO = {"agent": {"seed": 0}, "stays": "a"}


def case(stay, failed=None):
    return {"stay_id": stay, "text": "é" * 3, "failed": failed}


def begin(out, **options):
    return journal.open_run(out, WHO, **({"resume": False, "retry_failed": False} | options))


def test_a_kill_at_any_byte_loses_at_most_the_line_that_was_written(tmp_path):
    out = tmp_path / "agent"
    with begin(out) as log:
        for stay in range(3):
            log.add(case(stay))
    path = journal.path_of(out)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(ends[0], len(whole) + 1):
        path.write_bytes(whole[:cut])
        with begin(out, resume=True) as log:
            assert list(log.done) == list(range(sum(end <= cut for end in ends) - 1))
            for stay in range(len(log.done), 3):
                log.add(case(stay))
        assert path.read_bytes() == whole


def test_what_is_in_the_way_or_missing(tmp_path):
    out = tmp_path / "agent"
    with pytest.raises(InputError, match="an unfinished run"):
        begin(out, resume=True)
    with pytest.raises(InputError, match="a finished run"):
        begin(out, retry_failed=True)
    begin(out).__exit__(None, None, None)
    with begin(out, resume=False) as log:  # one that was stopped before its first case is not in the way
        log.add(case(0))
    with pytest.raises(InputError, match="--resume goes on"):
        begin(out)
    with pytest.raises(InputError, match="other stays"):
        journal.open_run(out, WHO | {"stays": "b"}, resume=True, retry_failed=False)


@pytest.mark.parametrize("text", ["", "{}\n", "[]\n", "nonsense\n", '{"run": {}}\n3\n', '{"run": {}}\n{"a": 1}\n'])
def test_damaged_journals(tmp_path, text):
    path = journal.path_of(tmp_path / "agent")
    path.write_text(text)
    with pytest.raises(InputError, match="the journal of a run"):
        begin(tmp_path / "agent", resume=True)
    assert path.read_text() == text


def test_failed_cases_are_open_again(tmp_path):
    out = tmp_path / "agent"
    failed = {"kind": "timeout", "detail": "x"}
    with begin(out) as log:
        log.add(case(1))
        log.add(case(2, failed))
    with begin(out, resume=True) as log:
        assert set(log.done) == {1, 2}
    with begin(out, resume=True, retry_failed=True) as log:
        assert set(log.done) == {1}
    journal.path_of(out).unlink()
    out.mkdir()
    transcripts.write(out / transcripts.FILE, [case(1), case(2, failed)])
    (out / journal.RUN).write_text(json.dumps(WHO))
    with begin(out, retry_failed=True) as log:
        assert set(log.done) == {1}


def test_a_run_that_ends_before_its_first_case_leaves_nothing_in_the_way(tmp_path):
    """As when its server does not start."""
    with pytest.raises(RuntimeError), journal.open_run(tmp_path / "out", {}, resume=False, retry_failed=False):
        raise RuntimeError
    assert not journal.path_of(tmp_path / "out").exists()
    with pytest.raises(RuntimeError), journal.open_run(tmp_path / "out", {}, resume=False, retry_failed=False) as log:
        log.add({"stay_id": 1, "failed": None})
        raise RuntimeError
    assert journal.path_of(tmp_path / "out").exists()


def test_a_run_that_somebody_works_on_is_not_taken_over(tmp_path):
    with begin(tmp_path / "agent") as log:
        log.add(case(0))
        with pytest.raises(InputError, match="another process works on"):
            begin(tmp_path / "agent", resume=True)
        log.add(case(1))
    with begin(tmp_path / "agent", resume=True) as log:
        assert sorted(log.done) == [0, 1]


NO_RECORDS = ("[1]", "5", "{}", '{"stay_id": 4}', '{"stay_id": [4], "failed": null}', "[" * 100_000)


@pytest.mark.parametrize("line", NO_RECORDS, ids=lambda line: line[:20])
def test_damaged_lines_get_one_line(tmp_path, line):
    with begin(tmp_path / "agent") as log:
        log.add(case(0))
    path = journal.path_of(tmp_path / "agent")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match="unfinished"):
        begin(tmp_path / "agent", resume=True)
    (tmp_path / transcripts.FILE).write_text(line + "\n")
    with pytest.raises(InputError, match="one JSON object a line"):
        transcripts.read(tmp_path / transcripts.FILE)
