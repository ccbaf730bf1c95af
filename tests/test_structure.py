"""Five scripts, one shape: shared sections are equal, nothing is imported from the repository."""
import ast
import dataclasses
import difflib
import inspect
import itertools
import re
import shutil
import subprocess
import sys

import pytest
from conftest import NAMES, ROOT, SCRIPTS, each
from sync import last_line_kept, sections, synchronised

TEXT = {name: (ROOT / f"{name}.py").read_text() for name in NAMES}
PARTS = {name: sections(text) for name, text in TEXT.items()}
PAIRS = list(itertools.combinations(NAMES, 2))
ALL = "shared: all five"
AGENT = {"ppo_discrete": "shared: discrete", "ppo_continuous": "shared: continuous"}
MEANT_TO_DIFFER = {"Args", "Agent", "policy_loss", "update", "make_optimizer", "gradient_step"}
WHOLE_EPISODES = {"Rollout", "collect_rollout", "Batch", "make_batch"}  # reinforce has its own
BUDGET = {("reinforce", "a2c"): 270, ("a2c", "ppo_discrete"): 250,  # lines that differ
          ("ppo_discrete", "ppo_continuous"): 85, ("ppo_continuous", "trpo"): 365}
IMPORTS = {"numpy", "torch", "gymnasium", "tyro", "tqdm", *sys.stdlib_module_names}
IMPORTS_IN_FUNCTIONS = IMPORTS | {"wandb", "mujoco"}


def groups(name: str) -> list[str]:
    """The bracket of sections 1 to 9 that the design gives a script."""
    critic = "specific" if name == "reinforce" else "shared: actor-critic"
    ppo = "shared: ppo" if name.startswith("ppo_") else "specific"
    return ["specific", ALL, AGENT.get(name, "shared: either"), critic, critic, ppo, ppo, ALL, ALL]


def difference(a: str, b: str, name_a: str, name_b: str) -> list[str]:
    return list(difflib.unified_diff(a.splitlines(), b.splitlines(), name_a, name_b, "", "", 1, ""))


@pytest.mark.parametrize("name", NAMES)
def test_nine_sections_in_order(name):
    """Every script has the sections 1..9 with the same titles in the same order."""
    titles = list(PARTS[name])[1:]
    assert [int(title.split(".")[0]) for title in titles] == list(range(1, 10))
    assert titles == list(PARTS[NAMES[0]])[1:]


@pytest.mark.parametrize("name", NAMES)
def test_banners_name_the_right_group(name):
    """The bracket in each banner is the one that the design gives."""
    assert [group for group, _ in list(PARTS[name].values())[1:]] == groups(name)


@pytest.mark.parametrize("a, b", PAIRS)
def test_shared_sections_are_equal(a, b):
    """Sections of the same group are the same, byte for byte."""
    for title in PARTS[a]:
        (group_a, text_a), (group_b, text_b) = PARTS[a][title], PARTS[b][title]
        if group_a == group_b != "specific":
            diff = difference(last_line_kept(text_a), last_line_kept(text_b), f"{a}.py", f"{b}.py")
            assert not diff, "\n".join([f"section {title} differs; repair it with: "
                                        "python tests/sync.py", *diff])


@pytest.mark.parametrize("a, b", PAIRS)
def test_functions_of_one_name_are_equal(a, b):
    """A function or class of the same name is the same text, but for a few."""
    def definitions(name):
        return {node.name: ast.get_source_segment(TEXT[name], node)
                for node in ast.parse(TEXT[name]).body
                if isinstance(node, (ast.FunctionDef, ast.ClassDef))}

    one, other = definitions(a), definitions(b)
    differ = MEANT_TO_DIFFER | (WHOLE_EPISODES if "reinforce" in (a, b) else set())
    for name in (one.keys() & other.keys()) - differ:
        assert one[name] == other[name], "\n".join(difference(one[name], other[name], a, b))


@pytest.mark.parametrize("a, b", [pair for pair in BUDGET if set(pair) <= set(NAMES)])
def test_budget_of_the_difference(a, b):
    """The diff between neighbours stays small enough to be the lecture."""
    lines = [x for x in difference(TEXT[a], TEXT[b], a, b)[2:] if x[0] in "+-"]
    assert len(lines) <= BUDGET[a, b]


@pytest.mark.skipif(not shutil.which("diff"), reason="needs the command diff")
def test_sizes_of_the_diffs_in_the_readme():
    """The README's "diff a b  # n lines" are true."""
    said = re.findall(r"^diff (\S+) (\S+) +# (\d+) lines", (ROOT / "README.md").read_text(), re.M)
    assert len(said) == 4
    for a, b, lines in said:
        out = subprocess.run(["diff", a, b], cwd=ROOT, capture_output=True, text=True).stdout
        assert len(re.findall("^[<>]", out, re.M)) == int(lines), f"diff {a} {b}"


@pytest.mark.parametrize("name", NAMES)
def test_shared_text_does_not_name_its_file(name):
    """A shared section names its file by ALGORITHM only."""
    for title, (group, text) in PARTS[name].items():
        assert group == "specific" or f"{name}.py" not in text, title


@pytest.mark.parametrize("name", NAMES)
def test_imports(name):
    """Standard library and a few packages, nothing of the repository; wandb in functions only."""
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


def test_fields_of_one_name_agree():
    """A field of Args has the same type and the same help in every script, and has a help.

    But for target_kl: PPO may stop at it or not have it, TRPO's step is made of it.
    """
    seen = {}
    for script in SCRIPTS:
        source = inspect.getsource(script.Args)
        for f in dataclasses.fields(script.Args):
            line = re.search(rf"^    {f.name}: (.+?) = .*?  # (.+)$", source, re.MULTILINE)
            assert line, f"{script.__name__}: {f.name} has no help comment on its line"
            if (script.__name__, f.name) == ("trpo", "target_kl"):
                continue
            assert seen.setdefault(f.name, line.groups()) == line.groups(), f.name


def test_importing_has_no_side_effects(tmp_path):
    """Importing prints nothing, writes nothing and does not load wandb."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.dont_write_bytecode = True\n"
    code += "".join(f"import {name}\n" for name in NAMES) + "assert 'wandb' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not list(tmp_path.iterdir())


@each(SCRIPTS)
def test_lines_fit_the_page(script):
    """No line is longer than 100 characters."""
    assert max(map(len, TEXT[script.__name__].splitlines())) <= 100


def test_sync_repairs_a_difference():
    """The tool brings a changed shared section back, and touches nothing else."""
    a, b = "ppo_continuous", "ppo_discrete"
    if not {a, b} <= set(NAMES):
        pytest.skip("needs both PPO scripts")
    scripts = synchronised({a: TEXT[a], b: TEXT[b]})[0]
    spoilt = scripts[b].replace("(1 − done_t)", "(1 − terminated_t)").replace("CartPole", "Other")
    repaired, changed = synchronised({a: scripts[a], b: spoilt})
    assert len(changed) == 1 and "5. Advantages" in changed[0]
    assert repaired == {a: scripts[a], b: scripts[b].replace("CartPole", "Other")}


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/test_*.py")), ids=lambda path: path.stem)
def test_no_test_hides_another(path):
    """Of two tests of one name in a file only the second would run."""
    names = [node.name for node in ast.parse(path.read_text()).body
             if isinstance(node, ast.FunctionDef)]
    assert sorted(names) == sorted(set(names))
