"""Averages of models: the mean of every parameter, and only of models that have one."""

import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from panoply.config import Rendering
from panoply.config.average import AverageConfig
from panoply.data.schema import digest
from panoply.hub.artefact.average import average_models
from panoply.hub.artefact.scalar import load_scalar_model
from panoply.report.progress import RunLogger
from tests.builders.models import (
    PROMPT,
    RESPONSES,
    assert_the_same_everywhere,
    save_small,
    small_decoder,
)
from tests.builders.tokenizers import TURNS, byte_tokenizer
from workflows.average import run_average


@pytest.fixture
def tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


def test_the_average_of_a_model_with_itself_is_itself(small_models, tmp_path):
    folder, out = small_models["ensemble"], tmp_path / "out"
    average_models([folder, folder], out)
    one, mean = load_scalar_model(folder), load_scalar_model(out)
    for file in ("model.safetensors", "heads.safetensors"):
        before, after = load_file(folder / file), load_file(out / file)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert (one.score(PROMPT, RESPONSES) == mean.score(PROMPT, RESPONSES)).all()
    assert (mean.manifest.centers, mean.manifest.scales) == (
        one.manifest.centers,
        one.manifest.scales,
    )
    assert mean.manifest.temperature == 1.0


def test_every_tensor_is_the_plain_mean(tokenizer, tmp_path):
    keys = [digest(str(i)) for i in range(3)]
    for i, source in enumerate(("east", "west", "north")):
        decoder = small_decoder(seed=10 + i)
        save_small(tmp_path / source, tokenizer, model=decoder, sources=(source,), seen=[keys[i]])
    folders = [tmp_path / source for source in ("east", "west", "north")]
    average_models(folders, tmp_path / "out")
    for file in ("model.safetensors", "heads.safetensors"):
        each = [load_file(folder / file) for folder in folders]
        for name, mean in load_file(tmp_path / "out" / file).items():
            wanted = torch.stack([tensors[name] for tensors in each]).mean(0)
            assert torch.allclose(mean, wanted, rtol=1e-5, atol=1e-6), name
    manifest = load_scalar_model(tmp_path / "out").manifest
    assert manifest.sources == ("east", "west", "north")
    assert manifest.method == {
        "average of": [load_scalar_model(f).manifest.method for f in folders]
    }
    assert manifest.data["pairs of model 3"]["by_source"] == {"east": 20, "west": 10}
    # Prompts that any of them has seen are seen.
    seen = np.load(tmp_path / "out" / "seen.npy")
    assert set(seen.tolist()) == {int(key[:16], 16) for key in keys}
    assert_the_same_everywhere(tmp_path / "out")


def test_models_that_have_no_mean_are_refused_with_the_difference(
    small_models, tokenizer, tmp_path
):
    wide = small_decoder(intermediate_size=64)
    short = small_decoder(num_hidden_layers=1)
    save_small(tmp_path / "wide", tokenizer, model=wide)
    save_small(tmp_path / "short", tokenizer, model=short, depth=1)
    save_small(tmp_path / "qwen2", tokenizer, model=small_decoder("qwen2"))
    save_small(tmp_path / "cut", tokenizer, rendering=Rendering(max_prompt_tokens=64))
    save_small(tmp_path / "template", byte_tokenizer(TURNS))
    for folder, message in (
        (tmp_path / "wide", "config's intermediate_size is 64, there it is 48"),
        (tmp_path / "short", "config's num_hidden_layers is 1, there it is 2"),
        (tmp_path / "qwen2", "config's architectures is .*Qwen2ForSeq"),
        (small_models["ensemble"], "its number of heads is 2, there it is 1"),
        (tmp_path / "cut", "its rendering is .*max_prompt_tokens=64"),
        (tmp_path / "template", "its chat template is"),
        (small_models["gated"], "is a gated reward model"),
        (tmp_path / "none", "no panoply.json"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            average_models([small_models["scalar"], folder], tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="at least one model"):
        average_models([], tmp_path / "out")


def test_the_job_averages_and_tells_a_mistake_in_one_sentence(
    small_models, tmp_path, capsys, monkeypatch
):
    from jobs.average import main

    scalar, gated, out = small_models["scalar"], small_models["gated"], tmp_path / "out"

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["average", *map(str, words), "--report-to", "none"])
        with suppress(SystemExit):
            main()
        return " ".join(capsys.readouterr().out.split())

    printed = run(scalar, scalar, "--out", out)
    assert "Models that were averaged" in printed
    assert f"results: {out}" in printed
    assert load_scalar_model(out / "model").manifest.temperature == 1.0
    assert "Models that were averaged" in (out / "report.html").read_text()
    assert "finished before" in run(scalar, scalar, "--out", out)
    assert "error: " in run(scalar, "--out", out)
    assert "other settings (models: " in run(scalar, "--out", out)
    # What does not fit is told before anything is written.
    assert "is a gated reward model" in run(scalar, gated, "--out", tmp_path / "none")
    assert not (tmp_path / "none" / "config.json").exists()


def test_a_run_that_died_behind_its_model_goes_on(small_models, tmp_path):
    config = AverageConfig(
        models=(str(small_models["scalar"]),), out=str(tmp_path / "out"), report_to=("none",)
    )
    run_average(config, RunLogger())
    before = (tmp_path / "out" / "model" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "out" / "metrics.json").unlink()
    metrics = run_average(config, RunLogger())
    assert metrics["num_models"] == 1
    assert (tmp_path / "out" / "model" / "model.safetensors").stat().st_mtime_ns == before
