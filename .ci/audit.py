"""Are there known vulnerabilities in the packages of this environment? And which packages are these?

    python .ci/audit.py [--sbom build/sbom.json] [--url https://api.osv.dev]

Writes a CycloneDX bill of materials, then asks OSV for every version in it. Exit 0: none is known, or OSV was
not reached, which is said. Exit 1: some are; each is printed. Ids in ``.ci/accepted-vulnerabilities.txt``
(one a line, with the reason after ``#``) are printed and forgiven.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any

import httpx
from packaging.requirements import Requirement

US = "persona-monitor"
ACCEPTED = Path(__file__).with_name("accepted-vulnerabilities.txt")
SECONDS = 10.0


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> list[Distribution]:
    """Every package of the environment but ourselves, one of each name, by name."""
    found = {normal(one.metadata["Name"]): one for one in distributions() if one.metadata["Name"]}
    found.pop(US, None)
    return [found[name] for name in sorted(found)]


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> None:
    """Add to ``seen`` what ``name`` with ``extras`` needs to run, and what that needs."""
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:
        return
    for one in map(Requirement, requires):
        if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        key = normal(one.name), frozenset(one.extras)
        if key not in seen:
            seen.add(key)
            needed(*key, seen)


def bill(packages: Iterable[Distribution]) -> dict[str, Any]:
    """CycloneDX 1.6. ``required``: at run time; ``optional``: of extras, of development, or beside us."""
    seen: set[tuple[str, frozenset[str]]] = set()
    needed(US, frozenset(), seen)
    runs = {name for name, _ in seen}
    components = [
        {
            "type": "library",
            "bom-ref": purl(one),
            "name": one.metadata["Name"],
            "version": one.version,
            "purl": purl(one),
            "scope": "required" if normal(one.metadata["Name"]) in runs else "optional",
            **({"licenses": licences} if (licences := list(_licences(one))) else {}),
        }
        for one in packages
    ]
    content = json.dumps(components, sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": US, "version": distribution(US).version}
        },
        "components": components,
    }


def _licences(one: Distribution) -> Iterator[dict[str, Any]]:
    expression = one.metadata.get("License-Expression")
    if expression:
        yield {"expression": expression}


def purl(one: Distribution) -> str:
    return f"pkg:pypi/{normal(one.metadata['Name'])}@{one.version}"


def vulnerabilities(packages: list[Distribution], url: str) -> dict[str, list[str]]:
    """Ids by package and version; raises `httpx.HTTPError`, `ValueError` when OSV gives no whole answer."""
    queries = [{"package": {"purl": purl(one)}} for one in packages]
    answer = httpx.post(f"{url}/v1/querybatch", json={"queries": queries}, timeout=SECONDS)
    answer.raise_for_status()
    results = answer.json().get("results")
    if not isinstance(results, list) or len(results) != len(packages):
        raise ValueError("the answer does not have a result for every package")
    return {
        f"{one.metadata['Name']} {one.version}": [found["id"] for found in result["vulns"]]
        for one, result in zip(packages, results, strict=True)
        if result.get("vulns")
    }


def accepted() -> dict[str, str]:
    lines = ACCEPTED.read_text(encoding="utf-8").splitlines() if ACCEPTED.exists() else []
    pairs = (line.partition("#")[::2] for line in lines)
    return {
        vulnerability.strip(): why.strip() for vulnerability, why in pairs if vulnerability.strip()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sbom", type=Path, default=Path("build/sbom.json"))
    parser.add_argument("--url", default="https://api.osv.dev", help="OSV or a mirror of it")
    given = parser.parse_args()
    packages = installed()
    given.sbom.parent.mkdir(parents=True, exist_ok=True)
    given.sbom.write_text(json.dumps(bill(packages), indent=1) + "\n", encoding="utf-8")
    print(f"{len(packages)} packages with their versions: {given.sbom}")
    try:
        found = vulnerabilities(packages, given.url)
    except (httpx.HTTPError, ValueError) as error:
        print(
            f"NOT AUDITED: {given.url} was not reached ({type(error).__name__}), so nothing is known of "
            "vulnerabilities. Hold the bill of materials against OSV where it can be reached."
        )
        return 0
    forgiven, bad = accepted(), 0
    for package, ids in found.items():
        for vulnerability in ids:
            why = forgiven.get(vulnerability)
            bad += why is None
            print(
                f"{package}: {vulnerability}" + (f" (accepted: {why})" if why is not None else "")
            )
    print(f"audited {len(packages)} packages: {bad} vulnerabilities that are not accepted")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
