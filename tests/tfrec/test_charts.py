"""Charts that are drawn from numbers alone."""

import re
from xml.etree import ElementTree

import numpy as np

from tfrec.charts import calibration_chart, line_charts, map_chart, mask_chart, slice_chart


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


def test_times_that_grow_by_a_power_are_a_straight_line_where_axes_are_logarithmic():
    def corners(**options):
        svg = line_charts({"ms": {"dense": ([256, 1024, 4096], [1.0, 16.0, 256.0])}}, x="events", **options)
        root = ElementTree.fromstring(svg)
        line = next(group for group in root.iter("g") if group.get("id") == "line/ms/dense")
        path = next(line.iter("path")).get("d")
        points = np.array(
            [[float(one) for one in step.split()[-2:]] for step in re.split("[ML]", path) if step.strip()]
        )
        return np.diff(points, axis=0), {node.text for node in root.iter("text")}

    steps, texts = corners(logarithmic="xy")
    np.testing.assert_allclose(steps[0], steps[1], atol=0.01)
    assert {"256", "1,024", "4,096"} <= texts
    steps, _ = corners()
    assert abs(steps[1] / steps[0]).min() > 3
