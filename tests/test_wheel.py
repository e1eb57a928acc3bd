"""The wheel with its base dependencies fits models in one process, without Ray or a hub."""

import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.builders.ray_head import ROOT

pytestmark = pytest.mark.slow

ABSENT = ("ray", "mlflow", "transformers", "peft", "tyro", "rich", "matplotlib", "pydantic")
ARMORM = """
import numpy as np
from armorm_arrays import GATE, NAMES, planted_arrays
from panoply.armorm import ArmoRM, fit

rated, compared, (chosen, rejected, prompts) = planted_arrays()
model = fit(rated, compared, NAMES, gate=GATE)
margins = model.score(chosen, prompts) - model.score(rejected, prompts)
assert (margins > 0).mean() > 0.8, margins
model.save(Path("armorm.npz"))
assert np.array_equal(ArmoRM.load(Path("armorm.npz")).score(chosen, prompts),
                      model.score(chosen, prompts))
"""
PREFERENCE = """
import numpy as np
from armorm_arrays import planted_arrays
from panoply.preference import fit

_, compared, (chosen, rejected, _) = planted_arrays(conflict=False)
model = fit(compared.chosen_PF, compared.rejected_PF)
margins = model.score(chosen) - model.score(rejected)
assert (margins > 0).mean() > 0.8, margins
"""
LACKS_EXTRA = """
try:
    import panoply.cli
except SystemExit as end:
    assert "needs the package 'tyro'" in end.code, end.code
    assert "pip install '.[cli]'" in end.code, end.code
else:
    raise AssertionError("tyro is absent")
"""
LACKS_WIRE = """
try:
    import panoply.scorers.where
except ModuleNotFoundError as error:
    assert "pip install '.[wire]'" in str(error), error
else:
    raise AssertionError("httpx2 is absent")
"""
JUDGE = """
server: {url: "http://127.0.0.1:9/v1#m"}
prompt: "{{ response }} {{ answer_format }}"
"""
COMPOSITE = """
parts:
  length: {where: "function:panoply.serve.verifiers:length"}
  lines: {where: "function:panoply.serve.verifiers:lines"}
rule: {kind: sum}
scale: raw
"""
OPENS = """
import asyncio
import sys

sys.path.append(EXTRAS)
from panoply.config.serve import ServedModelConfig
from panoply.scorers.where import open_scorer
from panoply.wire.request import Chat

def opened(kind):
    return open_scorer(ServedModelConfig(name="m", where=f"{kind}:{sys.path[-1]}/{kind}.yaml"))
"""
LACKS_JUDGE = """
for kind in ("judge", "combine"):
    try:
        opened(kind)
    except ModuleNotFoundError as error:
        assert str(error).startswith(f"`{kind}:FILE.yaml` needs"), error
        assert "pip install '.[judge]'" in str(error), error
    else:
        raise AssertionError("openai and PyYAML are absent")
"""
HAS_JUDGE = """
opened("judge")
((score,),) = asyncio.run(opened("combine").score([Chat((), ("abc",))]))
assert score.score == 4.0, score
"""
PROLOG = f"""
import sys
from importlib.util import find_spec
from pathlib import Path
import panoply

assert Path(panoply.__file__).is_relative_to(sys.prefix), panoply.__file__
present = [name for name in {ABSENT!r} if find_spec(name)]
assert not present, present
"""


def distributions(requirements, *extras):
    """Names of the installed distributions that these requirements need, with some extras."""
    names, left = set(), list(requirements)
    while left:
        requirement = Requirement(left.pop())
        marker = requirement.marker
        applies = marker is None or any(marker.evaluate({"extra": e}) for e in ("", *extras))
        if applies and requirement.name.lower() not in names:
            names.add(requirement.name.lower())
            left += distribution(requirement.name).requires or []
    return names


def link_distribution(name, site):
    """Links the top-level files and folders of an installed distribution into a site folder."""
    found = distribution(name)
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        target = site / top
        if not target.exists():
            target.symlink_to(found.locate_file(top))


def requirements_of(site):
    """What the wheel in a site folder requires, extras and all."""
    (about,) = site.glob("panoply_rewards-*.dist-info")
    lines = (about / "METADATA").read_text().splitlines()
    return [line[len("Requires-Dist: ") :] for line in lines if "Requires-Dist: " in line]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment of the wheel and its base dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("panoply_rewards-*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True)
    for name in distributions(requirements_of(site)):
        link_distribution(name, site)
    shutil.copy(ROOT / "tests" / "builders" / "armorm_arrays.py", site)
    return folder / "env" / "bin" / "python"


def run(python: Path, script: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", PROLOG + script],
        cwd=python.parents[1],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_wheel_is_typed_and_its_command_names_what_it_lacks(python):
    (site,) = (python.parents[1] / "lib").glob("python*/site-packages")
    assert (site / "panoply" / "py.typed").is_file()
    assert not (site / "jobs").exists()
    (about,) = site.glob("panoply_rewards-*.dist-info")
    assert "panoply = panoply.cli:main" in (about / "entry_points.txt").read_text()
    run(python, LACKS_EXTRA)


def test_the_wheel_alone_fits_an_armorm(python):
    run(python, ARMORM)


def test_the_wheel_alone_fits_a_preference_model(python):
    run(python, PREFERENCE)


@pytest.mark.parametrize(
    ("extras", "script"), [(("wire",), LACKS_JUDGE), (("wire", "judge"), HAS_JUDGE)]
)
def test_judges_and_composites_need_the_extra_judge_and_say_so(python, extras, script, tmp_path):
    run(python, LACKS_WIRE)
    (site,) = (python.parents[1] / "lib").glob("python*/site-packages")
    for name in distributions(requirements_of(site), *extras) - {"panoply-rewards"}:
        link_distribution(name, tmp_path)
    (tmp_path / "judge.yaml").write_text(JUDGE)
    (tmp_path / "combine.yaml").write_text(COMPOSITE)
    run(python, OPENS.replace("EXTRAS", repr(str(tmp_path))) + script)
