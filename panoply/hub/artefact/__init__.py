"""Reward models as folders of ours; loading of any kind."""

from panoply.hub.artefact.load import load_reward_model

__all__ = ["load_reward_model"]
