"""--script: the tests of a script, run on a copy of it."""
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from marker import nearest


def mark(path, *flags, tests=("-k", "gae")):
    """The exit code and the output of the tests of advantages on this file."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests,
                           *flags, f"--script={path}"], cwd=ROOT, text=True, capture_output=True,
                          timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["ppo_discrete", "trpo"])
def test_an_unchanged_copy_passes(name, tmp_path):
    """Under any name, in any folder; of which script it is a copy, its text tells."""
    (tmp_path / "my homework.py").write_bytes((ROOT / f"{name}.py").read_bytes())
    code, out = mark(tmp_path / "my homework.py")
    assert code == 0 and " passed" in out, out


def test_two_words_will_do(tmp_path):
    """`--script my_ppo.py`, without =, for a copy beside its origin, as most are."""
    copy = ROOT / "runs" / f"copy_{tmp_path.name}.py"  # a folder that git ignores
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes((ROOT / "a2c.py").read_bytes())
    try:
        done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k",
                               "lambda_0", "--script", copy], cwd=ROOT, capture_output=True)
    finally:
        copy.unlink()
    out = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0 and "is tested as a copy of a2c.py" in out, out


def test_a_slip_is_found(tmp_path):
    """dones[t+1] with a rollout that stores done after the step: found, with what should hold."""
    text = (ROOT / "a2c.py").read_text()
    old = "advantages[t] += decay[t] * advantages[t + 1]"
    assert text.count(old) == 1
    (tmp_path / "mine.py").write_text(text.replace(old, old.replace("decay[t]", "decay[t + 1]")))
    code, out = mark(tmp_path / "mine.py", "--like", "a2c")
    assert code == 1 and "What should hold" in out and "ppo" not in out, out


def test_an_unchanged_copy_of_reinforce_passes(tmp_path):
    """It has neither rollouts of T steps nor GAE, so tests of runs may forget it."""
    (tmp_path / "mine.py").write_bytes((ROOT / "reinforce.py").read_bytes())
    code, out = mark(tmp_path / "mine.py", tests=("tests/test_runs.py", "tests/test_reinforce.py"))
    assert code == 0 and " passed" in out, out


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs Unix")
def test_a_loop_without_an_end_is_found(tmp_path):
    text = (ROOT / "a2c.py").read_text()
    old = "    deltas = rewards + gamma * next_values * ~terminated.bool() - values\n"
    assert text.count(old) == 1
    (tmp_path / "mine.py").write_text(text.replace(old, old + "    while True:\n        pass\n"))
    code, out = mark(tmp_path / "mine.py", "--seconds", "1", "-x")
    assert code == 1 and "is there a loop that does not end?" in out, out


def test_the_nearest_script():
    for name in ("reinforce", "ppo_continuous"):
        text = (ROOT / f"{name}.py").read_text()
        assert nearest(text.replace("gamma", "discount").split("# Part II: the run")[0]) == name


def test_no_such_file_or_script(tmp_path):
    code, out = mark(tmp_path / "nothing.py")
    assert code == 4 and "there is no such file" in out
    (tmp_path / "mine.py").write_text("")
    code, out = mark(tmp_path / "mine.py", "--like", "dqn")
    assert code == 4 and "must be one of reinforce" in out
