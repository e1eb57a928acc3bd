"""Settings of the members of an ensemble: reward models of one recipe, unlike by their seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, assert_never

if TYPE_CHECKING:
    from panoply.config.composite import PooledRule

MemberKind: TypeAlias = Literal["heads", "adapters", "layers"]
MemberRule: TypeAlias = Literal["mean", "lcb", "uwo", "wco"]


def pooled_rule(rule: MemberRule, caution: float) -> PooledRule:
    """Returns the rule of a composite that makes one score of the members'.

    Args:
        rule: name of the rule.
        caution: deviations (lcb) or variances (uwo) that are taken off the mean.
    """
    # Composites need pydantic, which a fit in one process does without.
    from panoply.config.composite import LowerBound, Mean, Minimum, VariancePenalty

    match rule:
        case "mean":
            return Mean()
        case "lcb":
            return LowerBound(beta=caution)
        case "uwo":
            return VariancePenalty(penalty=caution)
        case "wco":
            return Minimum()
        case _:
            assert_never(rule)
