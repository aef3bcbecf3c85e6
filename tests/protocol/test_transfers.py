"""Transfers spelled out: pairs of every kind, chains, label maps of the protocol, wrong names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toy

from trm_bench.datasets.base import Dataset, LabelMap, Scan, Subject
from trm_bench.errors import UserError
from trm_bench.protocol import Protocol, load_protocol, parse
from trm_bench.protocol.schema import CheckpointConfig, Domain, SetConfig, Transfer
from trm_bench.protocol.transfers import add_label_maps, choose_transfers, in_play, transfers_of

SITES = ("north", "south", "west")


class Fake(Dataset):
    """Three sites, four modalities."""

    name = "fake"
    modalities = ("t1", "t1ce", "t2", "flair")

    def __init__(self, root: Path) -> None:
        self.root = root
        self.label_maps = {
            "whole": LabelMap(("background", "whole"), {0: 0, 1: 1, 2: 1}),
            "parts": LabelMap(("background", "core", "rim"), {0: 0, 1: 1, 2: 2}),
        }

    def subjects(self) -> list[Subject]:
        return [
            Subject(f"{site}-{i}", {}, Path("label"), institution=site)
            for site in SITES
            for i in range(4)
        ]

    def read(self, subject: Subject, modalities: tuple[str, ...]) -> Scan:
        raise AssertionError("names are told without reading")


def protocol(transfers: dict[str, Any], domains: Any = None, **data: Any) -> Protocol:
    """The toy protocol on fake data; `data` replaces keys of its block."""
    raw = toy.protocol(Path("root"))
    raw["data"] = {"dataset": "fake", "root": "a", **data}
    return parse({**raw, "transfers": transfers, "domains": domains or {}}, "test")


def opened(found: Protocol) -> dict[SetConfig, Dataset]:
    """A fake data set for each of a protocol's, with the protocol's label maps."""
    several: dict[SetConfig, Dataset] = {data: Fake(Path(data.root)) for data in found.sets}
    for data, dataset in several.items():
        add_label_maps(found, data, dataset)
    return several


def expand(transfers: dict[str, Any], domains: Any = None, **data: Any) -> list[Transfer]:
    found = protocol(transfers, domains, **data)
    return transfers_of(found, opened(found))


def names(transfers: list[Transfer]) -> list[str]:
    return [transfer.name for transfer in transfers]


def test_all_ordered_pairs() -> None:
    assert len(expand({"kind": "cross_modality"}, labels="whole")) == 12
    some = expand({"kind": "cross_modality"}, labels="whole", modalities=["t2", "t1"])
    assert names(some) == ["t2->t1", "t1->t2"]
    assert [t.target.images for t in some] == [("t1",), ("t2",)]
    tasks = expand({"kind": "cross_task"})
    assert names(tasks) == ["whole->parts", "parts->whole"]
    assert all(t.target.images == Fake.modalities for t in tasks)
    sites = expand({"kind": "cross_institution"}, labels="whole")
    assert len(sites) == 6 and sites[0].name == "north->south"
    assert sites[0].target.institutions == ("south",)


def test_every_institution_is_left_out_once() -> None:
    found = expand({"kind": "cross_institution", "pairs": "leave_one_out"}, labels="whole")
    assert names(found) == [f"others->{site}" for site in SITES]
    for transfer, site in zip(found, SITES, strict=True):
        (source,) = transfer.sources
        assert isinstance(source, Domain) and source.except_institutions == (site,)
        assert not source.institutions and transfer.target.institutions == (site,)
    with pytest.raises(UserError, match=r"transfers: pairs: leave_one_out is for"):
        protocol({"kind": "cross_task", "pairs": "leave_one_out"})


def test_shots_and_chains() -> None:
    pairs = {"pairs": [["t1", "t2", "flair"], ["t2", "t1"]], "shots": [1, 2]}
    found = expand({"kind": "cross_modality", **pairs}, labels="whole")
    assert [(t.name, t.shots) for t in found][:2] == [
        ("t1->t2->flair@1", 1),
        ("t1->t2->flair@2", 2),
    ]
    assert [s.name for s in found[0].sources if isinstance(s, Domain)] == ["t1", "t2"]
    with pytest.raises(UserError, match="3 shots, but only 2"):
        expand({"kind": "cross_modality", "shots": [3]}, labels="whole")
    with pytest.raises(UserError, match="source and target are the same"):
        protocol({"kind": "cross_modality", "pairs": [["t1", "t2", "t1"]]}, labels="whole")


class TestDomains:
    DOMAINS = {  # noqa: RUF012 (constant)
        "here": {"images": ["t1", "t2"], "institutions": ["north"]},
        "there": {"root": "b", "labels": {"rim": [2]}, "volume": {"crop": "none"}},
        "elsewhere": {"checkpoint": "net.pt", "classes": ["background", "x"], "channels": ["ct"]},
    }

    def expand(self, pairs: Any = "all", **data: Any) -> list[Transfer]:
        kind = {"kind": "cross_dataset", "pairs": pairs}
        return expand(kind, self.DOMAINS, **{"labels": "whole", **data})

    def test_what_is_not_said_comes_from_data(self) -> None:
        (found,) = self.expand([["here", "there"]])
        (here,), there = found.sources, found.target
        assert isinstance(here, Domain)
        assert (here.images, here.labels) == (("t1", "t2"), "whole")
        assert (there.images, there.labels) == (Fake.modalities, "rim")
        assert (here.data.root, there.data.root) == ("a", "b")
        assert (here.data.volume.crop, there.data.volume.crop) == ("brain", "none")

    def test_a_checkpoint_is_where_a_transfer_begins(self) -> None:
        assert names(self.expand()) == [
            "here->there",
            "there->here",
            "elsewhere->here",
            "elsewhere->there",
        ]
        (chain,) = self.expand([["elsewhere", "here", "there"]])
        assert isinstance(chain.sources[0], CheckpointConfig)
        for pairs, message in (
            ([["here", "elsewhere"]], "the target of 'here->elsewhere' is a checkpoint"),
            ([["here", "elsewhere", "there"]], "passes a checkpoint"),
            ([["here", "their"]], "(?s)no domain 'their'.*did you mean 'there'"),
        ):
            with pytest.raises(UserError, match=message) as caught:
                self.expand(pairs)
            assert caught.value.where == "transfers.pairs"

    def test_wrong_names_are_told_with_their_key(self) -> None:
        for changes, where in (
            ({"images": ["t3"]}, "domains.here.images"),
            ({"labels": "parst"}, "domains.here.labels"),
            ({"institutions": ["nord"]}, "domains.here.institutions"),
            ({"labels": {"rim": [3]}}, "domains.here.labels"),
            ({"labels": {"whole": [1]}}, "domains.here.labels"),
        ):
            domains = {**self.DOMAINS, "here": {**self.DOMAINS["here"], **changes}}
            with pytest.raises(UserError) as caught:
                expand({"kind": "cross_dataset"}, domains, labels="whole")
            assert caught.value.where == where and caught.value.fix

    def test_only_what_domains_see_is_in_play(self) -> None:
        found = protocol({"kind": "cross_dataset"}, self.DOMAINS, labels="whole")
        seen = [in_play(found, data, dataset) for data, dataset in opened(found).items()]
        assert seen == [("t1", "t2"), Fake.modalities]

    @pytest.mark.parametrize(
        ("transfers", "domains", "data", "message"),
        [
            ({"kind": "cross_task"}, DOMAINS, {}, r"domains: are for cross_dataset"),
            ({"kind": "cross_dataset"}, {}, {"labels": "whole"}, "describe two or more"),
            ({"kind": "cross_dataset"}, DOMAINS, {}, r"domains\.here\.labels: give it here or"),
            ({"kind": "cross_institution"}, {}, {}, r"data\.labels: name the label map"),
            (
                {"kind": "cross_dataset"},
                {"a": {"checkpoint": "x", "rename": [["(", ""]]}, "b": {}},
                {"labels": "whole"},
                "'\\(' is no regular expression",
            ),
        ],
    )
    def test_blocks_that_do_not_go_together(
        self, transfers: Any, domains: Any, data: Any, message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            protocol(transfers, domains, **data)


def test_label_maps_of_the_protocol() -> None:
    """A set with one label map can be benchmarked across tasks."""
    maps = {"edge": {"edge": [2]}, "both": {"inner": [1], "outer": [2]}}
    found = protocol({"kind": "cross_task", "pairs": [["edge", "both"]]}, label_maps=maps)
    (dataset,) = opened(found).values()
    assert dataset.label_map("edge") == LabelMap(("background", "edge"), {0: 0, 1: 0, 2: 1})
    assert dataset.label_map("both").classes == ("background", "inner", "outer")
    assert transfers_of(found, {found.sets[0]: dataset})
    inline = protocol({"kind": "cross_modality"}, labels={"edge": [2]})
    assert next(iter(opened(inline).values())).label_map("edge")


def test_what_data_says_is_of_its_own_data_set() -> None:
    """Modalities of another dataset, and label maps of another folder, are none of its business."""
    domains = {"here": {}, "there": {"root": "b"}, "other": {"dataset": "another"}}
    maps = {"rim": {"rim": [2]}}
    kind = {"kind": "cross_dataset"}
    found = protocol(kind, domains, labels="whole", modalities=["t1"], label_maps=maps)
    several = opened(found)
    seen = [in_play(found, data, dataset) for data, dataset in several.items()]
    assert seen == [("t1",), ("t1",), Fake.modalities]
    assert ["rim" in dataset.label_maps for dataset in several.values()] == [True, False, False]


def test_a_transfer_is_chosen_once() -> None:
    found = protocol({"kind": "cross_task"})
    (chosen,) = choose_transfers(found, opened(found), ["whole->parts"])
    with pytest.raises(UserError, match="named twice"):
        choose_transfers(found, opened(found), [chosen.name, chosen.name])
    with pytest.raises(UserError, match="did you mean 'whole->parts'"):
        choose_transfers(found, opened(found), ["whole->part"])


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="did you mean 'whole'"):
        expand({"kind": "cross_task", "pairs": [["whol", "parts"]]})
    with pytest.raises(UserError, match="no modality 't4'") as caught:
        expand({"kind": "cross_task"}, modalities=["t4"])
    assert caught.value.where == "data.modalities"


def test_the_paper_s_pairs() -> None:
    fets = load_protocol("fets_cross_modality")
    fake = Fake(Path("a"))
    fake.label_maps = {"whole_tumor": LabelMap(("background", "tumor"), {0: 0, 1: 1})}
    found = transfers_of(fets, {fets.sets[0]: fake})
    assert len(found) == 12 and {t.target.labels for t in found} == {"whole_tumor"}
