"""Known vulnerabilities of the versions in constraints.txt, by pip-audit; `make lint` runs it.

    python scripts/audit.py

Ends with code 1 where one is found. Where the database cannot be reached, or an index that mirrors
PyPI does not carry it, that is said and is no failure.
"""

import json
import subprocess
import sys
from pathlib import Path

LOCKED = Path(__file__).parents[1] / "constraints.txt"
UNREACHABLE = ("ConnectionError", "ServiceError", "NameResolutionError", "timed out", "Max retries")
PATIENCE = 120  # seconds


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCKED), "--no-deps"]
    command += ["--disable-pip", "--progress-spinner", "off", "--format", "json"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return _skipped(f"no answer within {PATIENCE} s")
    try:
        answers = json.loads(found.stdout)["dependencies"]
    except (ValueError, KeyError):
        if any(word in found.stderr for word in UNREACHABLE):
            return _skipped(found.stderr.strip().splitlines()[-1][:200])
        print(found.stderr, file=sys.stderr)
        return 1
    known = [each for each in answers if "vulns" in each]
    if not known:
        return _skipped(f"it knows none of {len(answers)} packages")
    bad = [(each, one) for each in known for one in each["vulns"]]
    for each, one in bad:
        fixed = ", ".join(one["fix_versions"]) or "no version yet"
        print(f"audit: {each['name']} {each['version']}: {one['id']}, fixed in {fixed}")
    print(f"audit: {len(known)} of {len(answers)} packages looked up, {len(bad)} vulnerabilities")
    return int(bool(bad))


def _skipped(why: str) -> int:
    print(f"audit: skipped, since the database of vulnerabilities was not reached ({why})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
