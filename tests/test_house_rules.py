"""Rules of this code that can be executed: names, help texts, density, one atomic write."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.house import (
    dataclass_fields,
    filler_names,
    nested_comprehensions,
    public_classes,
    read_modules,
    unpacked_generators,
)

ROOT = Path(__file__).parents[1]
MODULES = read_modules(ROOT)
PREPOSITIONS = """of in by for on at with from to as per into over under above below behind before
after beside between among within without until since than through against like"""
RELATIVES = "who what which where how whose whom when why that whether"
FRAGMENTS = frozenset(f"{PREPOSITIONS} {RELATIVES}".split())
"""First words of a help text that does not read alone."""
WRITES_BESIDE = {
    "panoply/files.py",  # the one for files
    "panoply/data/features.py",  # object stores have no rename that replaces
}


def listed(places):
    """The places, one a line, for the message of a failure."""
    return f"{len(places)}:\n" + "\n".join(places)


def test_no_two_public_classes_share_a_name():
    shared = {name: at for name, at in public_classes(MODULES).items() if len(at) > 1}
    assert not shared, listed([f"{name}: {', '.join(at)}" for name, at in shared.items()])


def test_no_module_differs_from_its_sibling_by_a_plural():
    names = {module.name for module in MODULES}
    pairs = [name for name in names if {f"{name}s", f"{name}es"} & names]
    pairs += [name for name in names if name.endswith("y") and f"{name[:-1]}ies" in names]
    assert not pairs, listed(sorted(pairs))


def test_no_name_says_nothing_of_what_it_holds():
    places = [place for module in MODULES for place in filler_names(module)]
    assert not places, listed(places)


def help_text(cls, field, docs):
    """The text that tyro shows for a field: what stands below it, or of a group its class's."""
    match cls.body[cls.body.index(field) + 1 :][:1]:
        case [ast.Expr(value=ast.Constant(value=str(text)))]:
            return text.strip()
        case _:
            return docs.get(ast.unparse(field.annotation), "")


def test_every_config_field_has_a_help_text_that_reads_alone():
    modules = [module for module in MODULES if module.name.startswith("panoply.config")]
    classes = {
        node.name: (module, node)
        for module in modules
        for node in module.nodes
        if isinstance(node, ast.ClassDef)
    }
    docs = {name: ast.get_docstring(node) or "" for name, (_, node) in classes.items()}
    places = []
    for name, fields in dataclass_fields(modules).items():
        module, cls = classes[name]
        for field in fields:
            text = help_text(cls, field, docs)
            first_word = re.split(r"\W", text.lower(), maxsplit=1)[0]
            if not text or first_word in FRAGMENTS:
                start = text.partition("\n")[0] or "no help"
                places.append(f"{module.at(field)} {name}.{field.target.id}: {start!r}")
    assert not places, listed(places)


def test_comprehensions_are_seldom_nested():
    places = [place for module in MODULES for place in nested_comprehensions(module)]
    lines = sum(bool(line.strip()) for module in MODULES for line in module.text.splitlines())
    assert 1000 * len(places) / lines <= 2, listed(places)


def test_generators_are_hardly_ever_unpacked():
    places = [place for module in MODULES for place in unpacked_generators(module)]
    assert len(places) <= 5, listed(places)


def test_whole_files_are_written_in_one_place():
    places = [
        module.at(node)
        for module in MODULES
        for node in module.nodes
        if isinstance(node, ast.Constant)
        and re.search(r"\.part(\.|$)", str(node.value))
        and str(module.path) not in WRITES_BESIDE
    ]
    assert not places, listed(places)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("[[x for x in y] for y in z]", 1),
        ("[x for y in z for x in y]", 1),
        ("[x for x in y if x]", 0),
        ("{k: f(v) for k, v in z}", 0),
    ],
)
def test_a_comprehension_is_nested_where_it_holds_another_or_has_two_loops(text, count, tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "m.py").write_text(text)
    assert len(nested_comprehensions(*read_modules(tmp_path, ["room"]))) == count


def test_settings_load_the_standard_library_alone():
    heavy = ("numpy", "scipy", "torch", "transformers", "ray")
    names = [path.stem for path in (ROOT / "panoply" / "config").glob("[a-z]*.py")]
    assert {"armorm", "bandit", "laser", "serve"} <= set(names)
    code = "".join(f"import panoply.config.{name}\n" for name in names)
    code += f"import sys\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
