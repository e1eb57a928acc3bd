"""Fixtures of all tests, and the markers that follow from them."""

import os
import shutil

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import workflows  # noqa: F401, I001  sets what Ray reads when it is imported, before a test imports it

import pytest

# transformers and Ray take seconds to import, so that fixtures import them when they are needed.
MARKED_BY_FIXTURE = {"cluster": pytest.mark.ray, "browser": pytest.mark.browser}


def pytest_collection_modifyitems(items):
    """Marks tests by the fixtures that they use, directly or not."""
    for item in items:
        for fixture in MARKED_BY_FIXTURE.keys() & item.fixturenames:
            item.add_marker(MARKED_BY_FIXTURE[fixture])


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """One token per byte, and a chat template of special tokens; pad is end-of-turn."""
    from tests.builders.tokenizers import chat_tokenizer

    return chat_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory, tiny_tokenizer):
    """A small random Llama as a Hugging Face folder."""
    from tests.builders.models import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny-llama"), tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_policy_folder(tmp_path_factory, tiny_tokenizer):
    """A small random Llama with a language-model head, as a Hugging Face folder."""
    from tests.builders.models import save_tiny_policy

    return save_tiny_policy(tmp_path_factory.mktemp("tiny-policy"), tiny_tokenizer)


@pytest.fixture(scope="session")
def small_models(tmp_path_factory, tiny_tokenizer):
    """Folders of small reward models by kind; a test that changes one copies it first."""
    from tests.builders.models import save_each_kind

    return save_each_kind(tmp_path_factory.mktemp("small-models"), tiny_tokenizer)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """An empty `mlflow.db` to copy: MLflow takes seconds to make one, and none to find one."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("database")
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def cluster():
    """One local Ray cluster for all tests that ask for it."""
    from workflows.cluster.ray_cluster import connect

    # Nodes tell their metrics every second rather than every ten, which tests of them wait for.
    os.environ["RAY_metrics_report_interval_ms"] = "1000"  # noqa: SIM112  as Ray reads it
    connect(4)
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def browser():
    """A Chromium; for a module, since the event loop that drives it is in asyncio's way."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, timeout=120_000)
        yield opened
        opened.close()
