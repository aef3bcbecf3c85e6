"""What charts promise to pages and readers: one look a method, values, room, no name preferred."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import torch
from reported import METHODS, change, collected, small

from trm_bench import report
from trm_bench.report import charts, figures, forests, marks, style
from trm_bench.report.drawing import STAND_IN, Chart, signed
from trm_bench.report.evidence import Evidence
from trm_bench.report.layout import arrange
from trm_bench.report.style import NARROW, WIDE
from trm_bench.report.svg import finished, tag
from trm_bench.runs import arrays
from trm_bench.seals import digest_of_file

SVG = "{http://www.w3.org/2000/svg}"
OWN = ["scratch", "plain", "_ours^x", "a.b+c=d"]  # no method of ours but the one from scratch


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    folder = tmp_path_factory.mktemp("charts") / "own"
    claim = {"metric": "dice", "method": "_ours^x", "versus": "plain"}
    gains = dict(zip(OWN, (-2.0, 0.0, 1.0, 0.5), strict=True))
    given: dict[str, Any] = {"methods": OWN, "claim": claim, "gains": gains, "data": "phantom"}
    return collected(small(folder, **given))


@pytest.fixture(scope="module")
def drawn(shown: Evidence) -> list[Chart]:
    return charts.draw(shown)[0]


def roots(drawn: list[Chart]) -> Iterator[ElementTree.Element]:
    for chart in drawn:
        for path in (chart.svg, chart.narrow):
            assert path is not None
            yield ElementTree.parse(path).getroot()


def luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return float(np.dot((0.2126, 0.7152, 0.0722), list(linear)))


class TestStyle:
    def test_colours_stand_out_from_light_and_dark_ground(self) -> None:
        """At least 3 to 1, WCAG 2.2, 1.4.11; the neutral ones are those of the page."""
        css = (Path(report.__file__).parent / "templates" / "style.css").read_text()
        themes = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", p)) for p in css.split("@media")]
        for colour, name in style.NEUTRALS.items():
            assert themes[0][name] == colour and f".f-{name} {{ fill: var(--{name}); }}" in css
        series = {style.BLUE, style.ORANGE, *style.COLOURS} - set(style.NEUTRALS)
        for theme in themes[:2]:
            for ground in (theme["back"], theme["card"]):
                for colour in (*series, theme["soft"], theme["text"]):
                    low, high = sorted((luminance(colour), luminance(ground)))
                    assert (high + 0.05) / (low + 0.05) >= 3, (colour, ground)

    def test_no_two_methods_look_alike(self) -> None:
        names = [f"m{i}" for i in range(40)]
        many: Any = SimpleNamespace(methods=names, reference="plain", focus="ours")
        looks = [style.look(many, m) for m in (*names, "plain", "ours", "scratch")]
        assert len({(x.colour, x.marker) for x in looks}) == len(looks)
        assert len({(x.colour, str(x.line)) for x in looks[:24]}) == 24


class TestFiles:
    def test_a_page_can_take_them_all(self, drawn: list[Chart]) -> None:
        assert len(drawn) == 4
        ids: list[str] = []
        for root in roots(drawn):
            for element in root.iter():
                assert "style" not in element.attrib and not element.tag.endswith("}style")
                assert not any("http" in value for value in element.attrib.values())
                ids += [element.attrib["id"]] if "id" in element.attrib else []
            known = {x.get("id") for x in root.iter()}
            used = [x.get("href", x.get("clip-path", "")) for x in root.iter()]
            assert {name for u in used for name in re.findall("#([^)]+)", u)} <= known
        assert len(ids) == len(set(ids))

    def test_marks_say_method_and_value(self, shown: Evidence, drawn: list[Chart]) -> None:
        for root in roots(drawn):
            assert {e.get("data-method") for e in root.iter()} - {None} <= set(OWN)
        for root in list(roots(drawn))[:2]:
            for method in ("scratch", "_ours^x", "a.b+c=d"):
                groups = [e for e in root.iter() if e.get("data-method") == method]
                said = [t.text or "" for g in groups for t in g.iter(f"{SVG}title")]
                gain = shown.main.gain(method)
                assert gain and all(str(g.get("id")).startswith("m-") for g in groups)
                assert any(f"{method}, mean: {signed(gain['gain'])}" in text for text in said)
                single = shown.main.gain(method, "t1->t2")
                assert single and f"{method}, t1 → t2: {signed(single['gain'])}" in said

    def test_narrow_ones_can_be_read_on_a_telephone(self, drawn: list[Chart]) -> None:
        for root in list(roots(drawn))[1::2]:
            width = float(root.attrib["viewBox"].split()[2])
            sizes = [float(e.get("font-size", "9px")[:-2]) for e in root.iter(f"{SVG}text")]
            assert min(sizes) * 350 / width >= 9, "pixels"

    def test_the_note_on_stand_in_data_stands_above_all(self, drawn: list[Chart]) -> None:
        for root in roots(drawn):
            heights = {e.text: float(e.get("y", "nan")) for e in root.iter(f"{SVG}text")}
            note = heights.pop(STAND_IN)
            turned = [e.text for e in root.iter(f"{SVG}text") if e.get("transform")]
            assert all(y - note > 8 for text, y in heights.items() if text not in turned)


def test_each_mark_of_an_artist_has_its_own_method() -> None:
    from matplotlib.figure import Figure

    ax = (figure := Figure()).subplots()
    tag(ax.scatter([1, 2], [1, 2], c=["#ff0000", "#00ff00"]), ["a", "b"], "a: 1", "b: 2")
    tag(ax.vlines([1, 2], 0, 3, color="#0000ff"), ["a", ""], "a: line", "of none")
    text = io.StringIO()
    with mpl.rc_context(style.STYLE):
        figure.savefig(text, format="svg")
    root = ElementTree.fromstring(finished(text.getvalue(), "x", ""))
    found = [
        (group.get("data-method"), shape.get("fill"), shape.findtext(f"{SVG}title"))
        for group in root.iter(f"{SVG}g")
        if group.get("class") == "mark"
        for shape in group
        if shape.tag != f"{SVG}g" and shape.tag != f"{SVG}defs"
    ]
    expected = {("a", "a: 1"), ("b", "b: 2"), ("a", "a: line"), (None, "of none")}
    assert {(method, title) for method, _, title in found} == expected and len(found) == 4
    assert {fill for method, fill, title in found if title == "b: 2"} == {"#00ff00"}


class TestForests:
    @pytest.mark.parametrize("name", ["gains", "gains_by_transfer", "subjects", "training_loss"])
    def test_of_one_method_have_room(self, name: str, tmp_path: Path) -> None:
        methods = ["finetune", "a_method_with_a_name_longer_than_any_other_of_these"]
        given: dict[str, Any] = {"methods": methods, "claim": None, "subjects": 4}
        found = collected(small(tmp_path / "p", data="phantom", **given))
        for width in (WIDE, NARROW):
            figure = charts.CHARTS[name](found, width).figure
            arrange(figure)
            boxes = [ax.get_tightbbox() for ax in figure.axes]
            assert all(ax.bbox.width > 20 and ax.bbox.height > 20 for ax in figure.axes)
            assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= figure.bbox.width + 1 for b in boxes)
            for one, other in combinations(
                [
                    *boxes,
                    *(g.get_window_extent() for g in figure.legends),
                    *(t.get_window_extent() for t in figure.texts),
                ],
                2,
            ):
                assert not one.overlaps(other)

    @pytest.mark.parametrize("name", ["subjects", "training_loss"])
    def test_ticks_without_labels_stand_as_those_with(self, name: str, tmp_path: Path) -> None:
        """Panels share an axis, and the grid in one is that of the others."""
        figure = charts.CHARTS[name](collected(small(tmp_path / "p")), NARROW).figure
        arrange(figure)
        figure.draw_without_rendering()
        axis = "x" if name == "subjects" else "y"
        found = []
        for ax in figure.axes:
            shown = ax.xaxis if axis == "x" else ax.yaxis
            low, high = shown.get_view_interval()
            if shown.get_visible():
                found.append([x for x in shown.get_majorticklocs() if low <= x <= high])
            else:
                grid = [line for line in ax.lines if np.isnan(line.get_xydata()).any()]
                (places,) = (line.get_data()[axis == "y"] for line in grid)
                found.append(sorted(set(places)))
        assert len(found) > 1 and not all(getattr(ax, f"{axis}axis").get_visible() for ax in
                                          figure.axes)  # fmt: skip
        for places in found:
            assert places == pytest.approx(found[-1 if axis == "x" else 0])

    def test_a_short_interval_stands_out_of_its_mark(self, tmp_path: Path) -> None:
        found = collected(small(tmp_path / "p", noise=0.01))
        figure = forests.gains(found).figure
        figure.draw_without_rendering()
        (ax,) = figure.axes
        points = 72 / figure.dpi * abs(np.diff(ax.transData.transform([(0, 0), (0, 1)])[:, 1])[0])
        (size,) = (c.get_sizes()[0] ** 0.5 for c in ax.collections if len(c.get_offsets()) > 1)
        assert 2 * marks.CAP * points > size

    def test_methods_come_best_first_with_their_numbers(self, shown: Evidence) -> None:
        (ax,) = forests.gains(shown).figure.axes
        order = sorted((m for m in OWN if m != "plain"), key=lambda m: -_gain(shown, m))
        texts = [t.get_text().strip() for t in ax.texts]
        assert texts[: len(order)] == order
        assert [t.split(" ")[0] for t in texts[len(order) :]] == [
            signed(_gain(shown, m)) for m in order
        ]

    def test_subjects_are_those_of_the_records(self, shown: Evidence) -> None:
        figure = forests.subjects(shown).figure
        own, base = (shown.main.by_subject("t1->t2", m) for m in ("scratch", "plain"))
        gains = [own[s] - base[s] for s in own]
        dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
        assert any(np.allclose(line.get_xdata(), gains) for line in dots)
        worse = sum(g < 0 for g in gains)
        texts = [t.get_text() for t in figure.axes[0].texts]
        assert f"{len(gains) - worse} : {worse}" in texts

    def test_many_subjects_are_drawn_as_quartiles(
        self, shown: Evidence, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(forests, "MOST_DOTS", 10)
        figure = forests.subjects(shown).figure
        own, base = (shown.main.by_subject("t1->t2", m) for m in ("scratch", "plain"))
        middle = np.percentile([own[s] - base[s] for s in own], [25, 75])
        bars = [path.vertices[:, 0] for c in figure.axes[0].collections for path in c.get_paths()]
        assert any(np.allclose(x, middle) for x in bars if len(x) == 2)
        assert "middle half of the subjects" in [t.get_text() for t in figure.legends[0].texts]


def _gain(shown: Evidence, method: str) -> float:
    gain = shown.main.gain(method)
    assert gain is not None
    return gain["gain"]


class TestPictures:
    @pytest.fixture
    def kept(self, tmp_path: Path) -> Evidence:
        """Results whose runs kept slices; one method of another name made a map of its own."""
        methods = ["scratch", "plain", "mine"]
        given: dict[str, Any] = {"methods": methods, "claim": None, "seeds": (0,), "subjects": 4}
        folder = small(tmp_path / "p", transfers=["t1->t2"], **given)
        label = torch.zeros(40, 30, dtype=torch.uint8)
        label[25:32, 4:12] = 1
        for i, method in enumerate(methods):
            one = {"image": torch.rand(40, 30), "label": label, "prediction": label.roll(i, 0)}
            if method == "mine":
                one |= {"risk": torch.rand(40, 30), "source": label}
            cell = change(folder, i, lambda record: None)
            path = folder / "slices" / f"{cell['run']}.safetensors"
            arrays.write_slices(path, {"a": one, "b": one})
            digest = digest_of_file(path)
            change(folder, i, lambda record, digest=digest: record.update(slices=digest))
        return collected(folder)

    def test_of_every_method_and_of_any_map(self, kept: Evidence) -> None:
        risk, errors = figures.draw(kept)
        assert risk.png.name == "risk_t1-to-t2.png" and "risk map of mine" in risk.caption
        assert errors.alt.endswith("errors of scratch, plain, mine")
        assert risk.png.is_file() and errors.png.is_file() and risk.files == [risk.png]

    def test_are_cut_to_what_there_is_to_see(self, kept: Evidence) -> None:
        _, slices = figures._kept(kept, "t1->t2")
        for own in slices.values():
            assert own["a"]["image"].shape == (figures.FEWEST_VOXELS,) * 2
            assert own["a"]["label"].sum() == 7 * 8, "nothing labelled is cut away"

    def test_of_many_methods_show_one_subject(
        self, kept: Evidence, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(figures, "MOST_TILES", 4)
        assert len(figures.draw(kept)) == 2

    def test_go_on_without_a_file_that_is_gone(self, kept: Evidence) -> None:
        for path in (kept.results.folder.path / "slices").iterdir():
            path.unlink()
        assert figures.draw(kept) == []


def test_methods_of_the_fixtures_are_all_drawn(tmp_path: Path) -> None:
    axes = charts.CHARTS["training_loss"](collected(small(tmp_path / "p")), style.WIDE).figure.axes
    assert {line.get_label() for line in axes[0].lines} == set(METHODS)
