"""Examine a reward model or a judge: `python -m jobs.doctor MODEL`."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from jobs._main import run_function


def main(
    model: Annotated[str, tyro.conf.Positional],
    /,
    json: str = "",
    trust_remote_code: bool = False,
) -> None:
    """Checks what a scorer reads and what moves its scores, and says what to do about it.

    Of a reward model: template and its date, BOS, padding, which token is scored, alone against
    batches and token trees, bfloat16 against float32, truncation, speed, and the scores of plain
    transformers. Of a judge: verdicts, order, cost, and instructions in a response. Of a
    composite: whether each part answers, and what comes of them. The exit code is 1 where a check
    fails.

    Args:
        model: a folder of ours, a published model's folder, or a hub name 'owner/name'; or
            'judge:FILE.yaml' or 'combine:FILE.yaml', a judge or a composite, which is asked about a
            dozen responses to small questions.
        json: file that the findings are written to, with their numbers.
        trust_remote_code: run the model's own code where its layout is unknown.
    """
    # Torch loads only now, after the arguments are known to be right.
    from panoply.hub.backbone.pretrained import silence_libraries
    from panoply.report.progress import Terminal, exit_if_unusable
    from workflows.doctor import findings_table, run_doctor

    console = Terminal()
    silence_libraries()
    with exit_if_unusable(console):
        findings = run_doctor(model, json, trust_remote_code=trust_remote_code)
    console.print(findings_table(findings))
    verdicts = [finding.verdict for finding in findings]
    num_failed, num_warned = verdicts.count("fail"), verdicts.count("warning")
    console.print(
        f"{len(findings)} checks, {num_warned} warnings, {num_failed} failed", markup=False
    )
    if num_failed:
        sys.exit(1)


if __name__ == "__main__":
    run_function("doctor", main)
