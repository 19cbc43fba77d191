"""What the source code says exists: settings, metrics, options of the command line."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def fail(*problems: str) -> None:
    """Prints the problems, if there are any, and ends the check."""
    if problems:
        sys.exit("\n".join(f"  {problem}" for problem in problems))


def rust(path: str) -> str:
    return "\n".join(file.read_text() for file in sorted((ROOT / path).rglob("*.rs")))


def settings() -> set[str]:
    """Every environment variable: sections and fields as `settings!` declares them, and the commands' own."""
    names: set[str] = set()
    for file in sorted((ROOT / "crates/config/src/sections").glob("*.rs")):
        section = None
        for line in file.read_text().splitlines():
            if found := re.match(r'\s*\w+ in "(\w*)" \{', line):
                section = found[1]
            elif line.startswith("}") or re.match(r"\s*with \{", line):
                section = None
            elif section is not None and (found := re.match(r"        (\w+): [^=]+= ", line)):
                key = f"{section}__{found[1]}" if section else found[1]
                names.add(f"POSTRIDER_{key.upper()}")
    known = re.search(r"OTHER_VARIABLES: [^=]*= \[(.*?)\];", rust("crates/config/src/load"), re.S)
    names |= set(re.findall(r'"(POSTRIDER_\w+)"', known[1])) if known else set()
    if len(names) < 50:
        fail(f"only {len(names)} settings found in crates/config: has their form changed?")
    return names


def metrics() -> set[str]:
    """Every series name that a process exports, with the suffixes of histograms. A test keeps the page fresh."""
    page = (ROOT / "docs/metrics.md").read_text()
    names: set[str] = set()
    for name, kind in re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram|info) \|", page, re.M):
        names |= series(name, kind)
    if len(names) < 40:
        fail(f"only {len(names)} metrics found in docs/metrics.md: has its form changed?")
    return names


def series(name: str, kind: str) -> set[str]:
    return {name + suffix for suffix in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}


def routes() -> str:
    """The source of the routes of health checks."""
    return rust("crates/gateway/src") + rust("crates/postrider/src")
