"""bugs.py: each slip is found by the test that it names."""
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import bugs
import pytest
from conftest import ROOT

HARNESS = """if True:
    import os, sys
    import gymnasium, pytest, torch, tyro
    from torch.utils import tensorboard
    torch.set_num_threads(1)
    for line in sys.stdin:  # one bug each; forked, so that the imports are paid once
        path, like, test = line.split()
        child = os.fork()
        if not child:
            out = os.open(path + ".out", os.O_WRONLY | os.O_CREAT)
            os.dup2(out, 1)
            file, name = test.split("::")
            sys.argv = ["pytest", "-q", "-p", "no:cacheprovider", "-x", "tests/" + file,
                        "--script=" + path, "--like=" + like, "-k", name]
            code = pytest.main(sys.argv[1:])
            sys.stdout.flush()
            os._exit(code)
        os.waitpid(child, 0)
"""


def test_every_bug_is_found_by_its_test(tmp_path):
    lines = []
    for number, bug in enumerate(bugs.BUGS, 1):
        path = tmp_path / f"bug_{number:02}.py"
        path.write_text(bugs.text_of(number), "utf-8")
        lines.append(f"{path} {bug.script} {bug.test}\n")

    def run(lines):
        subprocess.run([sys.executable, "-c", HARNESS], input="".join(lines), text=True, cwd=ROOT,
                       check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, (lines[::2], lines[1::2])))
    for line in lines:
        path, _, test = line.split()
        with open(path + ".out") as file:
            out = file.read()
        assert f"FAILED tests/{test}" in out, f"{path}: {test} should fail: {out[-800:]}"


def test_there_are_25_bugs_with_hints():
    assert len(bugs.BUGS) >= 25 and len(set(bugs.BUGS)) == len(bugs.BUGS)
    assert all(bug.hint.endswith((".", ")")) and bug.right != bug.wrong for bug in bugs.BUGS)


def test_the_command(tmp_path, monkeypatch, capsys):
    """A number writes the file and does not tell; --solution tells; --list lists."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bugs.py", "7"])
    bugs.main()
    assert bugs.BUGS[6].wrong in (tmp_path / "bug_07.py").read_text("utf-8")
    assert capsys.readouterr().out.startswith("bug_07.py is a copy of ppo_discrete.py with one ")
    monkeypatch.setattr(sys, "argv", ["bugs.py", "--solution", "7"])
    bugs.main()
    assert bugs.BUGS[6].hint in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["bugs.py", "--list"])
    bugs.main()
    assert len(capsys.readouterr().out.splitlines()) == len(bugs.BUGS)
    monkeypatch.setattr(sys, "argv", ["bugs.py", "99"])
    with pytest.raises(SystemExit):
        bugs.main()
