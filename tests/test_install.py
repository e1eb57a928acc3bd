"""What documents and messages tell people to install is ours."""

import re
import subprocess

from tests.builders.ray_head import ROOT

BY_NAME = re.compile(r"\b(?:pip3?|pipx|uvx?|poetry)\b[^\n`]*[ '\"]panoply\b(?!\S* @ )")
"""Our name as a package of PyPI, where it is somebody else's."""


def test_nothing_tells_to_install_our_name_from_pypi():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.splitlines() if "test_install" not in name]
    assert ROOT / "docs" / "wire.md" in files
    kinds = ("", ".md", ".py", ".toml", ".txt", ".yaml", ".html")
    lines = [
        (file.name, line)
        for file in files
        if file.suffix in kinds and file.is_file()
        for line in file.read_text().splitlines()
    ]
    assert [(name, line) for name, line in lines if BY_NAME.search(line)] == []


def test_an_installation_by_name_is_seen_and_one_by_place_is_not():
    for line in ("pip install 'panoply[wire]'", "uv add panoply", "`pip install panoply[hf]`"):
        assert BY_NAME.search(line)
    for line in ("pip install '.[wire]'", "pip install 'panoply[wire] @ file:///x/panoply'"):
        assert not BY_NAME.search(line)
    assert not BY_NAME.search("pip install ./panoply")
