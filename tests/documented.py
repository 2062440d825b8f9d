"""The commands that README.md, CONTRIBUTING.md, the pages of docs/ and the experiments show."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROGRAMS = "python|source|make|torchrun|sbatch|pip|pre-commit|curl|xxhsum|git|conda|wandb|uv"
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ +)*(?:\.venv/bin/)?(?:{PROGRAMS})(?= |$)")
# Languages of fenced blocks that hold no commands: tests run the Python and apply the changes.
OTHER = ("python", "diff", "mermaid", "yaml")


def blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """The code blocks of a page, fenced or indented by four spaces: language, lines."""
    language, lines, fenced = "", [], False
    for line in [*text.splitlines(), ""]:
        if line.startswith("```"):
            if lines:
                yield language, lines
            language, lines, fenced = line[3:], [], not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.removeprefix("" if fenced else "    "))
        elif lines:
            yield "", lines
            lines = []


def commands_of(path: Path) -> Iterator[str]:
    """The commands of a page, those amid its text and tables too, or of an experiment's head."""
    text = path.read_text()
    if path.suffix == ".yaml":
        lines = (line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        yield from filter(COMMAND.match, lines)
        return
    for language, lines in blocks(text):
        if language not in OTHER:
            shown = [re.sub(r"(^|\s+)#\s.*", "", line) for line in lines]
            yield from filter(COMMAND.match, shown)
    prose = re.sub(r"^```(?s:.*?)^```$|^    .*$", "", text, flags=re.MULTILINE)
    # A program's name alone is talk.
    yield from (c for c in re.findall(r"`([^`]+)`", prose) if COMMAND.match(c) and " " in c)


def commands() -> list[str]:
    """All of them, each once."""
    experiments = sorted((ROOT / "configs" / "experiment").glob("*.yaml"))
    return sorted(
        {" ".join(c.split()) for path in [*PAGES, *experiments] for c in commands_of(path)}
    )
