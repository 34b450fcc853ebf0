"""How far the clock model is from published measurements that it was not fitted to.

Why: where clocks may not be set, energy over clocks is modelled; whoever reads it must know how
far off it may be. How: `harness/dvfs_errors.py`; the measurements are in `harness/published.py`.
Prints the table of `docs/energy.md`.

    python benchmarks/dvfs.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from exitbench.harness.dvfs_errors import error_table, model_error_words, model_errors
from exitbench.harness.files import write_json


def main() -> None:
    """Print the table, and write it where --json asks for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="changes nothing: it is quick")
    parser.add_argument("--json", type=Path, help="file to write the errors to")
    options = parser.parse_args()
    print("\n".join(error_table()))
    print(f"\n{model_error_words()}.")
    if options.json is not None:
        write_json(options.json, [asdict(each) for each in model_errors()])


if __name__ == "__main__":
    main()
