"""Carry the text that scripts share from one of them to the others.

    python tests/sync.py ppo_continuous            show what would change in the others
    python tests/sync.py ppo_continuous --write    change them
    python tests/sync.py --check                   exit with code 1 if shared text differs anywhere

The banner of a section says which scripts share it, as in "[shared: actor-critic]". The script that
you name is the source: the others take its shared sections, where they have them, and its Part II.
Without --write nothing is written. With it, a script that has changes which are not committed in
git is named and left as it is, and the exit code is 1.
"""
import argparse
import difflib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LADDER = ["reinforce", "a2c", "ppo_discrete", "ppo_continuous", "trpo"]
BANNER = re.compile(r"^# ── (\d+)\. (.+?) \[(.+?)\] ─+\n", re.MULTILINE)
PART_TWO = re.compile(r"^# ═+\n# Part II: .+\n# ═+\n", re.MULTILINE)
ORDER = ["0", "1", "2", "3", "4", "5", "6", "7", "Part II"]


def sections(text: str) -> dict[str, tuple[str, str]]:
    """Title → (group, text from its banner to the next). "0" is what precedes the first banner,
    "Part II" is all that follows its rule, with the rule."""
    rule = PART_TWO.search(text)
    end = rule.start() if rule else len(text)
    banners = list(BANNER.finditer(text, 0, end))
    starts = [banner.start() for banner in banners] + [end]
    parts = {"0": ("specific", text[:starts[0]])}
    for banner, first, last in zip(banners, starts, starts[1:]):
        parts[f"{banner[1]}. {banner[2]}"] = banner[3], text[first:last]
    if rule:
        parts["Part II"] = "shared: all five", text[end:]
    return parts


def synchronised(source: str, target: str) -> str:
    """The target's text, with the source's in the sections that both share."""
    theirs = sections(source)
    result = []
    for title, (group, text) in sections(target).items():
        shared = group.startswith("shared") and theirs.get(title, ("", ""))[0] == group
        result.append(theirs[title][1] if shared else text)
    return "".join(result)


def difference(a: str, b: str, name_a: str, name_b: str) -> list[str]:
    """The lines of a unified diff; none if the texts are equal."""
    return list(difflib.unified_diff(a.splitlines(), b.splitlines(), name_a, name_b, "", "", 1, ""))


def why_not_to_write(path: Path) -> str:
    """The reason for which the file must stay as it is, or "" if git has all that is in it."""
    try:
        status = subprocess.run(["git", "status", "--porcelain", "--ignored", "--", path.name],
                                cwd=path.parent, capture_output=True)
    except FileNotFoundError:
        return "git is not installed, so its text is perhaps saved nowhere else"
    if status.returncode:
        return "this is no git checkout, so its text is perhaps saved nowhere else"
    return "it has changes that are not committed in git" if status.stdout else ""


def carry(source: str, targets: list[str], write: bool) -> tuple[int, int]:
    """Show, or write, what the targets would take from the source. Returns how many scripts
    differ, and how many of them could not be written."""
    text, differ, left = (ROOT / f"{source}.py").read_text("utf-8"), 0, 0
    for path in [ROOT / f"{name}.py" for name in targets]:
        before = path.read_text("utf-8")
        after = synchronised(text, before)
        if before == after:
            continue
        differ += 1
        reason = why_not_to_write(path) if write else ""
        if reason:
            left += 1
            print(f"{path.name} is left as it is: {reason}.")
        elif write:
            path.write_text(after, "utf-8")
            print(f"{path.name} has taken the shared text of {source}.py.")
        else:
            print(*difference(before, after, path.name, f"{path.name} with the shared text of "
                              f"{source}.py"), sep="\n")
    return differ, left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", nargs="?", help="the script whose shared text is right")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--write", action="store_true", help="change the other scripts")
    modes.add_argument("--check", action="store_true", help="exit with code 1 if something differs")
    args = parser.parse_args()
    names = [name for name in LADDER if (ROOT / f"{name}.py").exists()]
    for name in names:  # else a section might be taken for a part of the one before it
        titles = sections((ROOT / f"{name}.py").read_text("utf-8"))
        if [title.split(".")[0] for title in titles] != ORDER:
            parser.error(f"{name}.py must have the banners of sections 1 to 7 and then that of "
                         f"Part II, but it has: {', '.join(list(titles)[1:])}")
    if args.script is None and args.check:
        pairs = [(name, names[i + 1:]) for i, name in enumerate(names)]
    elif args.script is None:
        parser.error("name the script whose shared text the others should take")
    else:
        source = args.script.removesuffix(".py")
        if source not in names:
            parser.error(f"{args.script} is not one of {', '.join(names)}")
        pairs = [(source, [name for name in names if name != source])]
    counts = [carry(source, targets, args.write) for source, targets in pairs]
    differ, left = map(sum, zip(*counts))
    if not differ:
        print("All shared text is equal.")
    elif not args.write:
        print("Nothing was written.")
    sys.exit(int(bool(left or (args.check and differ))))


if __name__ == "__main__":
    main()
