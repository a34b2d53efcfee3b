"""The README's table of drivers is what ``pycontainer drivers --table`` prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.rst"
MARK = "\n.. driver-table\n\n"


def test_the_table_is_up_to_date() -> None:
    table = subprocess.check_output([sys.executable, "-m", "pycontainer", "drivers", "--table"], text=True)
    _, mark, rest = README.read_text().partition(MARK)
    assert mark
    assert rest.partition("\n\n")[0].strip() == table.strip(), "put this into README.rst:\n" + table
