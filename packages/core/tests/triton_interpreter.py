"""Running a test module as a script in which Triton kernels are interpreted on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_interpreted(module: Path) -> Any:
    """What a module prints as JSON in its last line, in a process of its own: Triton is interpreted
    in all of a process or not at all."""
    folders = os.pathsep.join([str(module.parent), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, str(module)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": folders},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
