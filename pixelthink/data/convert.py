"""A conversion into the checked format as the tools do it: with a progress bar, a contact sheet and a summary."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pixelthink.data.base import SampleSource
from pixelthink.data.contact_sheet import draw_contact_sheet
from pixelthink.data.prepare import REJECTED, PrepareOptions, prepare
from pixelthink.data.sources.checked import Checked

CONTACT_SHEET = "contact_sheet.png"


def convert(source: SampleSource, output: str | Path, options: PrepareOptions, pictures: int) -> int:
    """Converts a source, draws a contact sheet and prints a summary; what `tools/prepare_data.py` does.

    Args:
        source: What to convert, set up.
        output: Folder of the data set.
        options: How.
        pictures: Samples on the contact sheet; 0 for none.

    Returns:
        The exit code: 0, or 1 where no sample could be used.
    """
    with tqdm(total=len(source), unit="sample", desc="converting", file=sys.stderr) as bar:
        summary = prepare(source, output, options, bar.update)
    _show(summary, Path(output))
    if not summary["samples"]:
        print(f"error: no sample could be used; {Path(output) / REJECTED} says why", file=sys.stderr)
        return 1
    if pictures:
        made = Checked(str(output))
        made.setup()
        count = min(pictures, len(made))
        draw_contact_sheet((made[i * len(made) // count] for i in range(count)), Path(output) / CONTACT_SHEET)
        print(f"look at {Path(output) / CONTACT_SHEET}")
    return 0


def _show(summary: dict[str, Any], output: Path) -> None:
    """Prints what there is."""
    spreads = {name: value for name, value in summary.items() if isinstance(value, dict) and "p50" in value}
    print(json.dumps({name: value for name, value in summary.items() if name not in spreads and value != {}}))
    for name, values in spreads.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    if summary["rejected"]:
        print(f"{summary['rejected']} rejected, with reasons in {output / REJECTED}")
