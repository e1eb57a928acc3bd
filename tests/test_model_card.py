"""Model cards: names of data are text in them, never headings, table rows or HTML."""

import re

from panoply.hub.artefact.model_card import scalar_card
from tests.builders.models import METRICS, small_card

HOSTILE = "east\n# Free\n| ours | 0.999 |\n<script>alert(1)</script> [x](http://x) `y`"


def test_names_of_data_open_no_markup_in_a_model_card():
    entry = {"id": "p" * 8, "rows": 20, "by_source": {HOSTILE: 20}}
    card = small_card(
        sources=(HOSTILE,),
        backbone=HOSTILE,
        data={HOSTILE: entry},
        method={"loss": HOSTILE, "weights": {HOSTILE: 1.0}},
    )
    text = scalar_card(card, {"pairs": {HOSTILE: METRICS["pairs"]["gate"]}})
    assert "alert(1)" in text
    plain = re.sub(r"```.*?```", "", text, flags=re.S)
    assert not re.search(r"(?<!\\)<script", plain)
    assert not re.search(r"^# Free|^\| ours", plain, flags=re.M)
    assert not re.search(r"(?<!\\)\[x", plain)
    assert "base_model" not in text
