"""Everything that scores and is no local model, and WHERE, the grammar that names it."""

from panoply.extras import check_installed

check_installed("panoply.scorers", ("httpx2", "pydantic"), "wire")
