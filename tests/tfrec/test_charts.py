"""Charts that are drawn from numbers alone."""

from xml.etree import ElementTree

import numpy as np

from tfrec.charts import calibration_chart, map_chart, mask_chart, slice_chart


def test_mask_is_drawn_as_opacity_with_titles():
    svg = mask_chart(np.array([[0.0, 0.25, 1.0]]), ["$a$ <i>"], ["x", "y", "z & co"])
    root = ElementTree.fromstring(svg)
    found = {group.get("id"): ElementTree.tostring(group, "unicode") for group in root.iter("g") if group.get("id")}
    assert "opacity: 0.25" in found["mask/0/1"]
    assert {"$a$ <i>", "z & co"} <= {node.text for node in root.iter("text")}


def test_charts_of_one_thing_and_of_nothing_above_zero():
    for svg in (
        calibration_chart({"click": [(0.0, 0.0)]}),
        slice_chart({"cold": {"none": 0.0}}, "recall@1"),
        map_chart({"only": np.zeros((2, 2))}, ["all", "others"], np.zeros(2, int)),
    ):
        assert ElementTree.fromstring(svg).tag.endswith("svg")
