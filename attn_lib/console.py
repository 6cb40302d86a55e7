"""Text on consoles that cannot write every sign, such as those in code page 1252 or GBK."""

import sys

# What is written in place of a sign that is missing; any other becomes a question mark.
_PLAIN = {"→": "->", "µ": "u", "μ": "mu", "σ": "sigma", "×": "x", "±": "+/-", "–": "-", "−": "-", "·": "*", "′": "'",
          "²": "^2", "³": "^3", "≤": "<=", "≥": ">=", "…": "...", "’": "'", "Δ": "D"}


def printable(text: str) -> str:
    """`text` as it is where the standard output can write it, else with plain signs: "3 µs → 2 µs", "3 us -> 2 us".

    For whatever is made to be printed, since `print` raises UnicodeEncodeError at a sign that the console lacks.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # a notebook's, a file's; some streams have none
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_written(sign, encoding) for sign in text)
    return text


def _written(sign: str, encoding: str) -> str:
    for candidate in (sign, _PLAIN.get(sign, "?")):
        try:
            candidate.encode(encoding)
        except UnicodeEncodeError:
            continue
        return candidate
    return "?"
