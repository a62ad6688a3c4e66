"""How long until something is seen?  `bld --help`, a subcommand's help, `import bld`, against Python alone.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys

from measuring import in_turn, options, spread, table, write

COMMANDS = {
    "python alone": ["-c", "pass"],
    "import bld": ["-c", "import bld, sys; assert 'torch' not in sys.modules"],
    "bld --help": ["-m", "bld", "--help"],
    "bld sample --help": ["-m", "bld", "sample", "--help"],
    "bld info digits": ["-m", "bld", "info", "digits"],
}


def main() -> None:
    args = options(__doc__, rounds=9)
    calls = {
        name: lambda words=words: subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        for name, words in COMMANDS.items()
    }
    times = in_turn(calls, args.rounds)
    rows = [{"command": name, "seconds": spread(times[name])} for name in COMMANDS]
    table(rows)
    write(__file__, args.out, {"rows": rows})


if __name__ == "__main__":
    main()
