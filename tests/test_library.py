"""The library as a user of Python meets it: one import, short descriptions, quiet loads."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

import panoply
from panoply import load_reward_model
from panoply.extras import check_installed
from tests.builders.models import PROMPT, RESPONSES, make_run, publish, save_small, small_classifier
from tests.builders.tokenizers import TURNS, byte_tokenizer

OTHER = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("published") / "m", byte_tokenizer(TURNS))


def test_the_package_has_a_version_and_types_and_imports_in_an_instant():
    code = "import panoply, sys; print(panoply.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, heavy = done.stdout.split()
    assert version == panoply.__version__
    assert version[0].isdigit()
    assert heavy == "False"
    assert (Path(panoply.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = panoply.nothing


def test_an_absent_library_names_the_command_that_installs_it():
    with pytest.raises(ModuleNotFoundError, match=r"a.b needs 'nonesuch'.*pip install '\S+\[hf\]'"):
        check_installed("a.b", ("json", "nonesuch"), "hf")


def test_a_model_and_an_explanation_describe_themselves_in_a_line(published, tmp_path):
    assert repr(load_reward_model(published)) == "<HeadModel 'm', linear, float32>"
    folder, _ = make_run(tmp_path / "run", byte_tokenizer(TURNS))
    model = load_reward_model(folder)
    line = repr(model)
    assert line == (
        "<GatedModel 'a/b', gated, float32, 2 objectives: editors-concise, preference|east>"
    )
    line = repr(model.explain(PROMPT, RESPONSES[0]))
    assert line.startswith("<Explanation of score ")
    assert "editors-concise" in line
    assert len(line) < 200


def test_a_rating_that_no_rater_could_have_given_is_marked_in_an_explanation(tmp_path):
    folder, _ = make_run(tmp_path / "run", byte_tokenizer(TURNS))
    model = load_reward_model(folder)
    scales = {"editors-concise": (1.0, 10.0), "preference|east": None}
    for bias, marked in ((0.5, set()), (3.0, {"editors-concise"})):
        model.head.weight.zero_()
        model.head.bias.fill_(bias)
        why = model.explain(PROMPT, RESPONSES[0])
        assert {driver.objective: driver.scale for driver in why.drivers} == scales
        assert {driver.objective for driver in why.drivers if driver.is_beyond_scale} == marked
        assert ("(rating 28 beyond its scale 1..10)" in repr(why)) == bool(marked)


def test_a_batch_over_prompts_gives_the_scores_of_each_prompt(published):
    model = load_reward_model(published)
    items = [(PROMPT, RESPONSES), (OTHER, RESPONSES[:1]), (PROMPT, RESPONSES[::-1])]
    batch = model.score_batch(items)
    for (prompt, responses), scores in zip(items, batch, strict=True):
        wanted = model.score(prompt, responses)
        assert scores.tolist() == pytest.approx(wanted.tolist(), rel=1e-5, abs=1e-5)
    assert model.score_batch([]) == []


def test_device_precision_and_revision_can_be_chosen_and_are_checked(published):
    model = load_reward_model(published, device="cpu", dtype="bfloat16")
    assert model.provenance["dtype"] == "bfloat16"
    assert model.head.weight.dtype == torch.float32
    assert (
        load_reward_model(published).provenance["dtype"] == "float32"
    )  # the choice was of one load
    for arguments, said in (
        ({"dtype": "float16"}, r"`dtype` must be one of .* got 'float16'"),
        ({"device": "abacus"}, "`device` must be one that torch knows, got 'abacus'"),
        ({"revision": "main"}, "`revision` is 'main', but .* is a local folder"),
    ):
        with pytest.raises(ValueError, match=said):
            load_reward_model(published, **arguments)


def test_a_name_of_a_registry_is_refused_with_the_way_to_its_folder():
    with pytest.raises(ValueError, match="mlflow artifacts download --artifact-uri models:/a@b"):
        load_reward_model("models:/a@b")


def test_loading_prints_nothing_and_leaves_the_settings_of_transformers(published, tmp_path, capfd):
    tokenizer = byte_tokenizer(TURNS)
    save_small(tmp_path / "ours", tokenizer)
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    capfd.readouterr()
    try:
        for folder in (published, tmp_path / "ours"):
            load_reward_model(folder)
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
    told = capfd.readouterr()
    assert told.out + told.err == ""


def test_every_file_of_a_saved_model_can_be_read_by_others(tmp_path):
    save_small(tmp_path / "ours", byte_tokenizer(TURNS))
    for file in (tmp_path / "ours").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o644, file.name


def test_a_longer_vocabulary_of_the_model_than_of_its_tokenizer_loads(tmp_path):
    folder = publish(tmp_path, byte_tokenizer(TURNS), small_classifier(vocab_size=400))
    assert len(load_reward_model(folder).score(PROMPT, RESPONSES)) == len(RESPONSES)
