"""Five scripts, one shape: shared sections are equal, nothing is imported from the repository."""
import ast
import dataclasses
import inspect
import itertools
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import LADDER, NAMES, ROOT, SCRIPTS, each
from sync import BANNER, PART_TWO, difference, sections, synchronised

PART_ONE_BUDGET = dict.fromkeys(LADDER, 370) | {"trpo": 480}  # lines, to the end of train()
PART_TWO_BUDGET = 699
FUNCTION_BUDGET = 40  # lines
DIFF_BUDGET = {("reinforce", "a2c"): 246, ("a2c", "ppo_discrete"): 228,  # lines that differ
               ("ppo_discrete", "ppo_continuous"): 78, ("ppo_continuous", "trpo"): 318}

TEXT = {name: (ROOT / f"{name}.py").read_text() for name in NAMES}
PARTS = {name: sections(text) for name, text in TEXT.items()}
PAIRS = list(itertools.combinations(NAMES, 2))
TITLES = ["1. Hyperparameters", "2. Agent", "3. Rollout", "4. Advantages", "5. Objective",
          "6. Update", "7. Training"]
AGENT = {"ppo_discrete": "shared: discrete", "ppo_continuous": "shared: continuous"}
MEANT_TO_DIFFER = {"Hyperparameters", "Agent", "policy_loss", "update", "gradient_step", "train"}
WHOLE_EPISODES = {"Rollout", "collect_rollout", "Batch", "make_batch"}  # reinforce has its own
IMPORTS = {"numpy", "torch", "gymnasium", "tyro", "tqdm", *sys.stdlib_module_names}
IMPORTS_IN_FUNCTIONS = IMPORTS | {"wandb", "moviepy", "mujoco"}
ADVICE = "To see what would change if SCRIPT were right: python tests/sync.py SCRIPT"
needs_diff = pytest.mark.skipif(not shutil.which("diff"), reason="needs the command diff")
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="needs the command git")


def groups(name: str) -> list[str]:
    """The bracket of sections 1 to 7 that the design gives a script."""
    critic = "specific" if name == "reinforce" else "shared: actor-critic"
    ppo = "shared: ppo" if name.startswith("ppo_") else "specific"
    agent = AGENT.get(name, "shared: either")
    return ["specific", agent, critic, critic, ppo, ppo, "specific"]


def part_two(name: str) -> str:
    """The text from the rule that starts Part II to the end."""
    return PARTS[name]["Part II"][1]


def definitions(text: str) -> dict[str, str]:
    """Name → source of each function and class at the top level."""
    return {node.name: ast.get_source_segment(text, node) for node in ast.parse(text).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def explained(what: str, a: str, b: str, text_a: str, text_b: str) -> str:
    """What a failing test says about two texts that should be equal."""
    return "\n".join([f"{what} differs between {a}.py and {b}.py. {ADVICE}",
                      *difference(text_a, text_b, f"{a}.py", f"{b}.py")])


def lines_that_differ(a: str, b: str) -> int:
    """How many lines the command diff prints for two files of the repository."""
    out = subprocess.run(["diff", a, b], cwd=ROOT, capture_output=True, text=True).stdout
    return len(re.findall("^[<>]", out, re.MULTILINE))


# --------------------------------------------------------------------------------------------------
# The order of things
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_seven_sections_and_then_part_two(name):
    """Part I of every script has the same seven sections in the same order, and Part II follows."""
    assert list(PARTS[name]) == ["0", *TITLES, "Part II"]


@pytest.mark.parametrize("name", NAMES)
def test_part_two_goes_on_counting(name):
    """The sections of Part II are numbered from 8, and all five scripts share them."""
    banners = BANNER.findall(part_two(name))
    assert banners and [int(number) for number, _, _ in banners] == list(range(8, 8 + len(banners)))
    assert {group for _, _, group in banners} == {"shared: all five"}


@pytest.mark.parametrize("name", NAMES)
def test_banners_name_the_right_group(name):
    """The bracket in each banner of Part I is the one that the design gives."""
    assert [PARTS[name][title][0] for title in TITLES] == groups(name)


@pytest.mark.parametrize("name", NAMES)
def test_banners_are_as_wide_as_the_page(name):
    """Every line that looks like a banner is one, and it ends at column 100."""
    rules = re.findall("^# ═.*\n", TEXT[name], re.MULTILINE)
    banners = re.findall("^# ─.*\n", TEXT[name], re.MULTILINE)
    assert len(rules) == 2 and len(PART_TWO.findall(TEXT[name])) == 1
    assert banners == [banner[0] for banner in BANNER.finditer(TEXT[name])]
    assert [line for line in rules + banners if len(line) != 100 + len("\n")] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_script_opens_with_docstring_imports_legend(name):
    """Before section 1 there are a docstring, imports (among them what Ctrl-C does, if this is the
    program) and a comment of four lines, the same in all scripts: the legend, which says what Part
    I takes from Part II."""
    def legend(text):
        return text.rstrip("\n").split("\n\n")[-1].splitlines()

    text = PARTS[name]["0"][1]
    docstring, *imports = ast.parse(text).body
    assert isinstance(docstring, ast.Expr) and ast.get_docstring(ast.parse(text))
    others = [node for node in imports if not isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(node).splitlines()[0] for node in others] == ["if __name__ == '__main__':"]
    assert len(legend(text)) == 4 and all(line.startswith("# ") for line in legend(text))
    assert legend(text) == legend(PARTS[NAMES[0]]["0"][1])


@pytest.mark.parametrize("name", NAMES)
def test_train_is_section_seven(name):
    """train() is all that section 7 has, so it is the end of Part I."""
    tree = ast.parse(PARTS[name]["7. Training"][1])
    assert [getattr(node, "name", node) for node in tree.body] == ["train"]


# --------------------------------------------------------------------------------------------------
# What is the same
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("a, b", PAIRS)
def test_shared_sections_are_equal(a, b):
    """Sections of the same group are the same, byte for byte."""
    for title in TITLES:
        (group_a, text_a), (group_b, text_b) = PARTS[a][title], PARTS[b][title]
        if group_a == group_b != "specific":
            assert text_a == text_b, explained(f"section {title}", a, b, text_a, text_b)


@pytest.mark.parametrize("name", NAMES[1:])
def test_part_two_is_the_same(name):
    """Part II is the same in all scripts, byte for byte."""
    a, b = part_two(NAMES[0]), part_two(name)
    assert a == b, explained("Part II", NAMES[0], name, a, b)


@pytest.mark.parametrize("a, b", PAIRS)
def test_functions_of_one_name_are_equal(a, b):
    """A function or class of the same name is the same text, but for a few."""
    one, other = definitions(TEXT[a]), definitions(TEXT[b])
    differ = MEANT_TO_DIFFER | (WHOLE_EPISODES if "reinforce" in (a, b) else set())
    for name in (one.keys() & other.keys()) - differ:
        assert one[name] == other[name], "\n".join(difference(one[name], other[name], a, b))


@pytest.mark.parametrize("name", NAMES)
def test_training_differs_in_one_line(name):
    """Section 7 is the same but for the line that gives the Optimizer its sizes."""
    def without_sizes(name):
        return re.subn(r"Optimizer\(agent, args, .+\)  # for .+", "Optimizer(…)",
                       PARTS[name]["7. Training"][1])

    text, count = without_sizes(name)
    expected, _ = without_sizes(NAMES[0])
    assert count == 1
    assert text == expected, explained("section 7", NAMES[0], name, expected, text)


@pytest.mark.parametrize("name", NAMES)
def test_shared_text_does_not_name_its_file(name):
    """Shared text names its file by ALGORITHM only."""
    for title, (group, text) in PARTS[name].items():
        assert group == "specific" or f"{name}.py" not in text, title


def test_fields_of_one_name_agree():
    """A flag has the same type and the same help in every script, and has a help.

    But for target_kl: PPO may stop at it or not have it, TRPO's step is made of it.
    """
    seen = {}
    for script in SCRIPTS:
        source = inspect.getsource(script.Hyperparameters) + inspect.getsource(script.Args)
        for f in dataclasses.fields(script.Args):
            lines = re.findall(rf"^    {f.name}: (.+?) = .*?  # (.+)$", source, re.MULTILINE)
            assert len(lines) == 1, f"{script.__name__}: {f.name} needs one line, with its help"
            if (script.__name__, f.name) == ("trpo", "target_kl"):
                continue
            assert seen.setdefault(f.name, lines[0]) == lines[0], f.name


@each(SCRIPTS)
def test_args_are_the_hyperparameters_and_more(script):
    """Args adds the flags of Part II to the Hyperparameters of Part I, and changes none of them."""
    assert issubclass(script.Args, script.Hyperparameters)
    parts = script.Hyperparameters.__annotations__, script.Args.__annotations__
    assert all(parts) and not parts[0].keys() & parts[1].keys()


# --------------------------------------------------------------------------------------------------
# Sizes
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_budget_of_part_one(name):
    """The algorithm, from the first line to the end of train(), stays short enough to be read."""
    end = next(node.end_lineno for node in ast.parse(TEXT[name]).body
               if isinstance(node, ast.FunctionDef) and node.name == "train")
    assert end <= PART_ONE_BUDGET[name]


@pytest.mark.parametrize("name", NAMES)
def test_budget_of_part_two(name):
    """The rest, from its rule to the end of the file, does not grow."""
    lines = part_two(name).count("\n")
    assert lines <= PART_TWO_BUDGET


@pytest.mark.parametrize("name", NAMES)
def test_budget_of_a_function(name):
    """No function or method is longer than 40 lines, with its decorators and its docstring."""
    long = {}
    for node in ast.walk(ast.parse(TEXT[name])):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])
            if node.end_lineno - first + 1 > FUNCTION_BUDGET:
                long[node.name] = node.end_lineno - first + 1
    assert long == {}


@needs_diff
@pytest.mark.parametrize("a, b", [pair for pair in DIFF_BUDGET if set(pair) <= set(NAMES)])
def test_budget_of_the_difference(a, b):
    """The diff between neighbours on the ladder stays small enough to be the lecture."""
    assert lines_that_differ(f"{a}.py", f"{b}.py") <= DIFF_BUDGET[a, b]


@needs_diff
def test_sizes_of_the_diffs_in_the_readme():
    """The README's "diff a b  # n lines" are true."""
    said = re.findall(r"^diff (\S+) (\S+) +# (\d+) lines", (ROOT / "README.md").read_text(), re.M)
    assert len(said) == 4
    for a, b, lines in said:
        assert lines_that_differ(a, b) == int(lines), f"diff {a} {b}"


@each(SCRIPTS)
def test_lines_fit_the_page(script):
    """No line is longer than 100 characters."""
    long = [line for line in TEXT[script.__name__].splitlines() if len(line) > 100]
    assert long == []


# --------------------------------------------------------------------------------------------------
# Imports
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_imports(name):
    """Scripts import the standard library and a few packages, nothing of the repository, and some
    packages, such as wandb, in functions only."""
    tree = ast.parse(TEXT[name])
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            packages = [node.module]
        elif isinstance(node, ast.Import):
            packages = [alias.name for alias in node.names]
        else:
            continue
        allowed = IMPORTS if id(node) in top else IMPORTS_IN_FUNCTIONS
        assert {p.split(".")[0] for p in packages} <= allowed


def test_importing_has_no_side_effects(tmp_path):
    """Importing prints nothing, writes nothing and does not load wandb."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.dont_write_bytecode = True\n"
    code += "".join(f"import {name}\n" for name in NAMES) + "assert 'wandb' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_script_names_its_own_dependencies(name):
    """The inline metadata of a script (PEP 723) asks for the same as requirements.txt."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 does not read TOML")
    blocks = re.findall(r"^# /// script$\s((?:^#(?:| .*)$\s)+)^# ///$", TEXT[name], re.MULTILINE)
    assert len(blocks) == 1
    metadata = tomllib.loads("".join(line[2:] if line.startswith("# ") else line[1:]
                                     for line in blocks[0].splitlines(keepends=True)))
    lines = (line.split("#")[0].strip()
             for line in (ROOT / "requirements.txt").read_text().splitlines())
    assert metadata["dependencies"] == [line for line in lines if line]
    assert metadata["requires-python"] == ">=3.10"
    assert tomllib.loads((ROOT / "ruff.toml").read_text())["target-version"] == "py310"


# --------------------------------------------------------------------------------------------------
# The tool that carries shared text, sync.py
# --------------------------------------------------------------------------------------------------
def equal_scripts() -> dict[str, str]:
    """The scripts' texts, made equal where they share text: what a test below starts with."""
    texts = dict(TEXT)
    for source, other in itertools.permutations(NAMES, 2):
        texts[other] = synchronised(texts[source], texts[other])
    return texts


def with_a_line(text: str, title: str, line: str) -> str:
    """The script's text with one more line at the end of a section."""
    section = sections(text)[title][1]
    return text.replace(section, section.rstrip("\n") + f"\n{line}\n\n\n")


def git(folder, *arguments) -> None:
    """Run git there; it must succeed."""
    settings = ["user.name=test", "user.email=test@localhost", "commit.gpgsign=false"]
    flags = [flag for setting in settings for flag in ("-c", setting)]
    subprocess.run(["git", *flags, *arguments], cwd=folder, check=True, capture_output=True)


def sync(folder, *arguments) -> tuple[int, str]:
    """Exit code and output of the folder's copy of the tool."""
    done = subprocess.run([sys.executable, "tests/sync.py", *arguments], cwd=folder, text=True,
                          capture_output=True, encoding="utf-8",
                          env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    return done.returncode, done.stdout + done.stderr


def texts_in(folder) -> dict[str, str]:
    return {name: (folder / f"{name}.py").read_text() for name in NAMES}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Copies of the scripts, with equal shared text, and of the tool, outside any git checkout."""
    if NAMES != LADDER:
        pytest.skip("needs all five scripts")
    for variable in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "sync.py", tmp_path / "tests")
    for name, text in equal_scripts().items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@pytest.fixture
def checkout(folder):
    """The same as a git checkout in which all is committed."""
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "all")
    return folder


def add_line(folder, name: str, title: str, line: str) -> str:
    """Add a line to a section of a script there; returns the script's new text."""
    path = folder / f"{name}.py"
    path.write_text(with_a_line(path.read_text(), title, line))
    return path.read_text()


def test_sync_shows_without_writing(folder):
    """Without --write the tool prints the diff of what it would change, and writes nothing."""
    add_line(folder, "ppo_discrete", "4. Advantages", "SOLUTION = 42")
    before = texts_in(folder)
    code, out = sync(folder, "ppo_continuous")
    assert code == 0 and "\n-SOLUTION = 42\n" in out and "Nothing was written." in out
    code, out = sync(folder, "ppo_discrete")
    assert code == 0 and out.count("\n+SOLUTION = 42\n") == 3  # a2c, ppo_continuous, trpo
    assert texts_in(folder) == before


@needs_git
def test_sync_writes_shared_text_and_nothing_else(checkout):
    """With --write the others take the source's shared sections and its Part II, and keep what is
    their own."""
    own = add_line(checkout, "ppo_discrete", "1. Hyperparameters", "OWN = 1")
    agent = add_line(checkout, "a2c", "2. Agent", "EITHER = 2")  # the source has another section 2
    add_line(checkout, "ppo_discrete", "4. Advantages", "SPOILT = 3")
    add_line(checkout, "reinforce", "Part II", "SPOILT = 4")
    add_line(checkout, "ppo_continuous", "1. Hyperparameters", "OWN = 5")
    git(checkout, "commit", "-a", "-m", "changes")
    expected = texts_in(checkout) | {"ppo_discrete": own, "a2c": agent,
                                     "reinforce": equal_scripts()["reinforce"]}
    code, out = sync(checkout, "ppo_continuous.py", "--write")
    assert code == 0 and texts_in(checkout) == expected
    assert re.findall(r"^(\w+)\.py has taken", out, re.MULTILINE) == ["reinforce", "ppo_discrete"]


@needs_git
@pytest.mark.parametrize("state", ["edited", "staged", "untracked", "ignored"])
def test_sync_does_not_write_over_uncommitted_changes(checkout, state):
    """A script with something that git does not have committed is named and left as it is; the
    others are written, and the exit code is 1."""
    add_line(checkout, "a2c", "4. Advantages", "SPOILT = 1")
    add_line(checkout, "ppo_discrete", "4. Advantages", "SPOILT = 2")
    git(checkout, "commit", "-a", "-m", "changes")
    if state in ("untracked", "ignored"):
        git(checkout, "rm", "--cached", "ppo_discrete.py")
        (checkout / ".gitignore").write_text("ppo_discrete.py\n" if state == "ignored" else "")
        git(checkout, "add", ".gitignore")
        git(checkout, "commit", "-m", "ppo_discrete.py is here, but not in git")
    mine = add_line(checkout, "ppo_discrete", "1. Hyperparameters", "SOLUTION = 42")
    if state == "staged":
        git(checkout, "add", "ppo_discrete.py")
    code, out = sync(checkout, "ppo_continuous", "--write")
    assert code == 1 and "ppo_discrete.py is left as it is: it has changes" in out
    assert texts_in(checkout) == equal_scripts() | {"ppo_discrete": mine}


@needs_git
def test_sync_does_not_write_outside_a_checkout(folder):
    """Where no git has the old text, nothing is written."""
    mine = add_line(folder, "ppo_discrete", "4. Advantages", "SOLUTION = 42")
    code, out = sync(folder, "ppo_continuous", "--write")
    assert code == 1 and "ppo_discrete.py is left as it is: this is no git checkout" in out
    assert texts_in(folder) == equal_scripts() | {"ppo_discrete": mine}


@pytest.mark.parametrize("name, title", [
    ("reinforce", "2. Agent"), ("ppo_discrete", "6. Update"), ("trpo", "Part II")])
def test_sync_check_finds_a_difference(folder, name, title):
    """--check exits with 0 if all shared text is equal, else with 1, and it writes nothing."""
    assert sync(folder, "--check") == (0, "All shared text is equal.\n")
    add_line(folder, name, title, "SOLUTION = 42")
    before = texts_in(folder)
    code, out = sync(folder, "--check")
    assert code == 1 and "SOLUTION = 42" in out
    assert sync(folder, name, "--check")[0] == 1
    assert texts_in(folder) == before


@needs_git
@pytest.mark.parametrize("old, new", [("# ── 5. ", "# -- 5. "), ("# Part II: ", "# Part 2: ")])
def test_sync_does_not_guess_at_a_broken_banner(checkout, old, new):
    """Where a banner is missing, its section would pass for a part of the one before it: the tool
    names the script and does nothing."""
    path = checkout / "ppo_discrete.py"
    add_line(checkout, "ppo_discrete", "4. Advantages", "SPOILT = 1")
    path.write_text(path.read_text().replace(old, new))
    git(checkout, "commit", "-a", "-m", "a broken banner")
    before = texts_in(checkout)
    code, out = sync(checkout, "ppo_continuous", "--write")
    assert code == 2 and "ppo_discrete.py must have the banners" in out
    assert texts_in(checkout) == before


@pytest.mark.parametrize("arguments", [[], ["--write"], ["dqn"], ["trpo", "--write", "--check"]])
def test_sync_needs_a_source(folder, arguments):
    """Without the name of a script to take the text from, the tool says so and does nothing."""
    add_line(folder, "ppo_discrete", "4. Advantages", "SOLUTION = 42")
    before = texts_in(folder)
    code, out = sync(folder, *arguments)
    assert code == 2 and "sync.py: error:" in out and texts_in(folder) == before


def test_the_advice_is_safe(folder):
    """What a failing test advises, taken literally for any script, changes no file."""
    message = explained("section 4", "a2c", "trpo", "x = 1\n", "x = 2\n")
    command = re.search(r"python tests/sync\.py(.*)", message)[1].split()
    assert "\n-x = 1\n+x = 2" in message
    add_line(folder, "ppo_discrete", "4. Advantages", "SOLUTION = 42")
    before = texts_in(folder)
    for name in NAMES:
        assert sync(folder, *[word.replace("SCRIPT", name) for word in command])[0] == 0
    assert texts_in(folder) == before


# --------------------------------------------------------------------------------------------------
# The tests themselves
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/test_*.py")), ids=lambda path: path.stem)
def test_no_test_hides_another(path):
    """Of two tests of one name in a file only the second would run."""
    names = [node.name for node in ast.parse(path.read_text()).body
             if isinstance(node, ast.FunctionDef)]
    assert sorted(names) == sorted(set(names))
