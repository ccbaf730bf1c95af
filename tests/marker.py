"""The tests as a marker of coursework: a pytest plugin, which .pytest.ini names.

    python -m pytest --script my_ppo.py                       test your copy of a script
    python -m pytest --script my_ppo.py --like ppo_discrete   and say of which it is a copy

The tests then see a folder in which the copy stands in the place of its origin, and only the
origin's tests run, without those of what the five scripts have in common (test_structure.py).
"""
import atexit
import difflib
import inspect
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

LADDER = ["reinforce", "a2c", "ppo_discrete", "ppo_continuous", "trpo"]
ROOT = Path(__file__).resolve().parent.parent  # with --script, the folder with the copy in it
NAMES = [name for name in LADDER if (ROOT / f"{name}.py").exists()]  # with --script, its origin's
IGNORED = []  # test files that are not for a copy


def pytest_addoption(parser):
    group = parser.getgroup("coursework")
    group.addoption("--script", metavar="FILE", type=Path, help="test this copy of a script")
    group.addoption("--like", metavar="NAME", type=lambda name: name.removesuffix(".py"),
                    help="the script that it is a copy of, such as ppo_discrete; without: the one "
                    "whose text is nearest")
    group.addoption("--seconds", metavar="S", type=int, default=120,
                    help="what a test of a copy may take before it fails (not on Windows)")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config, args):
    """Before conftest.py imports the scripts: put the copy in the place of its origin. Without a
    copy and without a choice of tests, on up to four cores, where pytest-xdist is installed."""
    global ROOT
    given = early_config.known_args_namespace
    script, like = given.script, given.like
    if not (script or given.file_or_dir or given.keyword or given.capture == "no"):
        if getattr(given, "numprocesses", 0) is None and not (given.usepdb or given.collectonly):
            args += ["-n", str(min(4, os.cpu_count() or 1))]
    if script:
        if not script.is_file():
            raise pytest.UsageError(f"--script {script}: there is no such file")
        try:
            like = like or nearest(script.read_text("utf-8"))
        except UnicodeError as error:
            raise pytest.UsageError(f"--script {script}: save it in UTF-8") from error
        if like not in NAMES:
            raise pytest.UsageError(f"--like {like}: must be one of {', '.join(NAMES)}")
        ROOT, NAMES[:] = with_copy(script, like), [like]
        others = [name for name in LADDER if name != like]
        IGNORED.extend(f"test_{name}.py" for name in
                       ("structure", "benchmarks", "variants", "own_runs", "marker", "bugs",
                        *others))


def nearest(text: str) -> str:
    """The script with the most lines in common with this text."""
    def likeness(name):
        lines = (ROOT / f"{name}.py").read_text("utf-8").splitlines()
        return difflib.SequenceMatcher(None, text.splitlines(), lines, autojunk=False).ratio()
    return max(NAMES, key=likeness)


def with_copy(path: Path, like: str) -> Path:
    """A folder with all scripts, and the copy in the place of its origin."""
    folder = Path(tempfile.mkdtemp(prefix="marked-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in NAMES:
        shutil.copy(path if name == like else ROOT / f"{name}.py", folder / f"{name}.py")
    return folder


def pytest_report_header(config):
    script = config.option.script
    return [f"{script} is tested as a copy of {NAMES[0]}.py"] if script else []


def pytest_collection_modifyitems(config, items):
    """With --script: the tests that take a script, and those of the origin's own file; first those
    of single functions, whose failures say most."""
    def about_it(item):
        return (item.path.name == f"test_{NAMES[0]}.py"
                or "script" in getattr(getattr(item, "callspec", None), "params", {}))

    def place(item):
        name = item.path.stem.removeprefix("test_")
        return order.index(name) if name in order else len(order)

    if config.option.script:
        order = ["advantages", "objective", "distributions", "rollout", "normalisation", "update",
                 NAMES[0], "acting"]
        config.hook.pytest_deselected(items=[item for item in items if not about_it(item)])
        items[:] = sorted(filter(about_it, items), key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """With --script, a test fails after --seconds (on Unix): a loop of the copy may never end."""
    def give_up(*_):
        pytest.fail("this takes too long (--seconds): is there a loop that does not end?")

    if not item.config.option.script or not hasattr(signal, "SIGALRM"):
        return (yield)
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(item.config.option.seconds)
    try:
        return (yield)
    finally:
        signal.alarm(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With --script, a failure says what the test holds."""
    report = yield
    if item.config.option.script and report.failed:
        report.sections.insert(0, ("What should hold", inspect.getdoc(item.function) or ""))
    return report
