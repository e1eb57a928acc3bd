"""Settings of examining a reward model."""

from __future__ import annotations

from dataclasses import dataclass, field

from panoply.config.resume import NO_EFFECT
from panoply.config.serve import check_address
from panoply.config.tracked import TrackedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorConfig(TrackedRun):
    """Check what a scorer reads and what moves its scores, and say what to do about it.

    Of a reward model: template and its date, BOS, padding, which token is scored, alone against
    batches and token trees, bfloat16 against float32, truncation, speed, and the scores of plain
    transformers; of one that scores steps, their rule and separator. Of a judge: verdicts, order,
    cost, and instructions in a response. Of a composite: whether each part answers, and what comes
    of them. Of a bandit: whether each arm answers, what it sees of a prompt, and what its log
    holds. Of a function or another server: whether it answers, the same again, and alone. Of
    recorded scores: how many there are. The exit code is 1 where a check fails.
    """

    model: str
    """Scorer as WHERE names it: a model's folder, hub name or 'models:/NAME@ALIAS';
    'function:FILE.py:NAME', 'DIALECT+URL#MODEL', 'judge:FILE.yaml', 'combine:FILE.yaml' or
    'bandit:FILE.yaml', which are asked about a dozen responses; or 'replay:FILE'."""
    json: str = field(default="", metadata=NO_EFFECT)
    """File that the findings are written to, with their numbers."""
    trust_remote_code: bool = False
    """Run the model's own code where its layout is unknown."""
    out: str = field(default="", metadata=NO_EFFECT)
    """Folder of the findings and their page, as a run that trackers follow; empty: there is no
    run."""
    experiment: str = field(default="doctor", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""

    def __post_init__(self) -> None:
        check_address(self.model)
