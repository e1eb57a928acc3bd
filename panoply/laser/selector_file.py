"""Settings of the selector that wrote a log, `selector.json`, in today's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panoply.bandit.bandits import recorded_bandit
from panoply.config import as_dict
from panoply.config.bandit import SelectorConfig, SignalConfig
from panoply.files import reading
from panoply.records import Records, open_records

SELECTOR_FILE = "selector.json"
BANDIT_KINDS_V1 = {"linucb": "lin-ucb", "epsilon_greedy": "epsilon-greedy", "fixed": "fixed-arm"}
BANDIT_SETTINGS_V1 = {
    "name": "kind",
    "first_pulls": "min_pulls",
    "noise": "reward_std",
    "strength": "prior_precision",
    "span": "period",
}
"""Words of version 1 of `selector.json`, which has a `policy` where later ones have a `bandit`."""


def read_settings(records: Records) -> dict[str, Any]:
    """Returns the content of a log's `selector.json` in today's words."""
    content = records.read(SELECTOR_FILE)
    if content is None:
        raise FileNotFoundError(f"{records.where!r} is no log of a selector: no {SELECTOR_FILE}")
    with reading(Path(records.where) / SELECTOR_FILE, "start anew in another folder"):
        return _in_todays_words(json.loads(content))


def recorded_selector(uri: str) -> tuple[SelectorConfig, tuple[str, ...], int]:
    """Returns the configuration of the selector that wrote a log, its arms, and H.

    Raises:
        OSError: there is no log.
        ValueError: its bandit is none of today's.
    """
    record = read_settings(open_records(uri))
    arms, num_features = tuple(record.pop("arms")), record.pop("num_features")
    for name in ("prior", "context"):
        record.pop(name, None)
    record["bandit"] = recorded_bandit(record["bandit"])
    record["signal"] = SignalConfig(**record["signal"])
    record["costs"] = tuple(record["costs"])
    return SelectorConfig(**record), arms, num_features


def _in_todays_words(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a `selector.json` as it is written today, whenever it was written."""
    renamed = dict(record)
    if "policy" not in record:
        return renamed
    # Version 1 had one class for all bandits, with a null for each setting that was not changed.
    policy: dict[str, Any] = renamed.pop("policy")
    settings: dict[str, Any] = {}
    for name, value in policy.items():
        if value is not None:
            settings[BANDIT_SETTINGS_V1.get(name, name)] = value
    settings["kind"] = BANDIT_KINDS_V1.get(settings["kind"], settings["kind"])
    signal = dict(renamed["signal"])
    signal["min_history"] = signal.pop("wait")
    if signal["name"] == "probe":
        signal["name"] = "gold_margin"
    renamed["bandit"], renamed["signal"] = as_dict(recorded_bandit(settings)), signal
    renamed["suspend_rounds"] = renamed.pop("sideline_rounds")
    return renamed
