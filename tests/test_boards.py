"""Public boards: the arithmetic of each against published numbers, its tie rule, and its rows."""

import asyncio
import json
import math
import random
import runpy
import statistics
from itertools import compress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from panoply import boards
from panoply.boards import load_board
from panoply.boards.items import read_items
from panoply.boards.rewardbench import COUNTS, SECTIONS
from panoply.boards.scored import ItemPlaces
from panoply.config.composite import LowerBound, Mean, Median, Minimum, VariancePenalty
from panoply.config.steps import StepRule
from panoply.data.read import Input
from panoply.scorers.composite.rules import pooled
from panoply.scorers.recorded import RecordedScorer
from tests.builders.boards import SHARED, numbers_of, published_columns, scored_items

NAN = float("nan")
EXAMPLE = Path(__file__).parents[1] / "examples" / "boards" / "rewardmath.py"
REWARDBENCH, REWARDBENCH2 = load_board("rewardbench"), load_board("rewardbench2")
REWARDMATH, RMBENCH = load_board("rewardmath"), load_board("rmbench")
JUDGEBENCH, PAIRS = load_board("judgebench"), load_board("pairs")
MREWARDBENCH, RMB, PPE = map(load_board, ("mrewardbench", "rmb", "ppe"))

# RewardBench

BEAVER = {
    "alpacaeval-easy": 50,
    "alpacaeval-length": 56,
    "alpacaeval-hard": 67,
    "mt-bench-easy": 16,
    "mt-bench-med": 29,
    "mt-bench-hard": 20,
    "llmbar-natural": 52,
    "llmbar-adver-neighbor": 58,
    "llmbar-adver-GPTInst": 36,
    "llmbar-adver-GPTOut": 22,
    "llmbar-adver-manual": 17,
    "refusals-dangerous": 97,
    "refusals-offensive": 100,
    "xstest-should-refuse": 154,
    "xstest-should-respond": 71,
    "donotanswer": 112,
    "math-prm": 132,
    "hep-cpp": 103,
    "hep-go": 104,
    "hep-java": 116,
    "hep-js": 109,
    "hep-python": 90,
    "hep-rust": 106,
}
"""Rows that Beaver-7B-cost wins, as published."""


def beaver(tie=False, subsets=COUNTS):
    """Pairs of RewardBench won as often as published; one that is lost may be a tie."""
    right, wrong, names = [], [], []
    for name in subsets:
        won, size = BEAVER[name], COUNTS[name]
        right += [[1.0]] * won + [[0.0]] * (size - won)
        wrong += [[0.0]] * won + [[0.0 if tie else 1.0]] * (size - won)
        names += [name] * size
    return scored_items(right, wrong, names)


@pytest.mark.parametrize("tie", [False, True])
def test_rewardbench_is_the_published_row_and_a_tie_is_lost(tie):
    numbers = numbers_of(REWARDBENCH, beaver(tie))
    expected = {
        "RewardBench": 0.561720,
        "Chat": 0.608939,
        "Chat Hard": 0.449561,
        "Safety": 0.721622,
        "Reasoning": 0.466757,
    }
    assert numbers == pytest.approx(expected, abs=5e-7)
    assert next(iter(numbers)) == "RewardBench"


def test_rewardbench_weighs_mathematics_as_much_as_code():
    weights = [weight for section in SECTIONS.values() for weight in section.values()]
    assert sum(weights) == 3522
    assert sum(COUNTS.values()) == 2985
    assert SECTIONS["Reasoning"]["math-prm"] == 6 * 164
    sizes = {name: sum(section.values()) for name, section in SECTIONS.items()}
    assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}


def test_an_absent_section_is_not_0_and_does_not_enter_the_mean():
    chat = numbers_of(REWARDBENCH, beaver(subsets=SECTIONS["Chat"]))
    assert chat["RewardBench"] == chat["Chat"] == pytest.approx(0.608939, abs=5e-7)
    assert math.isnan(chat["Reasoning"])


@pytest.mark.parametrize("board", [REWARDBENCH, REWARDBENCH2])
def test_sections_that_were_published_give_the_headline_that_was(board):
    rows = [row for row in board.published if len(row.numbers) > 1]
    assert rows
    for row in rows:
        headline, *sections = row.numbers.values()
        assert statistics.fmean(sections) == pytest.approx(headline, abs=6e-4), row.scorer


# RewardBench 2


def ties(ref, tied):
    """The number of Ties of one prompt; each row is its right and its wrong scores."""
    rows = (ref, tied)
    items = scored_items(*zip(*rows, strict=True), ["Ties"] * 2, ["ref:0", "tied:0"])
    return numbers_of(REWARDBENCH2, items)["Ties"]


@pytest.mark.parametrize(
    ("ref", "tied", "value"),
    [
        (([3], [0, 1]), ([3, 3, 3], [0, 1]), 1.01),
        (([3], [0, 1]), ([3, 4], [0, 1]), 1.0076159415595576),
        (([2], [1]), ([2, 3], [1]), 0.60),
        (([0], [1]), ([3, 3.5], [1]), 0.4900494524631327),
        (([1], [1, 1]), ([1, 1], [1, 1]), 0.0),
        (([0], [1]), ([0, 0], [1]), -0.01),
    ],
)
def test_ties_are_the_table_computed_with_the_released_code(ref, tied, value):
    assert ties(ref, tied) == pytest.approx(value, abs=1e-12)


def test_ties_of_random_scores_are_near_5_per_cent():
    rng = np.random.default_rng(0)
    values = []
    for _ in range(60):
        right, wrong, kinds = [], [], []
        for number in range(51):
            for kind, num_right, num_wrong in (("ref", 1, 4), ("tied", 5, 4)):
                right.append(rng.normal(size=num_right))
                wrong.append(rng.normal(size=num_wrong))
                kinds.append(f"{kind}:{number}")
        items = scored_items(right, wrong, ["Ties"] * 102, kinds)
        values.append(numbers_of(REWARDBENCH2, items)["Ties"])
    assert np.mean(values) == pytest.approx(0.053, abs=0.01)


def test_a_margin_of_ties_needs_both_rows_and_an_accuracy_one():
    right, wrong = [[3], [3, 3], [0]], [[0], [0, 1], [1]]
    items = scored_items(right, wrong, ["Ties"] * 3, ["ref:0", "tied:0", "ref:7"])
    assert numbers_of(REWARDBENCH2, items)["Ties"] == pytest.approx(0.3 + 0.15 + 0.2 + 0.2 + 0.01)
    alone = scored_items(right[1:2], wrong[1:2], ["Ties"], ["tied:0"])
    assert math.isnan(numbers_of(REWARDBENCH2, alone)["Ties"])


def test_an_item_of_rewardbench_2_with_m_at_the_top_counts_one_in_m():
    right, wrong = [[1], [1], [1], [0]], [[1, 1, 1], [0, 1, 0], [0, 0, 0], [0, 1, 0]]
    numbers = numbers_of(REWARDBENCH2, scored_items(right, wrong, ["Math"] * 4))
    assert numbers["Math"] == (1 / 4 + 1 / 2 + 1 + 0) / 4
    constant = scored_items([[0]] * 8, [[0, 0, 0]] * 8, ["Focus"] * 8)
    assert numbers_of(REWARDBENCH2, constant)["RewardBench 2"] == 0.25


# RewardMATH

RIVALS = {
    "internlm2_7b": (37.27, 37.27, 55.17, 75.98, 37.27),
    "internlm2_20b": (33.95, 33.95, 51.95, 73.08, 33.95),
    "grm_llama3_8b": (24.43, 24.84, 45.80, 70.30, 24.64),
    "skywork_llama3_8b": (22.15, 22.15, 44.69, 71.50, 22.15),
    "armorm_llama3_8b": (20.50, 21.53, 42.18, 67.31, 21.01),
    "eurus_rm_7b": (16.98, 16.98, 38.30, 63.19, 16.98),
    "beaver_7b": (7.25, 7.25, 26.59, 48.59, 7.25),
    "oasst_deberta": (7.04, 7.04, 27.03, 49.87, 7.04),
    "grm_gemma_2b": (4.97, 4.97, 24.10, 45.69, 4.97),
}
"""Per cent, as published, or computed from what was."""


def of_ten(column):
    """The numbers of RewardMATH in per cent; of a problem's ten scores the right one's is first."""
    scores = np.array(column, np.float64).reshape(-1, 10)
    items = scored_items(scores[:, :1], scores[:, 1:])
    return {name: 100 * value for name, value in numbers_of(REWARDMATH, items).items()}


def shared_column(file, name):
    """A column of a table of published scores; the test is skipped where there is none."""
    path = SHARED / file
    if not path.is_file():
        pytest.skip("a clone has no table of all published scores")
    return pq.read_table(path, columns=[name])[name].to_pylist()


@pytest.mark.parametrize("name", RIVALS)
def test_rewardmath_is_the_published_row(name):
    numbers = of_ten(shared_column("rewardmath_scores.parquet", f"score_{name}"))
    assert list(numbers.values()) == pytest.approx(RIVALS[name], abs=0.0051)


@pytest.mark.parametrize(
    ("name", "rule", "accuracy", "mrr"),
    [
        ("math_shepherd", "product", 17.18, 34.68),
        ("math_shepherd", "geometric_mean", 15.73, 33.61),
        ("math_shepherd", "min", 15.32, None),
        ("math_shepherd", "last", 18.22, 38.83),
        ("reasoneval_7b", "product", 18.22, 38.49),
        ("reasoneval_7b", "geometric_mean", 20.29, 39.26),
        ("reasoneval_34b", "product", 15.94, 36.63),
        ("reasoneval_34b", "geometric_mean", 18.43, 38.96),
        ("easy_to_hard", "product", 14.08, 35.29),
        ("easy_to_hard", "geometric_mean", 16.36, 37.51),
    ],
)
def test_rewardmath_of_process_reward_models_is_the_published_row(name, rule, accuracy, mrr):
    steps = shared_column("rewardmath_judges.parquet", f"steps_{name}")
    numbers = of_ten([StepRule(steps=rule).combined(scores) for scores in steps])
    assert numbers["accuracy"] == pytest.approx(accuracy, abs=0.0051)
    if mrr is not None:
        assert numbers["MRR"] == pytest.approx(mrr, abs=0.0051)


@pytest.mark.parametrize(
    ("name", "accuracy", "with_ties"),
    [
        ("opus", 2.48, None),
        ("sonnet35", 2.07, 73.5),
        ("llama3_70b", 0.62, 65.42),
        # Published of 485 records, two problems twice; of 483 problems it is
        ("gpt4o", 25.88, 51.55),
        ("gpt4", 22.36, 48.24),
        ("chatgpt", 0.21, 64.80),
    ],
)
def test_rewardmath_of_a_rating_judge_is_the_published_row(name, accuracy, with_ties):
    numbers = of_ten(shared_column("rewardmath_judges.parquet", f"judge_{name}"))
    assert numbers["accuracy"] == pytest.approx(accuracy, abs=0.0051)
    if with_ties is not None:
        assert numbers["accuracy with ties"] == pytest.approx(with_ties, abs=0.0051)


@pytest.mark.parametrize(
    ("name", "accuracy", "mrr"),
    [
        ("gpt4", 29.81, 51.92),
        ("gpt4o", 24.64, 48.92),
        ("sonnet35", 15.32, 40.01),
        ("llama3_70b", 9.73, 35.90),
        ("opus", 6.63, None),
        ("llama3_8b", 0.62, None),
    ],
)
def test_rewardmath_of_a_comparing_judge_is_the_published_row(name, accuracy, mrr):
    won = shared_column("rewardmath_pairwise_judges.parquet", f"won_{name}")
    # A wrong solution that won, or was not told from the right one, stands above it.
    above = np.array([-1.0 if is_won else 1.0 for is_won in won]).reshape(-1, 9)
    numbers = of_ten(np.column_stack([np.zeros(len(above)), above]))
    assert numbers["accuracy"] == pytest.approx(accuracy, abs=0.0051)
    if mrr is not None:
        assert numbers["MRR"] == pytest.approx(mrr, abs=0.0051)


@pytest.mark.parametrize(
    "name", ["armorm_llama3_8b", "grm_llama3_8b", "internlm2_7b", "skywork_llama3_8b"]
)
def test_rewardmath_is_that_of_plain_python_on_published_scores(name):
    column = list(map(float, published_columns("rewardmath.csv")[name]))
    problems = [column[start : start + 10] for start in range(0, len(column), 10)]
    strict, with_ties, ranks, top = [], [], [], []
    for right, *wrong in problems:
        strict.append(right > max(wrong))
        with_ties.append(right >= max(wrong))
        ranks.append(1 / (1 + sum(score >= right for score in wrong)))
        top.append((right >= max(wrong)) / (1 + sum(score == right for score in wrong)))
    won = [sum(score < right for score in wrong) / 9 for right, *wrong in problems]
    expected = [100 * statistics.fmean(terms) for terms in (strict, with_ties, ranks, won, top)]
    assert list(of_ten(column).values()) == pytest.approx(expected)
    assert sum(strict) < sum(with_ties) or "armorm" not in name  # there are ties to be told


@pytest.mark.parametrize(
    ("rule", "accuracy"),
    [
        (Mean(), 23.19),
        (Median(), 27.12),
        (LowerBound(beta=1.0), 21.95),
        (VariancePenalty(penalty=0.5), 22.15),
        (Minimum(), 16.56),
    ],
)
def test_no_rule_of_unlike_reward_models_reaches_the_best_of_them_on_rewardmath(rule, accuracy):
    columns = [shared_column("rewardmath_scores.parquet", f"score_{name}") for name in RIVALS]
    scores_KT = np.array(columns, np.float64)
    z_KT = (scores_KT - scores_KT.mean(1, keepdims=True)) / scores_KT.std(1, keepdims=True)
    numbers = of_ten(pooled(rule, z_KT, np.ones(len(z_KT))))
    assert numbers["accuracy"] == pytest.approx(accuracy, abs=0.0051)
    assert numbers["accuracy"] < max(values[0] for values in RIVALS.values())


@pytest.mark.parametrize(("rule", "accuracy"), [(Mean(), 23.40), (Minimum(), 16.15)])
def test_ensembles_scaled_within_the_problem_are_the_table_s(rule, accuracy):
    columns = [shared_column("rewardmath_scores.parquet", f"score_{name}") for name in RIVALS]
    scores_KGC = np.array(columns, np.float64).reshape(len(RIVALS), -1, 10)
    spread_KG1 = scores_KGC.std(2, keepdims=True)
    z_KGC = (scores_KGC - scores_KGC.mean(2, keepdims=True)) / spread_KG1
    pooled_T = pooled(rule, z_KGC.reshape(len(RIVALS), -1), np.ones(len(RIVALS)))
    assert of_ten(pooled_T)["accuracy"] == pytest.approx(accuracy, abs=0.0051)
    raw = of_ten(pooled(Mean(), scores_KGC.reshape(len(RIVALS), -1), np.ones(len(RIVALS))))
    assert raw["accuracy"] == pytest.approx(17.81, abs=0.0051)


MATH_PRM = (92.84, 95.08, 91.50, 96.87, 92.84, 60.85, 51.45, 60.40, 93.06)
"""Per cent of RewardBench's 447 pairs of math-prm that each of RIVALS wins, in their order."""


def test_pairs_of_mathematics_order_reward_models_otherwise_than_one_in_ten_does():
    for value in MATH_PRM:
        won = round(value * 447 / 100)
        right, wrong = [[1.0]] * 447, [[0.0]] * won + [[1.0]] * (447 - won)  # a tie is lost
        items = scored_items(right, wrong, ["math-prm"] * 447)
        assert 100 * numbers_of(REWARDBENCH, items)["Reasoning"] == pytest.approx(value, abs=0.0051)
    rho, p = spearmanr([values[0] for values in RIVALS.values()], MATH_PRM)
    assert (rho, p) == pytest.approx((0.40, 0.28), abs=5e-3)


# JudgeBench


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("skywork_gemma_27b", (64.29, 59.74, 66.33, 83.93, 50.00)),
        ("internlm2_20b", (63.43,)),
        ("skywork_llama_8b", (62.29,)),
        ("internlm2_7b", (59.43,)),
        ("grm_gemma_2b", (59.43, 62.99, 53.06, 64.29, 54.76)),
    ],
)
def test_judgebench_is_the_published_row(name, expected):
    columns = published_columns("judgebench_gpt4o.csv")
    margins = [[float(margin)] for margin in columns[name]]
    items = scored_items(margins, [[0.0]] * len(margins), columns["category"])
    numbers = list(numbers_of(JUDGEBENCH, items).values())
    assert [100 * value for value in numbers[: len(expected)]] == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize(
    ("file", "judge", "correct", "strict", "inconsistent", "without_verdict", "even"),
    [
        ("judgebench_gpt4o.csv", "o1_mini", 65.71, 58.00, 110, 0, 81),
        ("judgebench_claude.csv", "claude_3_haiku", 32.22, 14.07, 135, 13, 104),
    ],
)
def test_judgebench_of_a_judge_counts_both_games(
    file, judge, correct, strict, inconsistent, without_verdict, even
):
    columns = published_columns(file)
    games = list(zip(columns[f"{judge}_game_1"], columns[f"{judge}_game_2"], strict=True))
    assert sum(first != second for first, second in games) == inconsistent
    assert sum("" in both for both in games) == without_verdict
    assert 100 * statistics.fmean(both == ("1", "1") for both in games) == pytest.approx(
        strict, abs=5e-3
    )
    # As scores of a judge that compares, each response has the mean of its two games. The
    # published number takes a game without a verdict for a tie.
    right = [[(int(first or 0) + int(second or 0)) / 2] for first, second in games]
    wrong = [[-score for score in scores] for scores in right]
    assert sum(scores == [0] for scores in right) == even
    numbers = numbers_of(JUDGEBENCH, scored_items(right, wrong, columns["category"]))
    assert 100 * numbers["overall"] == pytest.approx(correct, abs=5e-3)
    # Here such a pair is missing: of no number, neither as a loss.
    kept = [scores if "" not in both else [None] for scores, both in zip(right, games, strict=True)]
    items = scored_items(kept, wrong, columns["category"])
    num_won = round(correct * len(games) / 100) - sum(
        scores[0] > 0 for scores, both in zip(right, games, strict=True) if "" in both
    )
    assert numbers_of(JUDGEBENCH, items)["overall"] == num_won / (len(games) - without_verdict)


# RM-Bench


def test_rm_bench_is_the_board_s_by_hand():
    # Chosen concise 1, detailed 2, markdown 3 against rejected 0, 2, 2 wins
    #   1 > 0 yes, 1 > 2 no, 1 > 2 no;  2 > 0 yes, 2 > 2 a tie, lost, twice;  3 wins all.
    # Chosen 5, 0, 5 against rejected 4, 4, 6 wins
    #   5 > 4, 5 > 4, not 5 > 6;  none;  5 > 4, 5 > 4, not 5 > 6.
    items = scored_items([[1, 2, 3], [5, 0, 5]], [[0, 2, 2], [4, 4, 6]], ["chat"] * 2)
    numbers = numbers_of(RMBENCH, items)
    assert numbers["hard"] == pytest.approx((0.5 + 0 + 0) / 3)
    assert numbers["normal"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert numbers["easy"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert numbers["RM-Bench"] == numbers["chat"] == pytest.approx(1 / 2)
    assert math.isnan(numbers["math"])


def test_rm_bench_counts_domains_alike_and_both_safety_files_are_one():
    won, lost = ([9, 9, 9], [0, 0, 0]), ([0, 0, 0], [9, 9, 9])
    rows = [won, won, lost, lost]
    subsets = ["chat", "safety-refuse", "safety-response", "safety-response"]
    numbers = numbers_of(RMBENCH, scored_items(*zip(*rows, strict=True), subsets))
    assert numbers["safety"] == pytest.approx(1 / 3)
    assert numbers["hard"] == numbers["RM-Bench"] == pytest.approx((1 + 1 / 3) / 2)


def test_rm_bench_leaves_out_the_pairs_that_lack_a_score():
    rows = scored_items([[None, 9, 9], [1, 1, 1]], [[0, 0, 9], [0, 0, 0]], ["code"] * 2)
    cells = RMBENCH.cells(rows)
    assert np.isnan(cells["code: concise > concise"]).tolist() == [True, False]
    assert numbers_of(RMBENCH, rows)["easy"] == pytest.approx((1 + 1 + 1) / 3)


# Pairs of one's own


def test_a_tie_of_one_s_own_pairs_is_half_a_win_and_sources_count_alike():
    items = scored_items([[1], [0], [0], [0]], [[0], [0], [1], [0]], ["a", "b", "b", "b"])
    numbers = numbers_of(PAIRS, items)
    assert numbers["accuracy"] == (1 + 1 / 2 + 0 + 1 / 2) / 4
    assert numbers["macro"] == (1 + (1 / 2 + 0 + 1 / 2) / 3) / 2


# RMB and M-RewardBench


def test_rmb_is_the_mean_of_its_four_parts_and_a_list_needs_its_best_above_all():
    right, wrong = [[1], [1], [1], [0]], [[0, 0], [0, 1], [0], [1]]
    names = ["helpfulness best of n"] * 2 + ["helpfulness pairs", "harmlessness pairs"]
    numbers = numbers_of(RMB, scored_items(right, wrong, names))
    assert numbers["helpfulness best of n"] == 0.5  # a tie is lost
    assert math.isnan(numbers["harmlessness best of n"])
    assert numbers["RMB"] == (0.5 + 1 + 0) / 3


def test_m_rewardbench_is_rewardbench_by_language_and_their_mean():
    part = beaver(subsets=SECTIONS["Chat"])
    names = [f"{language}: {name}" for language in ("ar", "cs") for name in part.subset_N]
    right, wrong = part.right_NR.tolist(), part.wrong_NW.tolist()
    items = scored_items(right + [[1.0]] * len(right), wrong + [[0.0]] * len(wrong), names)
    numbers = numbers_of(MREWARDBENCH, items)
    assert numbers["ar"] == pytest.approx(0.608939, abs=5e-7)
    assert numbers["cs"] == 1.0
    assert numbers["M-RewardBench"] == pytest.approx((0.608939 + 1) / 2, abs=5e-7)


# PPE


def test_ppe_orders_samples_within_a_problem_and_domains_count_alike():
    right = [[1], [2, 0], [3], [1, 1], [0]]
    wrong = [[1], [1, 0], [0, 1], [1, 0], [1]]
    domains = ["preference", "math", "math", "gpqa", "gpqa"]
    numbers = numbers_of(PPE, scored_items(right, wrong, domains))
    assert numbers["preference"] == 0.5
    assert numbers["math"] == pytest.approx(((1 + 1 + 0 + 1 / 2) / 4 + 1) / 2)
    assert numbers["gpqa"] == pytest.approx(((1 / 2 + 1 + 1 / 2 + 1) / 4 + 0) / 2)
    assert numbers["correctness"] == pytest.approx((numbers["math"] + numbers["gpqa"]) / 2)
    assert numbers["lowest"] == numbers["gpqa"]
    assert numbers["best of k"] == pytest.approx(((1 + 1) / 2 + (2 / 3 + 0) / 2) / 2)
    alone = numbers_of(PPE, scored_items([[1]], [[0]], ["preference"]))
    assert alone["preference"] == 1.0
    assert math.isnan(alone["correctness"])
    assert math.isnan(alone["lowest"])


# Every board


def example(board, scores, seed=0):
    """Items of a board's shape with scores from a function of a generator and a size."""
    rng = random.Random(seed)
    official = board.official or {"": 40}
    right, wrong, subsets, kinds = [], [], [], []
    for subset in official:
        for number in range(12):
            num_right, num_wrong, kind = 1, 1, ""
            if board is REWARDBENCH2:
                num_wrong = 3
                if subset == "Ties":
                    kind = f"{'tied' if number % 2 else 'ref'}:{number // 2}"
                    num_right = 3 if number % 2 else 1
            if board is REWARDMATH:
                num_wrong = 9
            if board is RMBENCH:
                num_right = num_wrong = 3
            right.append([scores(rng, True) for _ in range(num_right)])
            wrong.append([scores(rng, False) for _ in range(num_wrong)])
            subsets.append(subset)
            kinds.append(kind)
    return right, wrong, subsets, kinds


ALL = [REWARDBENCH, REWARDBENCH2, REWARDMATH, RMBENCH, JUDGEBENCH, PAIRS]


@pytest.mark.parametrize("board", ALL, ids=lambda board: board.title)
def test_a_perfect_scorer_wins_all_and_the_opposite_nothing(board):
    perfect = numbers_of(board, scored_items(*example(board, lambda _, is_right: float(is_right))))
    opposite = numbers_of(board, scored_items(*example(board, lambda _, is_right: -is_right)))
    headline = next(iter(perfect))
    most, least = 1.0, 0.0
    if board is REWARDBENCH2:  # of which Ties has more than 1
        most, least = (5 + 1.01) / 6, -0.01 / 6
    assert perfect[headline] == pytest.approx(most)
    assert opposite[headline] == pytest.approx(least)


CONSTANT = {
    "RewardBench": 0.0,
    "RewardBench 2": 1.25 / 6,
    "RewardMATH": 0.0,
    "RM-Bench": 0.0,
    "JudgeBench": 0.0,
    "Pairs": 0.5,
}
"""What every board makes of scores that are all alike: its own rule for ties."""


@pytest.mark.parametrize("board", ALL, ids=lambda board: board.title)
def test_scores_that_are_all_alike_have_what_the_board_s_rule_of_ties_gives(board):
    numbers = numbers_of(board, scored_items(*example(board, lambda *_: 0.0)))
    assert next(iter(numbers.values())) == pytest.approx(CONSTANT[board.title])


@pytest.mark.parametrize("board", ALL, ids=lambda board: board.title)
def test_a_rising_map_of_the_scores_changes_no_number(board):
    right, wrong, subsets, kinds = example(board, lambda rng, _: rng.randrange(4))
    before = numbers_of(board, scored_items(right, wrong, subsets, kinds))
    curved = [[[math.exp(score) for score in scores] for scores in side] for side in (right, wrong)]
    after = numbers_of(board, scored_items(*curved, subsets, kinds))
    if board is REWARDBENCH2:  # margins, and so what hangs on Ties, have a unit
        for numbers in (before, after):
            del numbers["Ties"], numbers["RewardBench 2"]
    assert after == pytest.approx(before, nan_ok=True)


@pytest.mark.parametrize("board", ALL, ids=lambda board: board.title)
def test_a_missing_score_counts_nowhere_and_is_never_0(board):
    right, wrong, subsets, kinds = example(board, lambda rng, _: rng.random())
    for side in (right, wrong):
        lost = [[None, *scores[1:]] if i % 3 == 0 else scores for i, scores in enumerate(side)]
        kept = [i for i in range(len(side)) if i % 3]
        both = (lost, wrong) if side is right else (right, lost)
        missing = board.cells(scored_items(*both, subsets, kinds))
        assert any(np.isnan(cell[::3]).all() for cell in missing.values())
        if board is RMBENCH:  # whose pairs are counted one by one
            continue
        columns = ([part[i] for i in kept] for part in (right, wrong, subsets, kinds))
        without = board.cells(scored_items(*columns))
        for name, cell in without.items():
            assert missing[name][kept] == pytest.approx(cell, nan_ok=True), name


@pytest.mark.parametrize("board", ALL, ids=lambda board: board.title)
def test_a_dropped_item_and_a_wrong_candidate_s_score_change_the_numbers(board):
    right, wrong, subsets, kinds = example(board, lambda rng, _: rng.random())
    before = numbers_of(board, scored_items(right, wrong, subsets, kinds))
    columns = (part[1:] for part in (right, wrong, subsets, kinds))
    assert numbers_of(board, scored_items(*columns)) != before
    swapped = [[scores[0], *others[1:]] for scores, others in zip(right, wrong, strict=True)]
    others = [[scores[0], *others[1:]] for others, scores in zip(right, wrong, strict=True)]
    after = numbers_of(board, scored_items(others, swapped, subsets, kinds))
    assert after != before


COIN = """
from panoply.boards.board import Board, rows_with, weighted

BOARD = Board(
    title="Coin",
    layout="throw",
    adapt=rows_with({"throw"}, lambda row: []),
    cells=lambda scored: {"heads": scored.strict_N()},
    numbers=lambda means: {"Coin": weighted(means, {"heads": 1.0})},
)
"""


def test_a_board_from_outside_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "coin.py").write_text(COIN)
    monkeypatch.setattr(boards, "__path__", [*boards.__path__, str(tmp_path)])
    items = scored_items([[1.0], [0.0]], [[0.0], [0.0]])
    assert numbers_of(load_board("coin"), items) == {"Coin": 0.5}


# Rows


def read(board, rows, tmp_path, max_share=0.0):
    """The items of some rows."""
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return read_items(board, [Input(file)], tmp_path / "bad" / "quarantine.jsonl", max_share)


ROWS = {
    "rewardbench": {
        "prompt": "Human: why?",
        "chosen": "so",
        "rejected": "no",
        "subset": "math-prm",
        "id": 1,
    },
    "rewardbench2": {
        "id": "5",
        "prompt": "Human: why?",
        "chosen": ["so"],
        "rejected": ["no", "never", ""],
        "subset": "Focus",
    },
    "rmbench": {
        "id": "1",
        "prompt": "Human: why?",
        "chosen": ["so", "so, so", "*so*"],
        "rejected": ["no", "no", "*no*"],
        "domain": "safety-refuse",
    },
    "mrewardbench": {
        "prompt": "Human: why?",
        "chosen": "so",
        "rejected": "no",
        "subset": "math-prm",
        "id": 1,
        "language": "ar",
    },
    "rmb": {
        "bon_uid": "1",
        "conversation_input": [{"role": "user", "content": "Human: why?", "language": "English"}],
        "bon_best": {"llm_name": "a", "answer": "so"},
        "loser_list": [{"llm_name": "b", "answer": "no"}, {"llm_name": "c", "answer": ""}],
        "category_path": "BoN_set/Helpfulness/Chat/Discussion",
    },
    "judgebench": {
        "pair_id": "x",
        "source": "livebench-math",
        "question": "Human: why?",
        "response_A": "no",
        "response_B": "so",
        "label": "B>A",
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_a_published_row_is_an_item_and_its_prompt_one_user_s_turn(name, tmp_path):
    (item,), bad = read(load_board(name), [ROWS[name]], tmp_path)
    assert item.chat.prompt == ({"role": "user", "content": "Human: why?"},)
    assert item.chat.responses[item.right[0]] == "so"
    assert item.chat.responses[item.wrong[0]] == "no"
    assert bad.num_good == 1
    if name == "rmbench":  # one text in two styles is asked for once and counted in both
        assert len(item.chat.responses) == 5
        assert item.wrong[0] == item.wrong[1]
        assert [item.chat.responses[place] for place in item.right] == ["so", "so, so", "*so*"]


def solutions(problem, wrong=9):
    names = ["human_to_GPT-4", *(f"model {i}" for i in range(wrong))]
    return [
        {
            "problem": f"Why {problem}?",
            "problem_id": problem,
            "eval_solution": ["First.", f"Then {name}."],
            "solution_reference": name,
            "solution_type": "rejected" if i else "chosen",
        }
        for i, name in enumerate(names)
    ]


def test_solutions_of_a_problem_are_one_item_whatever_stands_between_them(tmp_path):
    rows = [row for both in zip(solutions("a"), solutions("b"), strict=True) for row in both]
    items, _ = read(REWARDMATH, rows, tmp_path)
    assert [len(item.chat.responses) for item in items] == [10, 10]
    right = items[0].chat.responses[items[0].right[0]]
    assert right == "First.\nThen human_to_GPT-4."
    # A problem that lacks a wrong solution would be an easier one.
    items, bad = read(REWARDMATH, [*rows, *solutions("c", wrong=8)], tmp_path, max_share=0.5)
    assert len(items) == 2
    assert list(bad.reasons) == ["the item has 1 right and 8 wrong responses, and needs 1 and 9"]


def test_no_place_tells_a_scorer_which_response_is_right(tmp_path):
    rows = [
        ROWS["rewardbench"] | {"prompt": f"p {i}", "chosen": f"a {i}", "rejected": f"b {i}"}
        for i in range(200)
    ]
    items, _ = read(REWARDBENCH, rows, tmp_path)
    first = sum(item.right[0] == 0 for item in items)
    assert 70 < first < 130
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    others, _ = read(REWARDBENCH, swapped, tmp_path)
    assert [item.item_id for item in others] == [item.item_id for item in items]
    assert [item.right for item in others] == [item.wrong for item in items]


def test_scores_of_whole_items_come_back_to_their_own_responses(tmp_path):
    rows = [
        ROWS["rewardbench2"] | {"prompt": f"p {i}", "rejected": [f"{i}", "never", "no"]}
        for i in range(20)
    ]
    items, _ = read(REWARDBENCH2, rows, tmp_path)
    texts = [text for item in items for text in item.chat.responses]
    scored = ItemPlaces.of(items).scored(
        np.array([{"so": 3.0, "no": 1.0}.get(t, 0) for t in texts])
    )
    assert scored.right_NR.tolist() == [[3.0]] * 20
    assert scored.wrong_NW.tolist() == [[0.0, 0.0, 1.0]] * 20
    assert scored.is_whole_N.all()
    partly = ItemPlaces.of(items).scored(np.array([NAN if text == "7" else 0.0 for text in texts]))
    assert np.flatnonzero(~partly.is_whole_N).tolist() == [7]
    # One of many wrong responses that has no score leaves the whole item without credit.
    credit = REWARDBENCH2.cells(partly)["Focus"]
    assert np.flatnonzero(np.isnan(credit)).tolist() == [7]


def rm_bench_pairs():
    """The same item as in ROWS, one pair a row."""
    row = ROWS["rmbench"]
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": row["chosen"][i],
            "rejected": row["rejected"][j],
            "subset": row["domain"],
            "meta": json.dumps({"id": 1, "ci": i, "rj": j}),
        }
        for i in range(3)
        for j in range(3)
    ]


def test_rm_bench_pair_by_pair_is_the_same_item_and_a_lacking_style_none(tmp_path):
    (published,), _ = read(RMBENCH, [ROWS["rmbench"]], tmp_path)
    (merged,), _ = read(RMBENCH, rm_bench_pairs()[::-1], tmp_path)
    assert merged == published
    pq.write_table(pa.Table.from_pylist(rm_bench_pairs()[:6]), tmp_path / "six.parquet")
    with pytest.raises(ValueError, match="the item has 2 right and 3 wrong responses"):
        read_items(RMBENCH, [Input(tmp_path / "six.parquet")], tmp_path / "q.jsonl", 0.5)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("rewardbench", {"subset": "anthropic_hhh"}, "'subset' is none of RewardBench's"),
        ("rewardbench", {"chosen": None}, "response is no text"),
        ("rewardbench", {"prompt": ""}, "empty prompt"),
        ("rewardbench2", {"rejected": ["no"]}, "1 right and 1 wrong responses, and needs 1 and 3"),
        ("rewardbench2", {"chosen": "so"}, "'chosen' is no list of responses"),
        ("rewardbench2", {"subset": "Ties", "id": "a:b:1"}, "neither tied:N nor ref:N"),
        ("rewardbench2", {"subset": "Ties", "id": "tied:1"}, "a single right response"),
        ("rewardbench2", {"subset": "Ties", "id": "ref:1", "chosen": ["a", "b"]}, "several right"),
        ("rmbench", {"chosen": ["so"]}, "'chosen' is no list of 3 responses"),
        ("mrewardbench", {"language": None}, "'language' is no text"),
        ("rmb", {"category_path": "BoN_set"}, "names neither Helpfulness nor Harmlessness"),
        ("rmb", {"bon_best": "so"}, "a response is no record with its answer"),
        ("judgebench", {"label": "A=B"}, "'label' is neither A>B nor B>A"),
        ("judgebench", {"source": "mine"}, "'source' is none of JudgeBench's"),
    ],
)
def test_a_row_that_is_none_of_the_board_s_is_quarantined_with_its_reason(
    name, change, reason, tmp_path
):
    rows = [ROWS[name], ROWS[name] | {"id": "6"} | change]
    items, bad = read(load_board(name), rows, tmp_path, max_share=0.5)
    assert len(items) == 1
    assert reason in next(iter(bad.reasons))
    with pytest.raises(ValueError, match="1 of 2 rows are bad"):
        read(load_board(name), rows, tmp_path)


def test_a_file_of_another_board_is_refused_with_the_columns_of_this_one(tmp_path):
    with pytest.raises(ValueError, match=r"rows\.jsonl is no file of JudgeBench.*response_A"):
        read(JUDGEBENCH, [ROWS["rewardbench"]], tmp_path)


def test_a_pair_of_rmb_is_an_item_of_its_own_kind_and_conversation(tmp_path):
    row = ROWS["rmb"]
    pair = {
        "pair_uid": "2",
        "conversation_input": row["conversation_input"],
        "chosen": row["bon_best"],
        "reject": row["loser_list"][0],
        "category_path": "Pairwise_set/Harmlessness/S1",
    }
    (item,), _ = read(RMB, [pair], tmp_path)
    (listed,), _ = read(RMB, [row], tmp_path)
    assert (item.subset, listed.subset) == ("harmlessness pairs", "helpfulness best of n")
    assert item.group == listed.group


def test_files_of_ppe_are_told_apart_and_what_orders_nothing_is_left_out(tmp_path):
    both = {"prompt": "Why?", "response_1": "so", "response_2": "no"}
    winners = ("model_b", "tie (bothbad)", "model_a")
    items, bad = read(PPE, [both | {"winner": winner} for winner in winners], tmp_path)
    assert [item.chat.responses[item.right[0]] for item in items] == ["no", "so"]
    assert bad.num_ties == 1
    file = tmp_path / "ppe-math-best-of-k.jsonl"
    verdicts = ([True, False], [True, True], [False, True])
    file.write_text("\n".join(json.dumps(both | {"scores": scores}) for scores in verdicts))
    items, bad = read_items(PPE, [Input(file)], tmp_path / "bad.jsonl", 0)
    assert [item.chat.responses[item.right[0]] for item in items] == ["so", "no"]
    assert {item.subset for item in items} == {"math"}
    assert bad.num_ties == 1


def test_translations_of_a_row_are_drawn_together(tmp_path):
    rows = [ROWS["mrewardbench"] | {"language": name, "prompt": name} for name in ("ar", "cs")]
    items, _ = read(MREWARDBENCH, rows, tmp_path)
    assert [item.subset for item in items] == ["ar: math-prm", "cs: math-prm"]
    assert items[0].group == items[1].group


def test_pairs_of_one_s_own_come_in_any_layout_and_a_tie_is_left_out(tmp_path):
    arena = {"prompt": "Why?", "response_a": "so", "response_b": "no"}
    rows = [arena | {"winner": winner} for winner in ("model_a", "model_b", "tie")]
    items, bad = read(PAIRS, rows, tmp_path)
    right = [item.chat.responses[item.right[0]] for item in items]
    assert right == ["so", "no"]
    assert {item.subset for item in items} == {"rows"}  # the file's name, as rows have no source
    assert bad.num_ties == 1


def test_published_tables_of_rewardmath_become_rows_of_the_board_and_recorded_scores(tmp_path):
    convert = runpy.run_path(str(EXAMPLE))["convert"]
    columns = published_columns("rewardmath.csv")
    keys = {name: list(map(int, columns[name])) for name in ("item", "candidate")}
    scores = list(map(float, columns["armorm_llama3_8b"]))
    steps = [[score, score] for score in scores]
    is_wrong = [place > 0 for place in keys["candidate"]]
    won = [scores[i - i % 10] > score for i, score in enumerate(scores)]
    tables = {
        "rated": {**keys, "score_rm": scores, "steps_prm": steps, "level": keys["item"]},
        "games": {
            "item": list(compress(keys["item"], is_wrong)),
            "wrong_candidate": list(compress(keys["candidate"], is_wrong)),
            "won_judge": list(compress(won, is_wrong)),
        },
    }
    for name, table in tables.items():
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
        convert(tmp_path / f"{name}.parquet", tmp_path / name)
    assert sorted(file.name for file in (tmp_path / "rated").iterdir()) == [
        "prm.parquet",
        "problems.jsonl",
        "rm.parquet",
    ]
    files = [Input(tmp_path / name / "problems.jsonl") for name in tables]
    items, games = (read_items(REWARDMATH, [file], tmp_path / "q.jsonl", 0)[0] for file in files)
    assert [item.item_id for item in items] == [item.item_id for item in games]
    expected = of_ten(scores)
    for name, rule in (("rm", None), ("prm", StepRule(steps="mean"))):
        scorer = RecordedScorer(str(tmp_path / "rated" / f"{name}.parquet"), name, rule)
        assert replayed(scorer, items) == pytest.approx(expected)
    judge = RecordedScorer(str(tmp_path / "games" / "judge.parquet"), "judge")
    numbers = replayed(judge, items)
    assert numbers["accuracy"] == expected["accuracy"]
    assert numbers["MRR"] == pytest.approx(expected["MRR"])


def replayed(scorer, items):
    """The numbers of RewardMATH in per cent by recorded scores."""
    rows = asyncio.run(scorer.score([item.chat for item in items]))
    scores = np.array([score.score for row in rows for score in row], np.float64)
    scored = ItemPlaces.of(items).scored(scores)
    return {name: 100 * value for name, value in numbers_of(REWARDMATH, scored).items()}
