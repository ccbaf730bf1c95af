"""Make the shared sections of the scripts equal again: python tests/sync.py [--check]

A section's banner says which scripts share it ("[shared: actor-critic]"). For every such group the
first script of SOURCES that carries it is the source of truth; the others get its text. Edit there,
then run this. --check only reports, and exits with 1 if something differs.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["ppo_continuous", "ppo_discrete", "trpo", "a2c", "reinforce"]
BANNER = re.compile(r"^# =+\n# (\d+)\. (.+?)    \[(.+)\]\n# =+\n", re.MULTILINE)


def sections(text: str) -> dict[str, tuple[str, str]]:
    """Title → (group, text from its banner to the next). "0" is what precedes the first banner."""
    banners = list(BANNER.finditer(text))
    starts = [b.start() for b in banners] + [len(text)]
    parts = {"0": ("specific", text[:starts[0]])}
    for banner, start, end in zip(banners, starts, starts[1:]):
        parts[f"{banner[1]}. {banner[2]}"] = banner[3], text[start:end]
    return parts


def last_line_kept(text: str) -> str:
    """Sections end in two blank lines, the last section of a file in none."""
    return text.rstrip("\n") + "\n"


def synchronised(scripts: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Texts by name → the same with shared sections made equal, and what was changed."""
    truth, changed, result = {}, [], dict(scripts)
    for name in [n for n in SOURCES if n in scripts]:
        parts = sections(scripts[name])
        for title, (group, text) in parts.items():
            if not group.startswith("shared"):
                continue
            source, wanted = truth.setdefault((title, group), (name, last_line_kept(text)))
            if last_line_kept(text) != wanted:
                ending = text[len(text.rstrip("\n")):]
                parts[title] = group, wanted.rstrip("\n") + ending
                changed.append(f"{name}.py: section {title} taken from {source}.py")
        result[name] = "".join(text for _, text in parts.values())
    return result, changed


def main() -> None:
    paths = {name: ROOT / f"{name}.py" for name in SOURCES if (ROOT / f"{name}.py").exists()}
    result, changed = synchronised({name: path.read_text() for name, path in paths.items()})
    check = "--check" in sys.argv[1:]
    if not check:
        for name, path in paths.items():
            if path.read_text() != result[name]:
                path.write_text(result[name])
    print("\n".join(changed) or "all shared sections are equal")
    sys.exit(int(check and bool(changed)))


if __name__ == "__main__":
    main()
