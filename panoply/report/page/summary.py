"""The top of a run's page: the verdict as a sentence, and the key figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from panoply.report.page.charts import given
from panoply.report.tables import BALANCED, INTERVAL, LEADS, interval, lead, number, ranked

Section: TypeAlias = Mapping[str, Any]

SCORERS = {
    "oracle": "the planted weights themselves: the best that any gate can do",
    "gate": "objectives weighed by what the prompt asks for",
    "gate_mean": "the gate's mean weights, the same for every prompt",
    "gate_source_mean": "the gate's mean weights within each source",
    "uniform": "every objective counts the same",
    "best_single": "the one best objective, chosen on the select part",
    "best_fixed": "the best weights that do not depend on the prompt",
    "best_fixed_per_source": "the best fixed weights of each source, told which source it is",
    "linear": "signed weights on the objectives",
    "linear_bt": "a linear Bradley-Terry head on the features, without objectives",
    "mlp": "a Bradley-Terry network on the features, without objectives",
    "score": "the scalar model's score; of an ensemble, the mean of its standardized members",
    "score_raw": "the score with its margins as trained, without the temperature",
    "mixed": "plain mixing of the sources: same pairs, steps and rates, without MORE's weights",
    "mixed_raw": "plain mixing with its margins as trained, without the temperature",
    "lower_bound": "the score less the deviation between the members of the ensemble",
}
"""What each scorer is, for a reader who meets the names for the first time."""


class Figure(NamedTuple):
    """A number that a reader looks for first."""

    name: str
    value: str
    note: str


def words(name: str) -> str:
    """Returns the name of a scorer in words."""
    return name.replace("_", " ")


def verdict(metrics: Section) -> str:
    """Returns whether the gate beats the strongest it is compared with; '' where none is known.

    Its own mean weights are no rivals.
    """
    pairs, comparisons = metrics.get("pairs", {}), metrics.get("comparisons", {})
    compared = (name for name in ranked(pairs) if f"gate - {name}" in comparisons)
    rival = next((name for name in compared if not name.startswith("gate_")), None)
    if rival is None:
        return ""
    found = comparisons[f"gate - {rival}"]
    ends = given(found.get("ci95") or ())
    outcome = "cannot be told apart from"
    if len(ends) == 2 and (ends[0] > 0 or ends[1] < 0):
        outcome = "beats" if ends[0] > 0 else "loses to"
    difference = number(found.get("value"), signed=True)
    return (
        f"On held-out pairs the gate {outcome} the strongest scorer it is compared with, "
        f"{words(rival)}: {difference} {interval(found.get('ci95'), signed=True)} "
        "in length-balanced accuracy."
    )


def figures(metrics: Section) -> list[Figure]:
    """Returns the key figures that a run has."""
    shown: list[Figure] = []
    pairs: Section = metrics.get("pairs", {})
    if pairs.keys() & set(LEADS):
        chief = lead(pairs)
        found, macro = pairs[chief], pairs[chief].get("macro", {})
        note = f"of the {chief}; 95 % {interval(macro.get(INTERVAL))}"
        shown.append(Figure("Length-balanced accuracy", number(macro.get(BALANCED)), note))
        note = f"of the {chief}; {number(found.get('ece_floor'))} is chance at this size"
        shown.append(Figure("Calibration error", number(found.get("ece")), note))
    if debias := metrics.get("debias"):
        left = number((debias.get("heldout") or {}).get("max_abs_spearman"))
        before = number(debias.get("max_abs_spearman_before"))
        note = f"largest correlation of an objective, held out; before {before} in sample"
        shown.append(Figure("Length left", left, note))
    if objectives := metrics.get("objectives"):
        signal = sum(found.get("signal") is not False for found in objectives.values())
        note = "can be predicted on held-out ratings"
        shown.append(Figure("Objectives with signal", f"{signal} of {len(objectives)}", note))
    if planted := metrics.get("planted"):
        note = "0: best fixed weights, 1: oracle"
        shown.append(Figure("Planted gain recovered", number(planted.get("recovered"), 2), note))
    return shown
