"""Composites: several scorers in one, by a rule that a file names."""

from panoply.extras import check_installed

check_installed("`combine:FILE.yaml`", ("yaml",), "judge")
