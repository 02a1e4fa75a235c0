"""Fail where the real data is there and a test that needs it was skipped."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "../shared/data"

skipped = [
    f"{case.get('classname')}::{case.get('name')}"
    for report in sys.argv[1:]
    for case in ElementTree.parse(report).iter("testcase")
    for skip in case.iter("skipped")
    if "shared/data" in (skip.get("message") or "")
]
if DATA.is_dir() and skipped:
    sys.exit("The real data is there, but these tests were skipped:\n" + "\n".join(skipped))
print(f"{len(skipped)} real-data tests skipped; the data is {'' if DATA.is_dir() else 'not '}there")
