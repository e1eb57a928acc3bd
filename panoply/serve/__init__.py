"""Arms that hold no model of ours: functions in plain Python, and endpoints of other servers."""
