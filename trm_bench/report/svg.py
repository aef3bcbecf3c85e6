"""Turns a chart as matplotlib writes it into one that a page can embed, theme, filter and explain.

What a page may rely on:

- every mark of a method lies in `<g id="m-SLUG-N" data-method="LABEL" class="mark">`, and has its
  value in a `<title>`; marks of no method have the title alone;
- the four neutral colours have classes, `f-text`, `s-text` and so on (fill and stroke; text, soft,
  line, back), by which a style sheet moves them to its own theme;
- there is no style attribute and no style element, which a content security policy would refuse;
- no id stands in two charts, so that many can lie in one page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from zlib import crc32

from trm_bench.report.style import NEUTRALS
from trm_bench.runs.folders import slug

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from matplotlib.artist import Artist

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
FONTS = "Verdana, 'DejaVu Sans', sans-serif"  # as wide as what the layout was made for, or less
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_TAGGED = "trm-bench:"


def tag(artist: Artist, method: str | Sequence[str], *titles: str) -> None:
    """Says what an artist shows.

    Args:
        artist: Of matplotlib, drawn as one group.
        method: Its label, "" where it belongs to none; or one for each of its marks.
        titles: A text for each of its marks, or one for all.
    """
    artist.set_gid(_TAGGED + json.dumps([method, titles]))  # goes through matplotlib as an id


def finished(text: str, name: str, alt: str) -> str:
    """An SVG file of matplotlib as pages take it.

    Args:
        text: What matplotlib wrote.
        name: Of the chart, from which its ids are made.
        alt: What the chart shows, for those who do not see it.
    """
    ElementTree.register_namespace("", SVG[1:-1])
    root = ElementTree.fromstring(NO_XML.sub("", text))
    _drop(root, "metadata", "style")
    root.attrib |= {
        "class": "chart",
        "role": "img",
        "tabindex": "0",
        "aria-label": NO_XML.sub("", alt),
        "font-family": FONTS,
        "stroke-linejoin": "round",  # of matplotlib's style element
        "stroke-linecap": "butt",
    }
    marks = 0
    for element in list(root.iter()):
        _plain_attributes(element)
        own = element.attrib.pop("id", "")
        if own.startswith(_TAGGED):
            for group, method, titles in _groups(element, *json.loads(own[len(_TAGGED) :])):
                group.set("class", "mark")
                if method:
                    marks += 1
                    number = f"{crc32(name.encode()) % 10_000:04d}{marks:04d}"
                    group.set("id", f"m-{slug(method)}-{number}")
                    group.set("data-method", NO_XML.sub("", method))
                _explain(group, titles)
        elif element.tag in (f"{SVG}path", f"{SVG}clipPath") and own:
            element.set("id", f"{name}-{own}")  # the only ones that others refer to
        for key in ("clip-path", f"{XLINK}href"):
            if key in element.attrib:
                value = element.attrib.pop(key)
                element.set(key.removeprefix(XLINK), value.replace("#", f"#{name}-", 1))
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True) + "\n"


def _drop(root: Element, *names: str) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in names:
                parent.remove(child)


def _plain_attributes(element: Element) -> None:
    """Attributes for the style attribute, classes for neutral colours, numbers to 0.01 points."""
    style = element.attrib.pop("style", "")
    classes = []
    for entry in filter(None, style.split(";")):
        key, value = (part.strip() for part in entry.split(":", 1))
        if key == "font-family":
            continue
        element.set(key, value)
        if key in ("fill", "stroke") and value in NEUTRALS:
            classes.append(f"{key[0]}-{NEUTRALS[value]}")
    if classes:
        element.set("class", " ".join(classes))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for key in ("d", "x", "y", "transform"):
        if key in element.attrib:
            number = LONG_NUMBER.sub(lambda m: f"{float(m[0]):.2f}", element.attrib[key])
            element.set(key, number.replace("\n", " ").strip())
    if element.text and not element.text.strip():
        element.text = None
    element.tail = None


def _groups(
    element: Element, method: str | Sequence[str], titles: Sequence[str]
) -> list[tuple[Element, str, Sequence[str]]]:
    """A tagged group with its method and titles, or one around each of its marks."""
    if isinstance(method, str):
        return [(element, method, titles)]
    above = {mark: parent for parent in element.iter() for mark in parent}
    groups: list[tuple[Element, str, Sequence[str]]] = []
    for mark, own, title in zip(_marks(element, len(method)), method, titles, strict=True):
        group, parent = ElementTree.Element(f"{SVG}g"), above[mark]
        parent[list(parent).index(mark)] = group
        group.append(mark)
        groups.append((group, own, [title]))
    return groups


def _marks(group: Element, number: int) -> list[Element]:
    """The marks of a group, if they are as many; none if not."""
    hidden = {id(x) for defs in group.iter(f"{SVG}defs") for x in defs.iter()}
    for shape in ("use", "path"):
        marks = [m for m in group.iter(SVG + shape) if id(m) not in hidden]
        if len(marks) == number:
            return marks
    return []


def _explain(group: Element, titles: Sequence[str]) -> None:
    """A title for each mark, or one for the group where they are not as many."""
    for mark, title in zip(_marks(group, len(titles)), titles, strict=False):
        _title(mark, title)
    if len(titles) == 1 and not _marks(group, 1):
        _title(group, titles[0])


def _title(element: Element, text: str) -> None:
    title = ElementTree.Element(f"{SVG}title")
    title.text = NO_XML.sub("", text)
    element.insert(0, title)
