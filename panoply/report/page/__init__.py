"""A finished run as one page that needs nothing else: `OUT/report.html`.

`write.py` reads the run's files and fills `report.html.jinja`; `summary`, `scorers`, `objectives`,
`training`, `strategies` and `choices` turn sections of `metrics.json` into the tables and curves
that `charts` describes.
"""
