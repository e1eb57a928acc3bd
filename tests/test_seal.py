"""Sealed folders of every kind: one byte, one file or the seal amiss, and nothing is loaded."""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from panoply.hub.artefact.export import export_scalar
from panoply.hub.artefact.gated import load_gated_model, save_gated_model
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.artefact.manifest import Manifest, ScalarManifest, read_manifest
from panoply.hub.artefact.scalar import load_scalar_model, save_scalar_model
from panoply.seal import LOADED_NAMES, SEAL, check_seal, log_unsealed, seal

GOLDEN = Path(__file__).parent / "golden"
KINDS = ["gated", "scalar", "ensemble", "classifier"]
WITH_MANIFEST = ["gated", "scalar", "ensemble"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of all kinds of reward model, as they are saved today."""
    root = tmp_path_factory.mktemp("saved")
    baselines = load_file(GOLDEN / "gated" / "baselines.safetensors")
    save_gated_model(load_gated_model(GOLDEN / "gated"), root / "gated", baselines, [])
    for kind in ("scalar", "ensemble"):
        model = load_scalar_model(GOLDEN / kind)
        backbone, heads_KD = model.backbone, model.heads_KD
        decoder, renderer = backbone.decoder.model, backbone.renderer
        save_scalar_model(decoder, renderer, heads_KD, model.manifest, root / kind, [])
    export_scalar(GOLDEN / "gated", root / "classifier")
    return root


def flip(file):
    """Changes one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_is_sealed_and_loads(saved, kind):
    assert check_seal(saved / kind, required=True)
    assert load_reward_model(saved / kind)
    listed = json.loads((saved / kind / SEAL).read_text())["files"]
    names = {path.name for path in files_of(saved / kind)}
    assert names == {*listed, SEAL} | (names & {"README.md"})
    for name, entry in listed.items():
        content = (saved / kind / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bit_that_flipped_in_any_file_is_refused_with_its_name(saved, kind, tmp_path):
    for file in files_of(saved / kind):
        if file.suffix == ".md":
            continue
        folder = tmp_path / file.name
        shutil.copytree(saved / kind, folder)
        flip(folder / file.name)
        with pytest.raises(ValueError, match=r"copy the folder again|upgrade") as told:
            load_reward_model(folder)
        if file.name != SEAL:
            assert file.name in str(told.value)


@pytest.mark.parametrize("kind", WITH_MANIFEST)
def test_a_copy_that_stopped_after_any_file_is_refused(saved, kind, tmp_path):
    files = [file for file in files_of(saved / kind) if file.name != SEAL]
    partly = tmp_path / "copy"
    partly.mkdir()
    for file in files:
        with pytest.raises((ValueError, FileNotFoundError)):
            load_reward_model(partly)
        shutil.copy(file, partly)
    with pytest.raises(ValueError, match=r"no seal\.json, which is written last"):
        load_reward_model(partly)
    shutil.copy(saved / kind / SEAL, partly)
    assert load_reward_model(partly)


def test_a_file_that_is_missing_or_would_change_what_is_loaded_is_named(saved, tmp_path):
    folder = shutil.copytree(saved / "scalar", tmp_path / "m")
    (folder / "other.safetensors").touch()
    with pytest.raises(ValueError, match=r"other\.safetensors.* was added"):
        load_reward_model(folder)
    (folder / "other.safetensors").unlink()
    (folder / "heads.safetensors").unlink()
    with pytest.raises(ValueError, match=r"heads\.safetensors.* is missing"):
        load_reward_model(folder)


@pytest.mark.parametrize("name", sorted(LOADED_NAMES))
def test_a_file_that_a_loader_reads_wherever_it_is_there_cannot_be_added(name, tmp_path):
    (tmp_path / "weights").write_text("w")
    for place in (name, f"inner/{name}"):
        seal(tmp_path)
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("{}")
        with pytest.raises(ValueError, match=f"{re.escape(place)}' was added"):
            check_seal(tmp_path)
        (tmp_path / place).unlink()
        assert check_seal(tmp_path)


def test_links_lead_to_the_sealed_content_and_no_name_of_a_seal_leads_outside(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "a.json").write_text("a")
    seal(folder)
    (folder / "a.json").rename(tmp_path / "blob")
    (folder / "a.json").symlink_to(tmp_path / "blob")  # as the cache of the hub has them
    (folder / "loop").symlink_to(folder)
    assert check_seal(folder)
    (tmp_path / "blob").write_text("b")
    with pytest.raises(ValueError, match="is not the file that was saved"):
        check_seal(folder)
    record = json.loads((folder / SEAL).read_text())
    for name in ("../blob", "/etc/hostname", "/dev/zero", "inner/../../blob", "a\0b", "n" * 5000):
        record["files"] = {name: {"bytes": 1, "sha256": ""}}
        (folder / SEAL).write_text(json.dumps(record))
        with pytest.raises(ValueError, match=f"{SEAL}' is damaged"):
            check_seal(folder)


@pytest.mark.parametrize(
    "entry", [{"bytes": "1", "sha256": ""}, {"bytes": 1, "sha256": None}, {"bytes": True}, [], 1]
)
def test_a_seal_with_a_value_of_another_type_is_damaged(entry, tmp_path):
    (tmp_path / "a.json").write_text("a")
    seal(tmp_path)
    record = json.loads((tmp_path / SEAL).read_text()) | {"files": {"a.json": entry}}
    (tmp_path / SEAL).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"{SEAL}' is damaged"):
        check_seal(tmp_path)


def test_texts_for_people_may_be_edited_and_added(saved, tmp_path):
    folder = shutil.copytree(saved / "scalar", tmp_path / "m")
    (folder / "README.md").write_text("our own words")
    (folder / ".gitattributes").touch()
    (folder / "MLmodel").touch()
    assert load_reward_model(folder)


def test_a_folder_older_than_seals_loads_and_that_is_logged_once(caplog, tmp_path):
    folder = shutil.copytree(GOLDEN / "scalar", tmp_path / "old")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert load_reward_model(folder)
    assert [r.getMessage().count("loads unchecked") for r in caplog.records] == [1]
    log_unsealed.cache_clear()


def test_a_seal_of_a_newer_format_asks_for_an_upgrade(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    seal(tmp_path)
    record = json.loads((tmp_path / SEAL).read_text())
    (tmp_path / SEAL).write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(ValueError, match=r"format 2, and this version reads 1: upgrade"):
        check_seal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"format": 1}', b"[" * 100_000])
def test_a_damaged_seal_or_manifest_is_named(content, saved, tmp_path):
    for name in (SEAL, "panoply.json"):
        folder = shutil.copytree(saved / "gated", tmp_path / name)
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_reward_model(folder)


# Manifests


def with_manifest(folder, kind, change):
    """A golden folder, which has no seal, with its manifest changed."""
    shutil.copytree(GOLDEN / kind, folder)
    values = json.loads((folder / "panoply.json").read_text())
    change(values)
    (folder / "panoply.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("kind", ["gated", "scalar"])
def test_an_unknown_field_is_passed_over_but_not_where_it_changes_scores(kind, tmp_path):
    known = read_manifest(GOLDEN / kind)
    folder = with_manifest(tmp_path / "m", kind, lambda values: values.update(new_field=1))
    assert read_manifest(folder) == known
    folder = with_manifest(tmp_path / "n", kind, lambda values: values["rendering"].update(new=1))
    with pytest.raises(ValueError, match=r"panoply\.json' cannot be used: .*'new'"):
        read_manifest(folder)


@pytest.mark.parametrize("kind", ["gated", "scalar"])
def test_each_missing_field_and_wrong_type_is_one_sentence_with_the_file(kind, tmp_path):
    cls = Manifest if kind == "gated" else ScalarManifest
    values = json.loads((GOLDEN / kind / "panoply.json").read_text())
    for name in set(values) - {"pad_rule", "kind", "dtype", "format"}:
        without = {other: value for other, value in values.items() if other != name}
        with pytest.raises(ValueError, match=f"lacks {name}:"):
            cls.from_dict(without)
    for name in ("rendering", "bos", "temperature"):
        with pytest.raises(ValueError, match=r"\w"):
            cls.from_dict(values | {name: "x" if name == "temperature" else 3})


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_that_divides_nothing_is_refused(temperature, tmp_path):
    folder = with_manifest(
        tmp_path / "m", "gated", lambda values: values.update(temperature=temperature)
    )
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        load_reward_model(folder)


def test_a_manifest_of_a_newer_format_asks_for_an_upgrade(tmp_path):
    folder = with_manifest(tmp_path / "m", "scalar", lambda values: values.update(format=4))
    with pytest.raises(ValueError, match="format is 4, and this version reads 1 to 3: upgrade"):
        read_manifest(folder)


def test_an_infinite_temperature_is_null_in_the_file_and_comes_back():
    values = json.loads((GOLDEN / "gated" / "panoply.json").read_text())
    manifest = Manifest.from_dict(values | {"temperature": None})
    assert manifest.temperature == float("inf")
    assert json.loads(manifest.to_json())["temperature"] is None
