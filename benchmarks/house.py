"""Measures of this code as text: `python -m benchmarks.house [--root DIR] [--json FILE]`.

Everything is counted on the syntax trees of the product (panoply, actors, workflows, jobs);
nothing is imported and no model is run. `tests/test_house_rules.py` holds the code to some of these
counts. Definitions:

nested comprehension: one that contains another, or has more than one `for`.
unpacked generator: `a, b = (f(x) for x in ...)`.
cyclomatic complexity: 1 + branches, loops, handlers, cases, conditional expressions, further
operands of `and` and `or`, and the loops and conditions of comprehensions.
per 1,000 lines: lines that are not blank.
closure: modules that a module imports, directly or not, and itself.
files that name: files of the product in whose code the name of an example variant occurs; about as
many have to be touched for another variant.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median, quantiles
from typing import Any

PACKAGES = ("panoply", "actors", "workflows", "jobs")
FILLERS = frozenset(["found", "told", "own", "said", "one", "asked", "known", "given", "wanted"])
"""Names that say nothing of what they hold."""
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
COMMANDS = {
    "laser": "LaserConfig",
    "tune_more": "TuneConfig",
    "preference": "PreferenceConfig",
    "armorm": "ArmoRMConfig",
    "best_of_n": "BestOfNConfig",
    "serve": "ServeConfig",
}
"""Commands and the dataclass that each of them parses."""
ALGORITHMS = ("workflows.armorm", "workflows.laser")
"""Modules whose imports are followed."""
EXAMPLES = {
    "a board": "rmbench",
    "a bandit": "MOSS",
    "a policy loss": "DPO",
    "a wire dialect": "tei",
    "a checkpoint layout": "INFORMForSequenceClassification",
    "a kind of reward model": "PairwiseModel",
    "a scorer to compare with": "best_fixed",
}
"""Variants whose names are looked for: files that name one are places to touch for another."""


@dataclass(frozen=True)
class Module:
    """A source file and its syntax tree."""

    name: str
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the tree."""
        return list(ast.walk(self.tree))

    @property
    def stem(self) -> str:
        """Name within the package."""
        return self.name.rpartition(".")[2]

    def at(self, node: ast.AST) -> str:
        """Returns the place of a node as file:line."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"


def read_modules(root: Path, packages: Sequence[str] = PACKAGES) -> list[Module]:
    """Reads the modules of some packages; a package's own module bears the package's name."""
    modules: list[Module] = []
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            relative = path.relative_to(root)
            parts = relative.with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules.append(Module(name, relative, path.read_text()))
    return modules


def nested_comprehensions(module: Module) -> list[str]:
    """Returns the places of comprehensions in comprehensions, and of those with several loops."""
    places: list[str] = []
    for node in module.nodes:
        if isinstance(node, COMPREHENSIONS):
            inner = sum(isinstance(child, COMPREHENSIONS) for child in ast.walk(node)) - 1
            if inner or len(node.generators) > 1:
                places.append(module.at(node))
    return places


def unpacked_generators(module: Module) -> list[str]:
    """Returns the places where a generator is unpacked into several names."""
    return [
        module.at(node)
        for node in module.nodes
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.GeneratorExp)
    ]


def filler_names(module: Module) -> list[str]:
    """Returns the places of variables, parameters, fields and functions that bear a filler name."""
    places: list[str] = []
    for node in module.nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                pass
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                pass
            case _:
                continue
        if name in FILLERS:
            places.append(f"{module.at(node)} {name}")
    return places


def public_classes(modules: Iterable[Module]) -> dict[str, list[str]]:
    """Returns the places of each public class by its name."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for module in modules:
        for node in module.nodes:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module.at(node))
    return dict(places)


def complexity(function: ast.AST) -> int:
    """Returns the cyclomatic complexity of a function."""
    total = 1
    for node in ast.walk(function):
        if isinstance(node, BRANCHES):
            total += 1
        elif isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
    return total


def imports(module: Module, names: frozenset[str]) -> set[str]:
    """Returns the modules among `names` that a module imports, anywhere in its text."""
    targets: set[str] = set()
    for node in module.nodes:
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names a module, `from module import name` does not.
            targets |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return targets & names


def closure(start: str, graph: dict[str, set[str]]) -> set[str]:
    """Returns a module and all that it imports, directly or not."""
    reached, waiting = {start}, [start]
    while waiting:
        news = graph.get(waiting.pop(), set()) - reached
        reached |= news
        waiting += news
    return reached


def longest_chain(start: str, graph: dict[str, set[str]]) -> list[str]:
    """Returns the longest chain of imports that begins at a module; circles are not followed."""
    chains: dict[str, list[str]] = {}

    def chain(name: str, above: frozenset[str]) -> list[str]:
        if name not in chains:
            below = sorted(graph.get(name, set()) - above - {name})
            longest = max((chain(other, above | {name}) for other in below), key=len, default=[])
            chains[name] = [name, *longest]
        return chains[name]

    return chain(start, frozenset())


def dataclass_fields(modules: Iterable[Module]) -> dict[str, list[ast.AnnAssign]]:
    """Returns the fields of every dataclass by its name; a class's own variables are none."""
    fields: dict[str, list[ast.AnnAssign]] = {}
    for module in modules:
        for node in module.nodes:
            if not isinstance(node, ast.ClassDef):
                continue
            if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                annotated = [s for s in node.body if isinstance(s, ast.AnnAssign)]
                fields[node.name] = [
                    s for s in annotated if not ast.unparse(s.annotation).startswith("ClassVar")
                ]
    return fields


def aliases(modules: Iterable[Module], classes: Iterable[str]) -> dict[str, set[str]]:
    """Returns the dataclasses behind the name of each union of them."""
    unions: dict[str, set[str]] = {}
    for module in modules:
        for node in module.tree.body:
            match node:
                case (
                    ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
                    | ast.Assign(targets=[ast.Name(id=name)], value=value)
                ):
                    members = names_in(value) & set(classes)
                    if len(members) > 1 and isinstance(value, ast.BinOp):
                        unions[name] = members
                case _:
                    pass
    return unions


def names_in(node: ast.AST) -> set[str]:
    """Returns all names that occur in an expression, also in one that is quoted."""
    names: set[str] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            names.add(child.id)
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            names.add(child.value)
    return names


def config_leaves(modules: Sequence[Module], name: str) -> int:
    """Returns how many plain values a dataclass holds; of a union, its largest member counts."""
    fields = dataclass_fields(modules)
    unions = aliases(modules, fields)
    bases: dict[str, set[str]] = {}
    for module in modules:
        for node in module.nodes:
            if isinstance(node, ast.ClassDef):
                bases[node.name] = set[str]().union(*map(names_in, node.bases)) & fields.keys()

    def leaves(cls: str) -> int:
        total = sum(leaves(base) for base in bases.get(cls, ()))
        for field in fields.get(cls, []):
            names = names_in(field.annotation)
            for union in names & unions.keys():
                names |= unions[union]
            total += max((leaves(inner) for inner in names & fields.keys()), default=1)
        return total

    return leaves(name)


def identifiers(module: Module) -> set[str]:
    """Returns all names in a module: its own, imported modules' parts, whole text constants."""
    names: set[str] = {module.stem}
    for node in module.nodes:
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                names.add(name)
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.keyword(arg=str(name)) | ast.Constant(value=str(name)):
                names.add(name)
            case ast.alias(name=name):
                names.update(name.split("."))
            case ast.ImportFrom(module=str(name)):
                names.update(name.split("."))
            case _:
                pass
    return names


def places_to_touch(modules: Sequence[Module]) -> dict[str, int]:
    """Returns the number of files that name an example of each kind of variant."""
    each = [identifiers(module) for module in modules]
    return {kind: sum(example in names for names in each) for kind, example in EXAMPLES.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns the median, the 90th percentile and the largest value."""
    return {
        "median": median(values),
        "p90": quantiles(values, n=10, method="inclusive")[8],
        "max": max(values),
    }


def docstring_lines(module: Module) -> int:
    """Returns how many lines are those of docstrings, of attributes too."""
    return sum(
        node.end_lineno - node.lineno + 1
        for node in module.nodes
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        and node.end_lineno is not None
    )


def public_names(module: Module) -> int:
    """Returns the number of public classes and functions, and of constants, of a module."""
    count = 0
    for node in module.tree.body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                count += not name.startswith("_")
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                count += not name.startswith("_")
            case _:
                pass
    return count


def measure(root: Path) -> dict[str, Any]:
    """Returns all measures of the product under `root`."""
    modules = read_modules(root)
    lines = {module.name: module.text.splitlines() for module in modules}
    filled = sum(bool(line.strip()) for text in lines.values() for line in text)
    nodes = [node for module in modules for node in module.nodes]
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    lengths = [(f.end_lineno or f.lineno) - f.lineno + 1 for f in functions]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    fields = dataclass_fields(modules)
    stems = Counter(module.stem for module in modules if module.path.stem != "__init__")
    fillers = [place.rpartition(" ")[2] for module in modules for place in filler_names(module)]
    names = frozenset(module.name for module in modules)
    graph = {module.name: imports(module, names) - {module.name} for module in modules}
    closures: dict[str, dict[str, int]] = {}
    for start in ALGORITHMS:
        reached = closure(start, graph)
        closures[start] = {"modules": len(reached), "lines": sum(len(lines[m]) for m in reached)}

    def thousandth(count: int) -> float:
        return 1000 * count / filled

    def total(places: Any) -> int:
        return sum(len(places(module)) for module in modules)

    return {
        "files": len(modules),
        "lines": sum(map(len, lines.values())),
        "lines_by_package": {
            package: sum(len(t) for name, t in lines.items() if name.split(".")[0] == package)
            for package in PACKAGES
        },
        "file_lines": spread([len(text) for text in lines.values()]),
        "functions": len(functions),
        "function_lines": spread(lengths),
        "functions_over_40": sum(length > 40 for length in lengths),
        "functions_over_80": sum(length > 80 for length in lengths),
        "cyclomatic": spread([complexity(function) for function in functions]),
        "longest_class": max((c.end_lineno or c.lineno) - c.lineno + 1 for c in classes),
        "comment_share": sum(
            line.lstrip().startswith("#") for text in lines.values() for line in text
        )
        / filled,
        "docstring_share": sum(map(docstring_lines, modules)) / filled,
        "public_names": spread([public_names(module) for module in modules]),
        "dataclasses": len(fields),
        "dataclass_fields": sum(map(len, fields.values())),
        "nested_comprehensions_per_1000": thousandth(total(nested_comprehensions)),
        "comprehensions_per_1000": thousandth(sum(isinstance(n, COMPREHENSIONS) for n in nodes)),
        "unpacked_generators": total(unpacked_generators),
        "filler_names": dict(Counter(fillers).most_common()),
        "class_names_used_twice": sorted(
            name for name, places in public_classes(modules).items() if len(places) > 1
        ),
        "module_names_used_twice": sorted(name for name, count in stems.items() if count > 1),
        "closure": closures,
        "longest_import_chain": {start: longest_chain(start, graph) for start in ALGORITHMS},
        "config_leaves": {name: config_leaves(modules, cls) for name, cls in COMMANDS.items()},
        "files_that_name": {
            f"{kind} ({EXAMPLES[kind]})": count for kind, count in places_to_touch(modules).items()
        },
    }


def rows(measures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the measures as lines of a table."""
    for name, value in measures.items():
        match value:
            case {"median": middle, "p90": high, "max": most}:
                yield f"{name}: median / p90 / max", f"{middle:g} / {high:g} / {most:g}"
            case dict():
                for key, inner in value.items():
                    yield from rows({f"{name}: {key}": inner})
            case list():
                yield name, f"{len(value)}: {', '.join(value)}"
            case float():
                yield name, f"{value:.3g}"
            case _:
                yield name, str(value)


def main() -> None:
    """Prints the table of measures, and writes it as JSON where a file is named."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    measures = measure(options.root)
    table = Table("measure", "value")
    for row in rows(measures):
        table.add_row(*row)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(measures, indent=1) + "\n")


if __name__ == "__main__":
    main()
