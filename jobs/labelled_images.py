"""Every defence on labelled images (docs/results.md): the share of test images whose class is right, and stays so whatever r training images an attacker slips in or takes away.

    apt-get install dataset-fashion-mnist
    python jobs/labelled_images.py [--folder FOLDER] [--out FOLDER] [--only NAME] [--finished]

Records the files once, runs row after row as `mucd run` does, goes on where it was stopped, and writes the table. Constants were chosen on training images, or are the package's defaults.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("MINARI_DATASETS_PATH", str(Path("runs/datasets").resolve()))

from mucd_ray.cli import main as mucd
from mucd_ray.data.formats.minari import local_datasets
from mucd_ray.service.runs.summary import ACCURACY_RADII

TABLE_BEGINS, TABLE_ENDS = "<!-- Written by jobs/labelled_images.py -->", "<!-- End of what jobs/labelled_images.py writes -->"
HISTOGRAMS = "--features gradient-histograms"
# Name of a row: options of `mucd run`.
ROWS = {
    "neighbours-1000": f"--mechanism neighbours --neighbours 1000 {HISTOGRAMS}",
    "neighbours-1200": f"--mechanism neighbours --neighbours 1200 {HISTOGRAMS}",
    "neighbours-1400": f"--mechanism neighbours --neighbours 1400 {HISTOGRAMS}",
    "partition": f"--mechanism partition --parts 1000 --instances 1000 {HISTOGRAMS}",
    "bag": f"--mechanism bag --bag-size 120 --instances 1000 {HISTOGRAMS}",
    "neighbours-pixels": "--mechanism neighbours --neighbours 1200",
    "partition-pixels": "--mechanism partition --parts 1000 --instances 1000",
    "bag-pixels": "--mechanism bag --bag-size 120 --instances 1000",
}


def table(out: Path) -> tuple[int, str]:
    """(how many rows are finished, they as Markdown)."""
    lines = ["| `mucd run` with | " + " | ".join(f"r = {radius}" for radius in ACCURACY_RADII) + " | median r | largest r | confidence | hours |", "|" + "---|" * (len(ACCURACY_RADII) + 5)]
    for name, options in ROWS.items():
        if not (out / name / "row.json").exists():
            continue
        summary = json.loads((out / name / "row.json").read_text())
        shares, part = summary["certified_accuracy"], summary["action"]["per_state"]
        sure = "without chance" if summary["mechanism"]["kind"] in ("neighbours", "partition") else f"{100 * (1 - summary['eta']):g} %"
        lines.append(
            f"| `{options}` | " + " | ".join(f"{100 * shares[str(radius)]:.1f}" for radius in ACCURACY_RADII)
            + f" | {part['median_radius']:g} | {part['max_radius']} | {sure} | {summary['seconds'] / 3600:.2f} |"
        )
    return len(lines) - 2, "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="/usr/share/datasets/fashion-mnist", help="IDX or CIFAR-10 files (default: those of Debian's dataset-fashion-mnist)")
    parser.add_argument("--dataset", default="images/fashion-mnist-v0", help="id of the dataset to record")
    parser.add_argument("--out", default="runs/labelled", help="folder of the runs; finished rows there are kept")
    parser.add_argument("--only", action="append", default=[], choices=ROWS, help="this row; may be given several times")
    parser.add_argument("--finished", action="store_true", help="train nothing: write the table of the rows that are finished")
    parser.add_argument("--table", default="docs/results.md", help="file to write")
    options = parser.parse_args()
    out = Path(options.out)
    if not options.finished and options.dataset not in local_datasets() and (code := mucd(["record", "--idx", options.folder, "--dataset", options.dataset])):
        return code
    for name in [] if options.finished else options.only or ROWS:
        if not (out / name / "row.json").exists():
            began = time.monotonic()
            if code := mucd(["run", options.dataset, *ROWS[name].split(), "--storage", str(out / name)]):
                return code
            summary = json.loads((out / name / "summary.json").read_text())
            (out / name / "row.json").write_text(json.dumps(summary | {"seconds": time.monotonic() - began}, indent=1))
    file = Path(options.table)
    before, _, rest = (file.read_text() if file.exists() else "").partition(TABLE_BEGINS)
    rows, text = table(out)
    file.write_text(f"{before}{TABLE_BEGINS}\n\n{text}\n{TABLE_ENDS}{rest.partition(TABLE_ENDS)[2]}")
    print(f"{rows} rows in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
