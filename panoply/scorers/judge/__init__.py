"""A language model that is asked for verdicts, as a scorer: `judge:FILE.yaml`."""

from panoply.extras import check_installed

check_installed("`judge:FILE.yaml`", ("jinja2", "openai", "yaml"), "judge")
