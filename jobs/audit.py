"""Look for wrong labels in pairs: `python -m jobs.audit --pairs FILE... --out DIR`."""

from __future__ import annotations

from typing import Any

from jobs._main import parse_settings, run_workflow
from panoply.config.audit import AuditConfig
from panoply.report.progress import RunLogger, Terminal


def main() -> None:
    """Parses the settings, audits the pairs, and prints what was found."""
    config = parse_settings("audit", AuditConfig)
    metrics = run_workflow(run, config)
    from panoply.report.report import print_summary

    console = Terminal()
    print_summary(metrics, console)
    console.print(f"results: {config.out}, and as a page in {config.out}/report.html")
    console.print(f"pairs to judge: open {config.out}/review.html", soft_wrap=True)
    console.print(f"cleaned pairs: {config.out}/clean.parquet", soft_wrap=True)


def run(config: AuditConfig, logger: RunLogger) -> dict[str, Any]:
    """Audits. Ray and torch load only now, after the inputs were looked at."""
    from workflows.audit import run_audit

    return run_audit(config, logger)


if __name__ == "__main__":
    main()
