"""Rules about the repository itself."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pslite", "kvstore", "launcher")
UNSAFE_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "send_pyobj", "recv_pyobj", "yaml.load", "yaml.load_all", "yaml.unsafe_load"}
YAML = {"load", "load_all", "unsafe_load"}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def modules() -> list[str]:
    """All modules of the packages that a user may import: those without an underscore."""
    found = list(PACKAGES)
    for package in PACKAGES:
        paths = importlib.import_module(package).__path__
        found += [module.name for module in pkgutil.walk_packages(paths, package + ".")]
    return [name for name in found if not any(part.startswith("_") for part in name.split("."))]


# What is installed


def test_run_time_dependencies() -> None:
    required = [line for line in metadata.requires("pslite") or [] if "extra ==" not in line]
    assert {re.split(r"[^\w-]", line)[0] for line in required} == {"numpy", "pyzmq", "msgpack"}


@pytest.mark.parametrize(
    ("command", "target"), [("pslite", "launcher.commands:main"), ("pslite-launch", "launcher.cli:main")]
)
def test_console_scripts_lead_to_functions(command: str, target: str) -> None:
    [script] = metadata.entry_points(group="console_scripts", name=command)
    assert script.value == target
    assert callable(script.load())


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_announced(package: str) -> None:
    assert resources.files(package).joinpath("py.typed").is_file()


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=relative)
def test_a_wheel_holds_every_module(path: Path) -> None:
    """setuptools takes along only directories with an __init__.py."""
    assert (path.parent / "__init__.py").is_file()


# Public names


@pytest.mark.parametrize("name", modules())
def test_all_names_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", None)
    if listed is None:
        assert not hasattr(module, "__path__") or public_names(module) == set(), "a package lists its names in __all__"
        return
    assert len(set(listed)) == len(listed)
    assert [n for n in listed if not hasattr(module, n)] == []
    assert public_names(module) - set(listed) == set()


def public_names(module: ModuleType) -> set[str]:
    """Of a package what it imports from its modules; of a module the classes and functions that it defines."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
        if hasattr(module, "__path__") or getattr(value, "__module__", None) == module.__name__
    }


# Safety


@pytest.mark.parametrize("path", sources(*PACKAGES, "tools", "examples"), ids=relative)
def test_nothing_runs_code_from_data(path: Path) -> None:
    assert list(unsafe(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import marshal as m",
        "from cloudpickle import dumps",
        "import dill._dill",
        "eval(text)",
        "exec(text)",
        "socket.send_pyobj(x)",
        "yaml.load(file)",
        "yaml.unsafe_load(file)",
        "np.load(file, allow_pickle=True)",
    ],
)
def test_unsafe_code_is_recognised(source: str) -> None:
    assert list(unsafe(source)) == [f"line 1: {source}"]


def test_safe_code_is_not_taken_for_unsafe() -> None:
    assert list(unsafe("import os\nos.execv(path, argv)\nnp.load(file, allow_pickle=False)\nre.compile('eval')")) == []


def unsafe(source: str) -> Iterator[str]:
    """Statements and calls by which bytes from a peer or a file could become running code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = any(alias.name.split(".")[0] in UNSAFE_MODULES for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found = not node.level and str(node.module).split(".")[0] in UNSAFE_MODULES
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            name = ast.unparse(node.func) if name in YAML else name
            pickles = any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
            found = name in UNSAFE_CALLS or pickles
        else:
            continue
        if found:
            yield f"line {node.lineno}: {ast.unparse(node)}"


# Documents

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.]*/**/*.md")])
CODE_BLOCK = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
INLINE_LINK = re.compile(r"\]\(<?([^)\s>]+)")
REFERENCE_LINK = re.compile(r"^\[[^]]+\]:\s*<?([^\s>]+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    links = "[a](page.md#part) [b](https://x.org/y) [c](#part) [d](gone.md 'title')"
    page.write_text(links + "\n```\n[e](in-code.md)\n```\n[f]: off.md")
    assert dead_links(page) == ["gone.md", "off.md"]


def dead_links(page: Path) -> list[str]:
    """Targets of relative links that do not exist."""
    text = CODE_BLOCK.sub("", page.read_text())
    files = [target.partition("#")[0] for target in INLINE_LINK.findall(text) + REFERENCE_LINK.findall(text)]
    local = [file for file in files if file and not re.match(r"[a-z][a-z+.-]*:", file)]
    return [file for file in local if not (page.parent / file).exists()]


# The tests themselves


@pytest.mark.parametrize("path", sources("tests"), ids=relative)
def test_test_directories_are_packages(path: Path) -> None:
    """Files of the same name in two directories, and ``from tests.harness import``, work because of it."""
    assert (path.parent / "__init__.py").is_file()


def test_three_quarters_of_the_tests_use_no_process_and_no_socket(request: pytest.FixtureRequest) -> None:
    config = request.config
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.option.keyword or config.option.markexpr:
        pytest.skip("only a run of all tests can be counted")
    items = request.session.items
    heavy = [item for item in items if any(item.get_closest_marker(mark) for mark in ("processes", "sockets"))]
    assert len(heavy) * 4 <= len(items), f"{len(heavy)} of {len(items)} tests are marked processes or sockets"
