"""The package asks for what it imports and no more, and its set-up scripts do what they say."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from counting import some

import neurofmx_wds

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "neurofmx_wds"
CORE = {"webdataset", "torch", "numpy", "pynwb", "h5py", "tqdm", "isal"}
COMES_WITH = {"hdmf": "pynwb", "filelock": "torch"}  # what a core package cannot be without
# imported on use only
OPTIONAL_MODULES = {"convert/sources/zarr_store.py", "demo/picture.py", "integrations/splits.py", "lightning.py"}
OPTIONAL_MODULES |= {"pictures/distributions.py", "pictures/figure.py", "pictures/panels.py"}

pyproject = (ROOT / "pyproject.toml").read_text()  # Python 3.10 has no TOML reader


def modules() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports(module: str, everywhere: bool) -> Iterator[str]:
    """Absolute names of what a module imports: when it is imported itself, or everywhere in it."""
    here = ["neurofmx_wds", *Path(module).with_suffix("").parts]

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            yield from ([source] if node.module else (f"{source}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        elif isinstance(node, ast.Try) and any("ImportError" in ast.unparse(each) for each in node.handlers):
            for handler in node.handlers:  # what is imported where the other is missing
                yield from visit(handler)
        elif everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    yield from visit(ast.parse((PACKAGE / module).read_text()))


def test_core_dependencies_are_the_seven() -> None:
    block = re.search(r"^dependencies = \[(.*?)^\]", pyproject, re.M | re.S)
    assert block is not None
    names = re.findall(r'"([a-z0-9]+)([^"]*)"', block[1])
    assert {name for name, _ in names} == CORE
    assert all(">=" in bound for _, bound in names)


@pytest.mark.parametrize("module", sorted(set(modules()) - OPTIONAL_MODULES))
def test_nothing_else_is_needed_to_import(module: str) -> None:
    wanted = {name.split(".")[0] for name in imports(module, everywhere=False)} - {"neurofmx_wds"}
    assert {COMES_WITH.get(name, name) for name in wanted} <= CORE | sys.stdlib_module_names


OUTSIDE = [  # what a room must not know of the world
    (r"(order|storage)/.*|errors\.py|version\.py", "torch|webdataset|pynwb|h5py"),
    (r"nwb/.*", "torch|webdataset"),
    (r"loading/.*", "pynwb|h5py|lightning"),
    (r"stimulus/(images|noise|presets)\.py", "webdataset"),
]


def test_imports_point_down_and_in_no_circle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    linter = pytest.importorskip("importlinter.cli", reason="needs import-linter (extra: test)")
    monkeypatch.chdir(ROOT)  # setup.cfg there holds the contracts
    monkeypatch.setattr("logging.config.dictConfig", lambda config: None)  # it would silence this package's logger
    status = linter.lint_imports(no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_only_the_top_rooms_use_the_public_face() -> None:
    """A room's name is never taken from the package itself, which would hide an import that points up."""
    public = {"neurofmx_wds", *(f"neurofmx_wds.{name}" for name in neurofmx_wds.__all__)}
    for module in (module for module in modules() if not re.match(r"cli/|demo/", module)):
        assert public.isdisjoint(imports(module, everywhere=True)), module


@pytest.mark.parametrize(("rooms", "must_not_know"), OUTSIDE)
def test_a_room_knows_nothing_of(rooms: str, must_not_know: str) -> None:
    for module in some(filter(re.compile(rooms).fullmatch, modules())):
        known = [name for name in imports(module, everywhere=True) if re.match(f"(?:{must_not_know})(?:\\.|\\b)", name)]
        assert not known, f"{module} imports {known}"


def test_every_module_says_what_it_is_for() -> None:
    for module in modules():
        tree = ast.parse((PACKAGE / module).read_text())
        assert ast.get_docstring(tree), module


def test_importing_changes_nothing_for_others() -> None:
    """No logging that is off, no filter, no variable: a module's own statements call nothing for its effect."""
    calls = [
        ast.unparse(node)
        for path in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]
    under_a_name_of_ours = "numcodecs.registry.register_codec(_Objects)"
    for_a_lock_of_ours = (
        "os.register_at_fork(before=_bookkeeping.acquire, after_in_parent=_bookkeeping.release, "
        "after_in_child=_unlock_child)"
    )
    for_locks_of_ours = "os.register_at_fork(after_in_child=_renew)"
    for_a_thread_of_ours = "os.register_at_fork(after_in_child=_forget_parents_thread)"
    assert sorted(calls) == [under_a_name_of_ours, for_a_thread_of_ours, for_locks_of_ours, for_a_lock_of_ours]


def test_the_command_is_there() -> None:
    target = re.search(r'^neurofmx-wds = "(.*):(.*)"', pyproject, re.M)
    assert target is not None
    assert callable(getattr(importlib.import_module(target[1]), target[2]))


def test_the_version_is_a_literal_and_the_package_is_quick_to_import() -> None:
    attribute = re.search(r'version = \{ attr = "(.*)\.(\w+)" \}', pyproject)
    assert attribute is not None
    tree = ast.parse((ROOT / f"{attribute[1].replace('.', '/')}.py").read_text())
    literals = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}  # type: ignore[attr-defined]
    version = ast.literal_eval(literals[attribute[2]])
    code = f"import sys, neurofmx_wds; assert neurofmx_wds.__version__ == {version!r}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


FAKE_PYTHON = """#!/bin/bash
echo "$*" >>"$CALLS"
case "$*" in
    "-m $FAILS"*) exit 3 ;;
    "-c "*) exit "${TOO_OLD:-0}" ;;
    "--version") echo "Python 3.x" ;;
    "-m venv "*) [[ -z ${NO_VENV:-} ]] && mkdir -p "$4/bin" && touch "$4/pyvenv.cfg" && cp "$0" "$4/bin/python" ;;
    "-m pip "*) [[ -z ${NO_NETWORK:-} ]] ;;
    "-m pytest "*) echo "1 passed" ;;
esac
"""


class Checkout:
    """A copy of the scripts with an interpreter that notes how it is called."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root / "check out", root / "calls"
        self.root.mkdir()
        shutil.copytree(ROOT / "tools", self.root / "tools")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.python = root / "python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def run(self, script: str, *args: str, **variables: str) -> tuple[int, str, list[str]]:
        """Runs a script from elsewhere: its status, its output and the calls of the interpreter."""
        self.calls.write_text("")
        kept = {name: value for name, value in os.environ.items() if name != "NEUROFMX_VENV"}
        environment = {"PYTHON": str(self.python), "CALLS": str(self.calls), "FAILS": "nothing", **variables}
        done = subprocess.run(
            ["bash", str(self.root / "tools" / script), *args],
            cwd=self.root.parent,
            env=kept | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, self.calls.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def pip_calls(calls: list[str]) -> list[str]:
    return [call.split("tools/constraints.txt ")[1] for call in calls if call.startswith("-m pip install")]


def test_from_nothing_it_installs_torch_first_and_tests(checkout: Checkout) -> None:
    status, said, calls = checkout.run("test.sh", "-k", "two words")
    assert status == 0 and said.splitlines()[-1] == "1 passed"
    assert pip_calls(calls) == ["torch", "-e .[test]"]
    assert [call.split()[1:3] for call in calls[-4:-2]] == [["ruff", "check"], ["ruff", "format"]]
    assert [call.split()[1] for call in calls[-2:]] == ["mypy", "pytest"]
    assert calls[-1] == "-m pytest -n 2 --dist loadfile --no-loadscope-reorder -k two words"
    assert (checkout.root / ".venv-test" / "pyvenv.cfg").exists()


def test_the_second_time_nothing_is_installed(checkout: Checkout) -> None:
    checkout.run("test.sh")
    _, said, calls = checkout.run("test.sh")
    assert len(calls) == 5 and said == "1 passed\n"
    (checkout.root / "pyproject.toml").write_text(pyproject + "\n# changed\n")
    _, _, calls = checkout.run("test.sh")
    assert pip_calls(calls) == ["torch", "-e .[test]"] and not any("venv" in call for call in calls)


def test_a_set_up_that_failed_is_done_again(checkout: Checkout) -> None:
    status, said, _ = checkout.run("test.sh", NO_NETWORK="1")
    assert status == 1 and "pip could not install torch" in said
    status, _, calls = checkout.run("test.sh")
    assert status == 0 and pip_calls(calls) == ["torch", "-e .[test]"]


def test_the_lowest_versions_are_those_that_the_package_asks_for(checkout: Checkout) -> None:
    status, _, calls = checkout.run("lowest.sh", "-x")
    assert status == 0
    assert [call.split("-c ", 1)[1] for call in calls if call.startswith("-m pip install")] == [
        f"tools/constraints.txt -c tools/lowest.txt {what}" for what in ("torch", "-e .[core-test]")
    ]
    assert calls[-1].startswith("-m pytest ") and calls[-1].endswith("-x")
    for name in re.findall(r"tests/test_\w+\.py", calls[-1]):
        assert (ROOT / name).exists(), name
    tried = dict(re.findall(r"^([a-z0-9]+)==([\d.]+)$", (ROOT / "tools" / "lowest.txt").read_text(), re.M))
    assert set(tried) == CORE - {"torch"}
    for name, version in tried.items():
        bound = re.search(rf'^    "{name}>=([\d.]+)', pyproject, re.M)
        assert bound is not None and (version + ".0").startswith(bound[1] + ".")


@pytest.mark.parametrize("check", ["ruff check", "ruff format", "mypy --no-error-summary"])
def test_a_failing_check_fails_the_whole(checkout: Checkout, check: str) -> None:
    status, _, _ = checkout.run("test.sh", FAILS=check)
    assert status == 3


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TOO_OLD": "1"}, "is too old: set PYTHON"),
        ({"PYTHON": "no-such-python"}, "no interpreter 'no-such-python'; set PYTHON"),
        ({"NO_VENV": "1"}, "python3-venv"),
    ],
)
def test_what_is_missing_is_named(checkout: Checkout, variables: dict[str, str], message: str) -> None:
    status, said, _ = checkout.run("test.sh", **variables)
    assert status == 1 and message in said


def test_a_directory_that_is_no_environment_is_left_alone(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    status, said, _ = checkout.run("test.sh", NEUROFMX_VENV=str(tmp_path / "mine"))
    assert status == 1 and "is no virtual environment" in said
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_the_demo_runs_where_the_user_is(checkout: Checkout) -> None:
    status, _, calls = checkout.run("demo.sh", "--output", "here", NEUROFMX_VENV="venv of mine")
    assert status == 0
    assert pip_calls(calls) == ["torch", "-e .[plot]"]
    assert calls[-1] == "-m neurofmx_wds demo --output here"
    assert (checkout.root.parent / "venv of mine" / "pyvenv.cfg").exists()
