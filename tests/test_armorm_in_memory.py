"""ArmoRM in one process: fitted on arrays, saved, loaded, and wrong arrays refused."""

import inspect
from dataclasses import replace
from textwrap import dedent

import numpy as np
import pytest

from panoply.armorm import ArmoRM, fit
from panoply.config.armorm import ObjectivesConfig
from tests.builders.armorm_arrays import GATE, NAMES, planted_arrays


@pytest.fixture(scope="module")
def fitted():
    rated, compared, held_out = planted_arrays()
    return fit(rated, compared, NAMES, gate=GATE), held_out


def test_scores_order_pairs_that_were_held_out(fitted):
    model, (chosen, rejected, prompts) = fitted
    margins = model.score(chosen, prompts) - model.score(rejected, prompts)
    assert (margins > 0).mean() > 0.8
    assert np.logaddexp(0, -margins / model.temperature).mean() < 0.5


def test_a_saved_model_loads_with_the_same_scores(fitted, tmp_path):
    model, (chosen, _, prompts) = fitted
    model.save(tmp_path / "armorm.npz")
    again = ArmoRM.load(tmp_path / "armorm.npz")
    assert (again.objectives, again.gate) == (model.objectives, model.gate)
    assert again.temperature == model.temperature
    np.testing.assert_array_equal(again.score(chosen, prompts), model.score(chosen, prompts))


def test_the_same_seed_fits_the_same_model_and_another_seed_another(fitted):
    model, (chosen, _, prompts) = fitted
    rated, compared, _ = planted_arrays()
    again = fit(rated, compared, NAMES, gate=GATE)
    np.testing.assert_array_equal(again.score(chosen, prompts), model.score(chosen, prompts))
    other = fit(rated, compared, NAMES, gate=GATE, seed=1)
    assert not np.array_equal(other.score(chosen, prompts), model.score(chosen, prompts))


def test_a_rated_objective_may_stand_for_length():
    rated, compared, _ = planted_arrays()
    settings = ObjectivesConfig(verbosity="concise")
    model = fit(rated, compared, NAMES, objectives=settings, gate=GATE)
    np.testing.assert_allclose(model.head.length_weight, model.head.weight[1])
    with pytest.raises(ValueError, match=r"objectives\.verbosity.*'lengthy'.*helpful, concise"):
        fit(rated, compared, NAMES, objectives=replace(settings, verbosity="lengthy"))


@pytest.mark.parametrize(
    ("which", "changes", "message"),
    [
        ("rated", {"length_N": np.ones(3, np.int64)}, r"`length_N` has shape \(3,\).*\(600,\)"),
        ("compared", {"chosen_PF": np.ones((900, 3), np.float32)}, r"`chosen_PF`.*\(900, 12\)"),
        ("compared", {"prompts": ["one"]}, r"`compared.prompts`.*\(1,\)"),
        ("compared", {"prompts": ["one"] * 900}, "no pair falls into"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_is_fitted(which, changes, message):
    rated, compared, _ = planted_arrays()
    rows = {"rated": rated, "compared": compared}
    rows[which] = replace(rows[which], **changes)
    with pytest.raises(ValueError, match=message):
        fit(rows["rated"], rows["compared"], NAMES)


def test_the_example_of_the_documentation_runs():
    lines = inspect.getdoc(fit).splitlines()
    example = [line for line in lines if line.startswith("    ") or not line]
    first = next(i for i, line in enumerate(example) if "import numpy" in line)
    last = next(i for i, line in enumerate(example) if "model.score" in line)
    namespace = {}
    exec(dedent("\n".join(example[first : last + 1])), namespace)
    assert namespace["model"].objectives == ("helpful", "concise")
