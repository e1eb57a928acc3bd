"""The section about every model on every source."""

from __future__ import annotations

from panoply.report.results.pairs import BALANCED, INTERVAL
from panoply.report.section import Column, Metrics, Row, Section, Table, count, interval


def matrix(result: Metrics) -> Section:
    """Returns every model on every source, and its means over sources in and out of domain.

    Args:
        result: `matrix.json`.
    """
    sources: Metrics = result["sources"]
    rows: list[Row] = []
    for model, by_source in result["matrix"].items():
        trained_on = [i for i, source in enumerate(sources) if by_source[source]["trained_on"]]
        rows.append(Row(model, [by_source[s][BALANCED] for s in sources], starred=trained_on))
    left_out = f"{count(result['num_seen'])} of {count(result['num_pairs'])} pairs are left out"
    sizes = ", ".join(f"{source} {count(n)}" for source, n in sources.items())
    columns = [Column(source, heat=(0.5, 1.0)) for source in sources]
    title = "Length-balanced accuracy by source (*: trained on)"
    blocks = [
        Table(title, "model", columns, rows, file="matrix"),
        f"{left_out}: a model has seen their prompts. Pairs by source: {sizes}.",
        _means(result["means"]),
    ]
    return Section("matrix", "Every model on every source", "", blocks)


def _means(means: Metrics) -> Table:
    rows: list[Row] = []
    for model, entry in means.items():
        inside, outside, overall = entry["in_domain"], entry["out_of_domain"], entry["all"]
        accuracies = [inside.get(BALANCED), inside.get(INTERVAL)]
        accuracies += [outside.get(BALANCED), outside.get(INTERVAL)]
        sureness = [overall[key] for key in ("log_loss", "ece", "ece_floor")]
        rows.append(Row(model, [*accuracies, *sureness]))
    columns = [
        Column("in domain"),
        Column("95 %", interval),
        Column("out of domain"),
        Column("95 %", interval),
        Column("log loss"),
        Column("ECE"),
        Column("ECE by chance"),
    ]
    title = "Means over sources: length-balanced accuracy; log loss and ECE over all"
    return Table(title, "model", columns, rows)
