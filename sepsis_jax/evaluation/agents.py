"""Language models in the policy table: what `agent_loop.py` found out about them, by stay.

A model cannot be asked here. Its probabilities at recorded decisions come from `--probabilities`, and its courses in
the patient simulator from a run that follows the truth; only stays that both know, without failure, are judged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax.agent import journal, probabilities, questions, transcripts
from sepsis_jax.clinical.actions import NUM_ACTIONS, encode
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation.closed_loop import Decision
from sepsis_jax.evaluation.contenders import TRUTH, Contender, OnRecord

_SHAPES = (
    "prompts",
    "context",
    "simulator",
    "simulation",
    "simulations",
    "rationale",
    "tool_choice",
    "temperature",
    "top_p",
)
"""Settings of `LLMSettings` that make another policy of the same model."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """What one model would do.

    Attributes:
      probs: f32[N,T,25] at the recorded decisions of the stays stay_id i64[N], ascending; zeros at padding.
      given: stay_id -> int[L] actions prescribed in the patient simulator; None if it was not played there.
    """

    stay_id: np.ndarray
    probs: np.ndarray
    given: Mapping[int, np.ndarray] | None

    @property
    def stays(self) -> np.ndarray:
        """i64[M] of whom everything is known."""
        return self.stay_id if self.given is None else np.intersect1d(self.stay_id, list(self.given))

    @property
    def digest(self) -> str:
        """Tells these answers from others."""
        played = sorted((stay, actions.tolist()) for stay, actions in (self.given or {}).items())
        return hashlib.sha256(self.probs.tobytes() + json.dumps(played).encode()).hexdigest()

    def on_record(self, episodes: Episodes) -> np.ndarray:
        """f32[B,T,25]. InputError for stays that it was not asked about."""
        own = np.asarray(episodes.stay_id)
        rows = np.searchsorted(self.stay_id, own).clip(max=self.stay_id.size - 1)
        if not (self.stay_id[rows] == own).all():
            raise InputError("policies", field="agents", expected="the stays that are judged", found="others")
        found = np.zeros((own.size, episodes.obs.shape[1], NUM_ACTIONS), np.float32)
        steps = min(found.shape[1], self.probs.shape[1])
        found[:, :steps] = self.probs[rows, :steps]
        if not (found.sum(-1) > 0)[np.asarray(episodes.valid)].all():
            raise InputError("policies", field="agents", expected="an answer at every decision", found="shorter stays")
        return found

    def again(self, decision: Decision) -> np.ndarray:
        """What it prescribed in the patient simulator, whose luck is the same again: f32[B,25], see `Chances`."""
        assert self.given is not None
        step = int(np.asarray(decision.history.length)[0]) - 1
        actions = [_at(self.given[int(stay)], step) for stay in np.asarray(decision.history.stay_id)]
        return np.eye(NUM_ACTIONS, dtype=np.float32)[actions]


def _at(actions: np.ndarray, step: int) -> int:
    return int(actions[step]) if step < len(actions) else 0  # whatever, for who has left


def read(folder: Path) -> Answers:
    """Those of the model whose run is in `folder`, with its probabilities beside it. InputError if there are none."""
    found = probabilities.read(_file(folder))
    order = np.argsort(found["stay_id"])
    given = lived(folder)
    return Answers(found["stay_id"][order], found["probs"][order], given)


def check_cohort(folder: Path, episodes: Episodes) -> None:
    """InputError unless the run in `folder` was about stays of `episodes`, number for number.

    The same goes for the probabilities and the questions beside it, which also must be of the same model.
    """
    models: list[dict[str, Any]] = []
    for part in (folder, probabilities.folder_of(folder), questions.folder_of(folder)):
        if (part / journal.RUN).is_file():
            models.append(_model(_told(part / journal.RUN), all_of_it=part != questions.folder_of(folder)))
            for name, value in models[-1].items():
                if value != models[0][name]:
                    hint = "ask the model that treated, as it was asked then, or give its run another --out"
                    raise InputError(part, field=name, expected=f"as in {folder}", found="another", hint=hint)
            own = {one["stay_id"] for one in transcripts.read(part / transcripts.FILE)}
            same = episodes.take(np.isin(np.asarray(episodes.stay_id), sorted(own)))
            if same.num_stays < len(own) or same.digest() != _told(part / journal.RUN)["stays"]:
                raise InputError(part, expected="a run over stays of this cohort and split", found="one over others")


def _model(told: dict[str, Any], *, all_of_it: bool) -> dict[str, Any]:
    """Who decided; `all_of_it`: and how it was asked, which the questions do not depend on."""
    llm = told.get("llm") or {}
    who = {"backend": told["agent"].get("backend"), "served": told.get("served"), "llm.model": llm.get("model")}
    return who | ({f"llm.{name}": llm.get(name) for name in _SHAPES} if all_of_it else {})


def asked(folder: Path) -> bool:
    """Whether its probabilities stand beside it."""
    return _file(folder).is_file()


def _file(folder: Path) -> Path:
    return probabilities.folder_of(folder) / probabilities.FILE


def lived(folder: Path) -> dict[int, np.ndarray] | None:
    """stay_id -> int[L] actions prescribed in the patient simulator; None if the run was not lived there."""
    file = folder / journal.RUN
    if not file.is_file():
        return None
    if _told(file)["agent"]["follow"] != "truth":
        return None
    cases = transcripts.cases(folder / transcripts.FILE)
    return {
        one["stay_id"]: np.asarray(encode(np.array([decision["action"] for decision in one["decisions"]], np.int8)))
        for one in cases
        if one["failed"] is None
    }


def _told(file: Path) -> dict[str, Any]:
    """What a run depended on."""
    try:
        told = json.loads(file.read_text())
        _ = told["agent"]["follow"], told["stays"]
        return dict(told)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(file, expected="the settings of a run", found=repr(error)[:80]) from error


def judged(episodes: Episodes, everyone: Sequence[Answers]) -> Episodes:
    """The stays of which every model has answered everything. InputError if there are none."""
    kept = np.asarray(episodes.stay_id)
    for one in everyone:
        kept = np.intersect1d(kept, one.stays)
    if not kept.size:
        hint = "ask them about stays of the same cohort and split"
        raise InputError("policies", field="agents", expected="stays in common", found="none", hint=hint)
    return episodes.take(np.isin(np.asarray(episodes.stay_id), kept))


def contender(answers: Answers, imitation: OnRecord) -> Contender:
    """A model in the policy table; on stays that it was not asked about, `imitation` stands for it."""
    stages = () if answers.given is None else (TRUTH,)
    return Contender(answers.again, answers.on_record, on_fitted=imitation, stages=stages)
