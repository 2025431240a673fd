"""Makes the bundled fonts from the upstream releases of Inter and JetBrains Mono.

Usage: python subset.py INTER_FOLDER MONO_FOLDER   (needs fonttools)

The folders hold Inter-Regular.otf and Inter-SemiBold.otf (Inter 3.19 line; Debian's fonts-inter) and
JetBrainsMono-Regular.ttf (2.242; Debian's fonts-jetbrains-mono).
Kept are Latin, Greek and Cyrillic letters, punctuation, figures, arrows and the signs that the window
writes. Ligatures go, so that what is typed is what is shown. Inter's figures become tabular, so that a
number that changes does not move its neighbours.
"""

import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

RANGES = [
    (0x20, 0x7E), (0xA0, 0x17F), (0x18F, 0x18F), (0x192, 0x192), (0x1A0, 0x1B0), (0x1E6, 0x1E7),
    (0x1FA, 0x21B), (0x259, 0x259), (0x2BC, 0x2DD), (0x300, 0x30C), (0x370, 0x3FF), (0x400, 0x45F),
    (0x490, 0x491), (0x1E80, 0x1E9E), (0x1EA0, 0x1EF9), (0x2009, 0x200A), (0x2010, 0x2027),
    (0x202F, 0x203A), (0x2044, 0x2044), (0x2070, 0x208E), (0x20AC, 0x20AC), (0x20BD, 0x20BD),
    (0x2113, 0x2122), (0x2150, 0x215E), (0x2190, 0x2199), (0x21B5, 0x21B5), (0x2200, 0x22A5),
    (0x2318, 0x232B), (0x23CE, 0x23CE), (0x2500, 0x259F), (0x25A0, 0x25CF), (0x2605, 0x2605),
    (0x2713, 0x2717), (0xFFFD, 0xFFFD),
]


def tabular_figures(font: TTFont) -> dict[str, str]:
    """The glyph that the font's own `tnum` feature puts in place of each figure."""
    table, swap = font["GSUB"].table, {}
    for record in table.FeatureList.FeatureRecord:
        if record.FeatureTag == "tnum":
            for index in record.Feature.LookupListIndex:
                for lookup in table.LookupList.Lookup[index].SubTable:
                    swap.update(getattr(lookup, "ExtSubTable", lookup).mapping)
    return swap


def make(source: Path, target: Path, tabular: bool) -> None:
    options = subset.Options()
    options.layout_features = ["kern", "mark", "mkmk", "ccmp", "locl"]
    options.hinting = True
    options.name_IDs = ["*"]
    options.notdef_outline = True
    font = TTFont(source)
    if tabular:
        swap = tabular_figures(font)
        for table in (table for table in font["cmap"].tables if table.isUnicode()):
            if table.isUnicode():
                for code in range(0x30, 0x3A):
                    # Two subtables may share one dictionary: a swapped figure stays as it is.
                    table.cmap[code] = swap.get(table.cmap.get(code), table.cmap.get(code))
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[code for first, last in RANGES for code in range(first, last + 1)])
    subsetter.subset(font)
    subset.save_font(font, target, options)
    print(target.name, target.stat().st_size, len(font.getBestCmap()))


def main() -> None:
    inter, mono = Path(sys.argv[1]), Path(sys.argv[2])
    here = Path(__file__).parent
    make(inter / "Inter-Regular.otf", here / "Inter-Regular.otf", True)
    make(inter / "Inter-SemiBold.otf", here / "Inter-SemiBold.otf", True)
    make(mono / "JetBrainsMono-Regular.ttf", here / "JetBrainsMono-Regular.ttf", False)


main()
