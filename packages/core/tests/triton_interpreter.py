"""Running test modules as scripts in which Triton kernels are interpreted on the CPU."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import Any


def run_interpreted(module: Path) -> Any:
    """What a module prints as JSON in its last line, run as a script in another process: Triton is
    interpreted in all of a process or not at all. All modules share that process, because importing
    PyTorch and its kin takes longer than most of what they do."""
    process = _interpreter()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{module}\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline() or '{"error": "the interpreter died"}')
    assert "error" not in answer, answer["error"]
    return json.loads(answer["printed"].splitlines()[-1])


@cache
def _interpreter() -> subprocess.Popen[str]:
    """Ends with this process, which closes its input."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__))],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _serve() -> None:
    """Run each module whose path comes in, and say what it printed, or how it failed."""
    for line in sys.stdin:
        module = Path(line.rstrip("\n"))
        sys.path.insert(0, str(module.parent))
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                runpy.run_path(str(module), run_name="__main__")
            answer = {"printed": printed.getvalue()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        sys.path.remove(str(module.parent))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
