"""Models of MLflow's registry: pinned once by the driver, and told in a sentence where missing."""

import json

import pytest
from mlflow import MlflowClient

from panoply.config.serve import ServedModelConfig
from panoply.config.tracked import TrackedRun
from panoply.report.progress import RunLogger
from panoply.scorers.where import LocalModel, parse_where
from panoply.seal import seal
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
    assert place.parent == tmp_path / "store" / "models"
    assert place.name.startswith("far-1-")
    assert which(place) == "first"
    assert list(place.parent.iterdir()) == [place]
    assert {"panoply.json", "MLmodel"} <= {path.name for path in place.iterdir()}
    (place / "kept").touch()
    assert folder_of("models:/far/1", tmp_path) == place
    assert (place / "kept").exists()
    monkeypatch.setenv("PANOPLY_STORE", "s3://bucket/features")
    with pytest.raises(ValueError, match="copy it to a folder that all nodes share"):
        folder_of("models:/far/1", tmp_path)


def test_versions_of_one_name_in_two_registries_are_two_copies(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("PANOPLY_STORE", str(tmp_path / "store"))
    places = []
    for name in ("staging", "prod"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / name / 'mlflow.db'}")
        client = MlflowClient()
        run = client.create_run(client.create_experiment("e", (tmp_path / name / "a").as_uri()))
        client.log_dict(run.info.run_id, {"run": name}, "model/panoply.json")
        client.create_registered_model("a.b")
        client.create_model_version("a.b", source=f"runs:/{run.info.run_id}/model")
        places.append(folder_of("models:/a.b/1", tmp_path))
    assert [which(place) for place in places] == ["staging", "prod"]
    assert len(set(places)) == 2


def test_what_a_killed_download_left_is_no_part_of_the_next(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("PANOPLY_STORE", str(tmp_path / "store"))
    (version,) = registry.search_model_versions("name = 'armorm' and version_number = 1")
    registry.create_registered_model("a.c")
    registry.create_model_version("a.c", source=f"runs:/{version.run_id}/model")
    for left in (".a.c-1.0f.part", "a.part"):
        (tmp_path / "store" / "models" / left).mkdir(parents=True)
        (tmp_path / "store" / "models" / left / "stale.safetensors").touch()
    place = folder_of("models:/a.c/1", tmp_path)
    names = {path.name for path in place.iterdir()}
    assert "panoply.json" in names
    assert "stale.safetensors" not in names


def test_a_version_that_names_a_folder_without_a_model_is_refused(registry, tmp_path):
    registry.create_registered_model("etc")
    registry.create_model_version("etc", source="file:///etc")
    with pytest.raises(ValueError, match=r"'/etc', which is no model's folder") as told:
        folder_of("models:/etc/1", tmp_path)
    assert "\n" not in str(told.value)


def test_a_copy_that_differs_from_its_seal_is_refused_and_not_kept(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("PANOPLY_STORE", str(tmp_path / "store"))
    (version,) = registry.search_model_versions("name = 'armorm' and version_number = 2")
    client = MlflowClient()
    sealed = tmp_path / "sealed"
    sealed.mkdir()
    (sealed / "heads.safetensors").write_text("weights")
    seal(sealed)
    (sealed / "heads.safetensors").write_text("Weights")
    client.log_artifacts(version.run_id, str(sealed), "torn")
    registry.create_registered_model("torn")
    registry.create_model_version("torn", source=f"runs:/{version.run_id}/torn")
    with pytest.raises(ValueError, match=r"heads\.safetensors' is not the file that was saved"):
        folder_of("models:/torn/1", tmp_path)
    assert list((tmp_path / "store" / "models").iterdir()) == []


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
