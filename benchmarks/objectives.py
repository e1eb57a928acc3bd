"""Stage 1 beside scikit-learn: `python -m benchmarks.objectives --json FILE`.

Every objective is rated in exactly one of several equal sources. Both sides fit every strength on
80 % of an objective's rows, take the one with the least error on the other 20 %, and fit that one
again on all of them: float64, one thread, free intercept, the same absolute penalty. Seconds are
CPU seconds of that thread, so that other work on the machine does not count.

`ridge_vs_sklearn`: ArmoRM's loop, one scikit-learn Ridge per objective and strength.
`ridge_vs_multitarget`: the best of scikit-learn, one Ridge per source and strength with the
source's objectives as columns.
`sums_per_row`: seconds of a row's sums at several sizes over those at the smallest: 1 is linear.
What follows the sums does not depend on rows; its seconds stand beside it.
`peak_memory`: the same for the peak memory of a process that streams its rows in blocks.

Shapes: N rows, D hidden size, O objectives, P objectives of one source, S strengths.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import harness
from benchmarks.harness import over_repeats, print_figures, run, setting, settings_of, write_figures
from panoply.armorm.ridge import (
    Moments,
    Pattern,
    Ridge,
    choose,
    fit_ridge,
    merge,
    moments,
    refit_ridge,
    squared_error,
)
from panoply.measure.metrics import largest_relative_error
from panoply.types import Array

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
TRAIN_SHARE = 0.8
BLOCK_ROWS = 4096
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one source, and the objectives that it rates."""

    pattern: Pattern
    x_ND: Array
    y_NP: Array

    @property
    def cut(self) -> int:
        """Rows to fit on; those behind it are chosen on."""
        return int(TRAIN_SHARE * len(self.x_ND))


def make_sources(rows: int, size: int, objectives: int, sources: int) -> list[Source]:
    """Returns rated rows: linear objectives of unequal noise, features of unequal variance."""
    rng, scale_D = np.random.default_rng(0), np.geomspace(1, 0.05, size)
    made: list[Source] = []
    for k in range(sources):
        pattern = tuple(range(k, objectives, sources))
        x = rng.standard_normal((rows // sources, size)) * scale_D + 0.3
        signal = x @ (rng.standard_normal((size, len(pattern))) / np.sqrt(size))
        noise = 10.0 ** rng.uniform(-1, 1, len(pattern))
        made.append(Source(pattern, x, signal + noise * rng.standard_normal(signal.shape)))
    return made


def ours(sources: Sequence[Source]) -> Ridge:
    """Sums of both parts, then every strength of every objective at once."""
    fit_on: dict[Pattern, Moments] = {}
    choose_on: dict[Pattern, Moments] = {}
    for s in sources:
        fit_on[s.pattern] = moments(s.x_ND[: s.cut], s.y_NP[: s.cut])
        choose_on[s.pattern] = moments(s.x_ND[s.cut :], s.y_NP[s.cut :])
    return solve(fit_on, choose_on, sum(len(s.pattern) for s in sources))


def solve(fit_on: dict[Pattern, Moments], choose_on: dict[Pattern, Moments], num: int) -> Ridge:
    """Chooses strengths, then fits them on all rows."""
    path = fit_ridge(fit_on, num, STRENGTHS)
    chosen = choose(path, squared_error(path, choose_on))
    return refit_ridge(merge([fit_on, choose_on]), chosen, STRENGTHS)


def penalty(x_ND: Array) -> float:
    """Returns n v, which takes our relative strength to scikit-learn's absolute one (untimed)."""
    return float(x_ND.var(0).sum() * len(x_ND) / x_ND.shape[1])


def per_objective(sources: Sequence[Source], penalties: Sequence[tuple[float, float]]) -> Ridge:
    """ArmoRM's loop: objective by objective, strength by strength."""
    single = [
        (Source((i,), s.x_ND, s.y_NP[:, [at]]), found)
        for s, found in zip(sources, penalties, strict=True)
        for at, i in enumerate(s.pattern)
    ]
    return per_source([source for source, _ in single], [found for _, found in single])


def per_source(sources: Sequence[Source], penalties: Sequence[tuple[float, float]]) -> Ridge:
    """One scikit-learn Ridge per source and strength."""
    from sklearn.linear_model import Ridge as Estimator

    num, size = sum(len(s.pattern) for s in sources), sources[0].x_ND.shape[1]
    weights, bias, strength = np.empty((num, size)), np.empty(num), np.empty(num, np.int64)
    for s, (on_part, on_all) in zip(sources, penalties, strict=True):
        errors: list[Array] = []
        y = s.y_NP[:, 0] if len(s.pattern) == 1 else s.y_NP  # predictions of one column are [N]
        for alpha in STRENGTHS:
            model = Estimator(alpha=alpha * on_part).fit(s.x_ND[: s.cut], y[: s.cut])
            missed = model.predict(s.x_ND[s.cut :]) - y[s.cut :]
            errors.append(np.atleast_1d(np.square(missed).mean(0)))
        best_P = np.argmin(errors, axis=0)
        alphas = np.take(STRENGTHS, best_P) * on_all
        model = Estimator(alpha=alphas).fit(s.x_ND, y)
        at = list(s.pattern)
        weights[at], bias[at], strength[at] = model.coef_, model.intercept_, best_P
    return Ridge(weights, bias, strength)


def timed(run: Callable[[], Ridge]) -> tuple[float, Ridge]:
    """Returns the CPU seconds of a run and what it gave."""
    start, found = time.process_time(), run()
    return time.process_time() - start, found


def stream(rows: int, size: int, objectives: int, sources: int) -> tuple[float, float, float]:
    """Stage 1 on rows that are never in memory together.

    Returns:
        Seconds of the sums (making the rows is not counted), seconds of the rest, peak MiB.
    """
    fit_on: dict[Pattern, Moments] = {}
    choose_on: dict[Pattern, Moments] = {}
    seconds = 0.0
    threadpool_limits(1)
    rng = np.random.default_rng(0)
    for k in range(sources):
        pattern = tuple(range(k, objectives, sources))
        for first in range(0, rows // sources, BLOCK_ROWS):
            count = min(BLOCK_ROWS, rows // sources - first)
            x = rng.standard_normal((count, size))
            y = rng.standard_normal((count, len(pattern)))
            start, cut = time.process_time(), int(TRAIN_SHARE * count)
            fit_on = merge([fit_on, {pattern: moments(x[:cut], y[:cut])}])
            choose_on = merge([choose_on, {pattern: moments(x[cut:], y[cut:])}])
            seconds += time.process_time() - start
    start = time.process_time()
    solve(fit_on, choose_on, objectives)
    return seconds, time.process_time() - start, peak_mib()


def peak_mib() -> float:
    """Returns the peak memory of this process; `ru_maxrss` would count its parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def compare(sources: Sequence[Source], repeats: int) -> dict[str, Any]:
    """Times the three side by side.

    Raises:
        RuntimeError: they disagree, so that their times say nothing.
    """
    penalties = [(penalty(s.x_ND[: s.cut]), penalty(s.x_ND)) for s in sources]
    rivals = {"ridge_vs_sklearn": per_objective, "ridge_vs_multitarget": per_source}
    ratios: dict[str, list[float]] = {name: [] for name in rivals}
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *rivals)}
    error: dict[str, float] = {}
    for _ in range(repeats):
        own_seconds, own = timed(lambda: ours(sources))
        seconds["ours"].append(own_seconds)
        for name, rival in rivals.items():
            rival_seconds, found = timed(lambda rival=rival: rival(sources, penalties))
            error[name] = largest_relative_error(own.weights, found.weights)
            if not (error[name] <= TOLERANCE and (own.strength == found.strength).all()):
                raise RuntimeError(
                    f"{name}: weights differ by {error[name]:.1e} (allowed {TOLERANCE:g}), "
                    f"strengths are {own.strength.tolist()} and {found.strength.tolist()}"
                )
            seconds[name].append(rival_seconds)
            ratios[name].append(rival_seconds / own_seconds)
    return {
        name: over_repeats(
            ratios[name],
            seconds=seconds[name],
            seconds_ours=seconds["ours"],
            weights_relative_error=error[name],
        )
        for name in rivals
    }


def scaling(rows: Sequence[int], size: int, objectives: int, sources: int) -> dict[str, Any]:
    """Measures cost and peak memory against rows, each size in a process of its own."""
    spawn = multiprocessing.get_context("spawn")  # so that the rows of `compare` are not its own
    found: list[tuple[float, float, float]] = []
    for num in rows:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            found.append(pool.submit(stream, num, size, objectives, sources).result())
    sums, rest, mib = map(list, zip(*found, strict=True))
    each = [seconds / num for num, seconds in zip(rows, sums, strict=True)]
    more = {"rows": list(rows), "seconds": sums, "seconds_of_the_rest": rest}
    return {
        "sums_per_row": over_repeats([cost / each[0] for cost in each[1:]], **more),
        "peak_memory": over_repeats([m / mib[0] for m in mib[1:]], rows=list(rows), mib=mib),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Sizes of the comparison."""

    rows: int = 100_000
    """Rated rows over all sources; scaling is measured at 1/2, 1, 2 and 4 times these."""
    hidden_size: int = 576
    """Features of a row."""
    objectives: int = 19
    """Objectives over all sources."""
    sources: int = 8
    """Equal sources."""
    repeats: int = 3
    """Interleaved repeats of each side."""


def main(options: Options) -> None:
    """Runs the benchmark and prints a table."""
    import scipy
    import sklearn

    threadpool_limits(1)
    shape = options.hidden_size, options.objectives, options.sources
    made = make_sources(options.rows, *shape)
    figures = compare(made, options.repeats)
    del made
    figures |= scaling([options.rows * n // 2 for n in (1, 2, 4, 8)], *shape)
    figures["setting"] = setting(
        *(np, scipy, sklearn),
        threads=1,
        dtype="float64",
        strengths=list(STRENGTHS),
        **settings_of(options),
    )
    write_figures(options.json, figures)
    notes = {
        "ridge_vs_sklearn": "bar: >= 12",
        "ridge_vs_multitarget": "the best simple rival",
        "sums_per_row": "1 is linear",
        "peak_memory": "1 is flat",
    }
    print_figures(figures, ("ratio", "min", "max"), notes)


if __name__ == "__main__":
    run(main, Options)
