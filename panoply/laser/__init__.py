"""LASeR's rounds: decisions, signals, rewards, the log and its alarms."""
