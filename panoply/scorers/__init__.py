"""Scorers that are no local model: functions, other servers, recorded scores."""
