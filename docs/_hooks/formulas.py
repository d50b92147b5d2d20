"""Formulas in the pages: LaTeX as GitHub shows it, turned into MathML, which browsers draw without a script or a font host.

A block is fenced as ```math, and a formula in a sentence is written $`…`$. A fence that shows code is left alone.
"""

import re
from typing import Any

from latex2mathml.converter import convert

_PARTS = re.compile(
    r"^```math\n(?P<block>.*?)\n```$|^(?P<fence>`{3,}).*?^(?P=fence)$|\$`(?P<inline>[^`\n]+)`\$",
    re.MULTILINE | re.DOTALL,
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with its formulas as MathML."""
    return _PARTS.sub(_replace, markdown)


def _replace(found: re.Match[str]) -> str:
    if found["fence"]:
        return found[0]
    formula = found["block"] or found["inline"]
    drawn = convert(" ".join(formula.split()), display="block" if found["block"] else "inline")
    drawn = re.sub(r"[|_*]", lambda sign: f"&#{ord(sign[0])};", drawn)  # which Markdown would take for its own
    return drawn if found["block"] else f"<span>{drawn}</span>"  # else one at the start of a line would be a block
