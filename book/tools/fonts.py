"""Make the web fonts of the site, book/_static/fonts: `python -m book.tools.fonts FOLDER`.

FOLDER holds the unpacked npm packages `source-serif` 4.5.1 and `@expo-google-fonts/jetbrains-mono` 0.4.1 (as
`source-serif` and `jetbrains-mono`) and DejaVu 2.37 (`dejavu`, Debian's fonts-dejavu-core). The tools come from
`pip install fonttools brotli`. Each face is cut down to what a book on this subject writes, and loses its name: a
changed font may not keep a reserved one. Signs that a face lacks come from DejaVu, in a file that is only fetched
where a page has such a sign; the ranges to put into book/_static/fonts.css are printed.
"""

import subprocess
import sys
from pathlib import Path

from fontTools.ttLib import TTFont

TARGET = Path(__file__).resolve().parents[1] / "_static" / "fonts"
LATIN = "20-7E A0-FF 106-107 10C-10D 110-111 11E-11F 130-131 141-144 150-153 158-15B 15D-161 170-171 178-17E 300-304 " \
        "307-308 394 2010-2014 2018-201E 2020-2022 2026 2030 2039-203A 20AC 2122"
GREEK = "391-3A1 3A3-3A9 3B1-3C9 3D5"
RAISED = "2B0 2B7 2E2 1D40 1D48-1D4D 1D62-1D65 2070-2071 2074-208E 2090-209C 2C7C 2153-2154 215B-215E"
SIGNS = "2016 2032-2033 2113 2190-2195 21D0-21D4 2200 2202-2209 220B 220F 2211-2213 2217-2218 221A 221D-221E " \
        "2225 2227-222B 223C 2243 2245 2248 2260-2261 2264-2265 226A-226B 2282-2287 2295-2299 229B 22C5-22C6 22EF " \
        "2308-230B 2500-2502 2588 25A0-25A1 25B2 25B6 25BC 25CB 25CF 2713"
FACES = {
    "text": "source-serif/TTF/SourceSerif4-Regular.ttf",
    "text-italic": "source-serif/TTF/SourceSerif4-It.ttf",
    "text-bold": "source-serif/TTF/SourceSerif4-Semibold.ttf",
    "code": "jetbrains-mono/400Regular/JetBrainsMono_400Regular.ttf",
}
FILLED = {"text-signs": ("text", "dejavu/DejaVuSans.ttf"), "code-signs": ("code", "dejavu/DejaVuSansMono.ttf")}


def wanted() -> set[int]:
    """The code points of a face."""
    ends = [part.split("-") for part in " ".join([LATIN, GREEK, RAISED, SIGNS]).split()]
    return {point for end in ends for point in range(int(end[0], 16), int(end[-1], 16) + 1)}


def ranges(points: set[int]) -> str:
    """Code points as `unicode-range` and pyftsubset write them."""
    runs: list[list[int]] = []
    for point in sorted(points):
        if runs and point == runs[-1][1] + 1:
            runs[-1][1] = point
        else:
            runs.append([point, point])
    return ", ".join(f"U+{a:X}" if a == b else f"U+{a:X}-{b:X}" for a, b in runs)


def subset(source: Path, name: str, points: set[int]) -> None:
    features = "kern,liga,mark,mkmk,ccmp,locl,tnum" if name.startswith("text") else "mark,mkmk,ccmp"
    subprocess.run([sys.executable, "-m", "fontTools.subset", source, f"--unicodes={ranges(points).replace(' ', '')}",
                    f"--layout-features={features}", "--name-IDs=0,13,14", "--no-hinting", "--drop-tables+=FFTM",
                    "--flavor=woff2", f"--output-file={TARGET / name}.woff2"], check=True)


def main(folder: Path) -> None:
    TARGET.mkdir(exist_ok=True)
    for name, source in FACES.items():
        subset(folder / source, name, wanted())
    for name, (face, source) in FILLED.items():
        missing = wanted() - set(TTFont(TARGET / f"{face}.woff2").getBestCmap())
        found = missing & set(TTFont(folder / source).getBestCmap())
        subset(folder / source, name, found)
        print(f"{name}: {ranges(found)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
