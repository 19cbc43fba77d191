"""The operators' pages: links lead somewhere, settings, log fields and paths that they name exist."""

import re

from sources import ROOT, fail, rust, settings

PAGES = ["docs/runbook.md", "docs/operations.md"]


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


problems = []
# Tests and the compose file have variables of their own.
known = settings() | set(re.findall(r'"(POSTRIDER_\w+)"', rust("tests/suite")))
known |= set(re.findall(r"\$\{(POSTRIDER_\w+)", (ROOT / "docker-compose.yml").read_text()))
fields = set(re.findall(r"\b\w+\.\w+\b(?= = )", rust("crates")))
keys = {name.removeprefix("POSTRIDER_").lower().replace("__", ".") for name in known}
sections = {key.split(".")[0] for key in keys if "." in key}
for page in PAGES:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists():
            problems.append(f"{page}: no {link}")
        elif anchor and anchor not in anchors(target.read_text()):
            problems.append(f"{page}: no section {link}")
    problems += [f"{page}: no setting {name}" for name in re.findall(r"\bPOSTRIDER_[A-Z_]+\b", text) if name not in known]
    for section, key in re.findall(r"`(\w+)\.([a-z_]+)`", text):
        if section in sections and f"{section}.{key}" not in keys | fields:
            problems.append(f"{page}: no setting {section}.{key}")
    problems += [f"{page}: no file {path}" for path in re.findall(r"`((?:deploy|docs|tests)/[\w./-]+)`", text) if not (ROOT / path).exists()]
fail(*problems)
