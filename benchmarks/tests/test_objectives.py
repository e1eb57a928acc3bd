"""The stage-1 benchmark compares equal solutions."""

from benchmarks.objectives import compare, make_sources, ours, penalty, per_objective, stream
from panoply.measure.metrics import largest_relative_error


def test_both_sides_choose_the_same_strengths_and_weights():
    sources = make_sources(rows=900, size=6, objectives=5, sources=3)
    assert [source.pattern for source in sources] == [(0, 3), (1, 4), (2,)]
    figures = compare(sources, repeats=1)
    assert all(found["weights_relative_error"] < 1e-9 for found in figures.values())
    own = ours(sources)
    penalties = [(penalty(s.x_ND[: s.cut]), penalty(s.x_ND)) for s in sources]
    rival = per_objective(sources, penalties)
    assert largest_relative_error(own.bias, rival.bias) < 1e-9


def test_streaming_counts_its_own_memory_and_seconds():
    sums, rest, mib = stream(rows=200, size=6, objectives=3, sources=2)
    assert sums > 0
    assert rest > 0
    assert mib > 10
