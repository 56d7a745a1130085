"""A thousand hostile files, or a hundred without `scripts/test.py --full`; see hostile.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

FULL = "SKINLESION_FULL"
FEW, ALL = 100, 1000


def test_hostile_files_give_a_right_result_or_one_clear_line(evaluated_run, tmp_path):
    count = ALL if os.environ.get(FULL) else FEW
    program = Path(__file__).with_name("hostile.py")
    command = [sys.executable, program, evaluated_run, tmp_path, str(count)]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stderr[-3000:]
    found = json.loads(asked.stdout.splitlines()[-1])
    print(found)
    assert found["wrong"] == []
    assert found["files"] == count
