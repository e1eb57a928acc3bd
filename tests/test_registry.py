"""Models of MLflow's registry: pinned once by the driver, and told in a sentence where missing."""

import json

import pytest
from mlflow import MlflowClient

from panoply.config.serve import ServedModelConfig
from panoply.config.tracked import TrackedRun
from panoply.report.progress import RunLogger
from panoply.scorers.where import LocalModel, parse_where
from workflows.cluster.resolve_model import resolve_model
from workflows.cluster.tracking import open_trackers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Two versions of a model in a SQLite registry, as two runs leave them."""
    root = tmp_path_factory.mktemp("registry")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    for name in ("first", "second"):
        (root / name / "model").mkdir(parents=True)
        (root / name / "config.json").write_text("{}")
        (root / name / "model" / "panoply.json").write_text(json.dumps({"run": name}))
        with open_trackers(TrackedRun(experiment="serving"), root / name).run(
            {}, {}, RunLogger(), model="armorm"
        ):
            pass
    yield MlflowClient()
    monkeypatch.undo()


def which(place):
    """The run that a model's folder is from."""
    return json.loads((place / "panoply.json").read_text())["run"]


def folder_of(uri, tmp_path):
    arm = resolve_model(ServedModelConfig(name="m", where=uri))
    assert isinstance(parse_where(arm.where), LocalModel)
    return type(tmp_path)(arm.where)


def test_an_alias_is_pinned_and_moving_it_later_changes_nothing(registry, tmp_path):
    registry.set_registered_model_alias("armorm", "live", "1")
    place = folder_of("models:/armorm@live", tmp_path)
    assert which(place) == "first"
    registry.set_registered_model_alias("armorm", "live", "2")
    assert which(place) == "first"
    assert which(folder_of("models:/armorm@live", tmp_path)) == "second"
    assert folder_of("models:/armorm/1", tmp_path) == place


def test_a_model_whose_files_lie_elsewhere_is_copied_once_to_the_store(
    registry, tmp_path, monkeypatch
):
    monkeypatch.setenv("PANOPLY_STORE", str(tmp_path / "store"))
    (version,) = registry.search_model_versions("name = 'armorm' and version_number = 1")
    registry.create_registered_model("far")
    registry.create_model_version("far", source=f"runs:/{version.run_id}/model")
    place = folder_of("models:/far/1", tmp_path)
    assert place == tmp_path / "store" / "models" / "far-1"
    assert which(place) == "first"
    assert [path.name for path in place.parent.iterdir()] == ["far-1"]
    (place / "kept").touch()
    assert folder_of("models:/far/1", tmp_path) == place
    assert (place / "kept").exists()
    monkeypatch.setenv("PANOPLY_STORE", "s3://bucket/features")
    with pytest.raises(ValueError, match="copy it to a folder that all nodes share"):
        folder_of("models:/far/1", tmp_path)


@pytest.mark.parametrize(
    "uri", ["models:/nobody@live", "models:/armorm@nobody", "models:/armorm/9", "models:/armorm"]
)
def test_what_the_registry_does_not_have_is_told_in_one_sentence(registry, uri):
    with pytest.raises(
        ValueError, match=r"no model 'models:/.*' in the registry 'sqlite:///"
    ) as told:
        resolve_model(ServedModelConfig(name="m", where=uri))
    assert "\n" not in str(told.value)
    assert "models:/NAME@ALIAS" in str(told.value)
