"""Charts inside a page: SVG as elements, so that they can be pointed at, filtered and printed.

The page's policy lets no style attribute act, so that styles become presentation attributes. What
is not known to be harmless is left out, and names get the chart's name before them, since all
charts of a page share one space of names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from markupsafe import Markup

ELEMENTS = {
    *("svg", "g", "defs", "use", "clipPath", "title", "path", "rect", "circle", "ellipse"),
    *("line", "polyline", "polygon", "text", "tspan", "image", "marker", "pattern"),
}
ATTRIBUTES = {
    *("id", "d", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "rx", "ry", "dx", "dy"),
    *("width", "height", "points", "viewBox", "transform", "clip-path", "href", "role"),
    *("preserveAspectRatio", "patternUnits", "clipPathUnits", "orient", "refX", "refY"),
}
STYLES = {
    *("fill", "fill-opacity", "fill-rule", "opacity", "stroke", "stroke-width", "stroke-opacity"),
    *("stroke-dasharray", "stroke-dashoffset", "stroke-linecap", "stroke-linejoin"),
    *("stroke-miterlimit", "font-family", "font-size", "font-style", "font-weight"),
    *("text-anchor", "dominant-baseline", "image-rendering", "visibility", "display"),
    "letter-spacing",
}
# what charts call the marks of a method: m-METHOD-NUMBER
MARK = re.compile(r"m-(?P<method>.+)-\d+")
COORDINATES = ("d", "points", "x", "y", "width", "height")
WIDE = 420.0  # points, from which on a chart scrolls on a narrow screen


def inline(path: Path, name: str, alt: str) -> Markup:
    """A chart's SVG as it stands in a page.

    Args:
        path: Of an SVG file.
        name: Of the chart, different from that of all others in the page.
        alt: What the chart shows, for who cannot see it.

    Returns:
        The element; marks of a method have `data-method`, the method's name as in its id.
    """
    from markupsafe import Markup

    root = _cleaned(ElementTree.parse(path).getroot(), name)
    assert root is not None
    wide = float(root.get("viewBox", "0 0 0 0").split()[2]) > WIDE
    root.attrib.pop("height", None)
    root.set("class", "chart wide" if wide else "chart")
    root.set("role", "img")
    root.set("aria-label", alt)
    root.set("tabindex", "0")
    # matplotlib says these of all elements, in a style sheet
    root.set("stroke-linejoin", "round")
    root.set("stroke-linecap", "butt")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _cleaned(element: Element, name: str) -> Element | None:
    """A copy of what is known to be harmless, without namespaces; None where nothing is."""
    tag = element.tag.rpartition("}")[2]
    if tag not in ELEMENTS:
        return None
    copy = ElementTree.Element(tag)
    for key, value in element.attrib.items():
        key = key.rpartition("}")[2]
        if key == "style":
            copy.attrib.update(_attributes(value))
        elif key in ATTRIBUTES or key in STYLES:
            copy.set(key, value)
    _rename(copy, name)
    for key in COORDINATES:
        if key in copy.attrib:
            copy.set(key, _short(copy.get(key, "")))
    text = (element.text or "").strip()
    copy.text = text or None
    for child in element:
        kept = _cleaned(child, name)
        if kept is not None:
            copy.append(kept)
    return None if tag in ("g", "defs") and not len(copy) else copy


def _rename(element: Element, name: str) -> None:
    """Puts the chart's name before the names that an element has and refers to."""
    own, link = element.get("id"), element.get("href")
    mark = MARK.fullmatch(own or "")
    if mark:
        element.set("data-method", mark["method"])
    if own is not None and element.tag == "g" and not mark:
        del element.attrib["id"]  # a group of no use
    elif own is not None:
        element.set("id", f"{name}-{own}")
    if link is not None and link.startswith("#"):
        element.set("href", f"#{name}-{link[1:]}")
    elif link is not None and not link.startswith("data:image/png;base64,"):
        del element.attrib["href"]
    for key, value in element.attrib.items():
        if "url(" in value:
            element.set(key, re.sub(r"url\(#", f"url(#{name}-", value))


def _attributes(style: str) -> dict[str, str]:
    """A style as presentation attributes."""
    found = {}
    for part in style.split(";"):
        key, _, value = (text.strip() for text in part.partition(":"))
        if key in STYLES:
            found[key] = value
    return found


def _short(numbers: str) -> str:
    """Coordinates of two digits after the point, on one line."""
    text = " ".join(numbers.split())
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", text)
