"""A page on which a person judges audited pairs by keyboard, blind to their labels.

One file that is opened from disk: its rows are data in it, it asks nobody for anything, and what it
saves is a file of verdicts (`panoply.data.audit_verdicts`). The better response stands first or
second by the hash of its text, and neither labels, scores nor findings are in the file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from panoply.data.audit import ACTIONS, AuditFinding, proposed
from panoply.files import write_whole

MOST_PAIRS = 300
"""Pairs of a page: what a person judges in an afternoon."""


def write_review(
    rows: Iterable[Mapping[str, Any]], findings: Iterable[AuditFinding], target: Path
) -> int:
    """Writes the page of the pairs with the strongest proposals; returns their number.

    Args:
        rows: canonical pairs.
        findings: of the audit, of one action the more telling first; rows without one are not
            shown.
        target: the file.
    """
    actions = proposed(findings)
    ranked = sorted(actions, key=lambda row_id: ACTIONS.index(actions[row_id]))
    places = {row_id: place for place, row_id in enumerate(ranked[:MOST_PAIRS])}
    shown = [_shown(row) for row in rows if row["row_id"] in places]
    shown.sort(key=lambda row: places[row["row_id"]])
    write_whole(target, render_review(shown))
    return len(shown)


def render_review(shown: list[dict[str, Any]]) -> str:
    """Returns the page as HTML; no text of a row can become markup or code."""
    folder = Path(__file__).parent
    script = (folder / "review.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # ASCII alone, and no "<": a text ends neither the element nor the encoding.
    data = json.dumps(shown).replace("<", "\\u003c")
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("review.html.jinja").render(
        num=len(shown), digest=digest, script=Markup(script), data=Markup(data)
    )


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    responses = sorted(
        ({"id": row[f"{side}_id"], "text": row[side]} for side in ("chosen", "rejected")),
        key=lambda response: response["id"],
    )
    prompt = [{"role": turn["role"], "content": turn["content"]} for turn in row["prompt"]]
    return {"row_id": row["row_id"], "prompt": prompt, "responses": responses}
