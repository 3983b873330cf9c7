"""Configurations: what is refused and how it is told, overrides, variables, the saved file."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tfrec.config import CONFIG, load, parse, suggest, write
from tfrec.errors import UsageError

CSV = {"files": ["x.csv"]}


def document(section: str, **keys: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {"data": {"out": "d"}}
    whole[section] = {**whole.get(section, {}), **keys}
    return whole


def feature(**keys: Any) -> dict[str, Any]:
    return document("features", items=[{"name": "f", **keys}])


def saved(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": {"out": "d"}, "trainig": {}}, "`trainig`: unknown key; did you mean `training`?"),
        (document("training", epoch=3), "`training.epoch`: unknown key; did you mean `epochs`?"),
        (document("data", evnts=CSV), "`data.evnts`: unknown key; did you mean `events`?"),
        (document("data", events={**CSV, "delimeter": ";"}), "did you mean `delimiter`?"),
        (document("data", filters={"kcore": 5}), "did you mean `k_core`?"),
        (feature(kind="text", colum="x"), "`features.items.0.colum`: unknown key; did you mean `column`?"),
        (document("index", qqq=1), "known: kind, target_recall."),
    ],
)
def test_misspelt_key_gets_a_suggestion_at_every_level(wrong, message):
    with pytest.raises(UsageError) as caught:
        parse(wrong, where="c.yaml")
    assert str(caught.value).startswith("c.yaml: ")
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize(
    ("wrong", "key", "message"),
    [
        (document("training", epochs=True), "training.epochs", "must be a number, not true or false"),
        (document("training", epochs="3"), "training.epochs", "must be a whole number"),
        (document("training", epochs=3.0), "training.epochs", "must be a whole number"),
        (document("training", patience=False), "training.patience", "must be a number, not true or false"),
        (document("training", learning_rate=True), "training.learning_rate", "must be a number"),
        (document("training", learning_rate=float("nan")), "training.learning_rate", "finite"),
        (document("training", mixed_precision=1), "training.mixed_precision", "must be true or false"),
        (document("training", tensorboard="yes"), "training.tensorboard", "must be true or false"),
        (document("training", jit_compile="aut"), "training.jit_compile", "must be true or false or auto"),
        (document("training", beta_1=1.0), "training.beta_1", "less than 1"),
        (document("training", beta_2=0.0), "training.beta_2", "greater than 0"),
        (document("evaluation", ks=[]), "evaluation.ks", "at least 1 item"),
        (document("evaluation", ks=[10, 0]), "evaluation.ks.1", "greater than or equal to 1"),
        (document("evaluation", ks=[True]), "evaluation.ks", "must be a number, not true or false"),
        (document("evaluation", ks=10), "evaluation.ks", "must be a list: [10]."),
        (document("data", out=""), "data.out", "at least 1 character"),
        (document("data", out=3), "data.out", "valid string"),
        (document("data", events={"files": "x.csv"}), "data.events.files", "must be a list: [x.csv]."),
        (document("data", events={"files": []}), "data.events.files", "at least 1 item"),
        (document("data", target_events="al"), "data.target_events", "must be a list or all; did you mean `all`?"),
        (document("data", events={**CSV, "time_unit": "milisecond"}), "time_unit", "did you mean `milliseconds`?"),
        (document("data", events={**CSV, "encoding": "utf-88"}), "data.events.encoding", "name of a text encoding"),
        (document("data", events={**CSV, "encoding": "base64"}), "data.events.encoding", "name of a text encoding"),
        (document("data", split={"kind": "last_fraction", "fraction": "0.1"}), "data.split.fraction", "valid number"),
        (document("data", split={"kind": "leave_one_out", "validation": "no"}), "data.split.validation", "boolean"),
    ],
)
def test_value_of_another_type_or_beyond_its_bounds_is_refused(wrong, key, message):
    with pytest.raises(UsageError) as caught:
        parse(wrong)
    assert f"{key}`: " in str(caught.value)
    assert message in str(caught.value)


def test_values_that_are_right_are_taken():
    config = parse(
        {
            "data": {
                "out": "d",
                "target_events": ["buy"],
                "events": {**CSV, "time_unit": "%d/%m/%Y", "encoding": "L1"},
            },
            "training": {"learning_rate": "1e-3", "jit_compile": False, "weight_decay": 1},
        }
    )
    assert config.training.learning_rate == 0.001  # YAML 1.1 reads 1e-3 as a text
    assert config.training.jit_compile is False
    assert config.data.target_events == ("buy",)


@pytest.mark.parametrize("name", ["../../../evil", "a/b", "1st", "", "_a", "a b", "a-b", "größe", "a\n", "a" * 65])
def test_names_that_are_no_plain_words_are_refused(name):
    labels = [{"name": name, "column": "c", "operator": "==", "value": 1}]
    for wrong in (document("features", items=[{"name": name, "kind": "text"}]), document("data", labels=labels)):
        with pytest.raises(UsageError, match=r"name`: String should match pattern"):
            parse(wrong)


def test_longest_name_is_taken():
    assert parse(document("features", items=[{"name": "A" + "_9" * 31 + "z", "kind": "text"}]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "numerical", "keep_vectors": True}, "`keep_vectors` is an option of features of kind multimodal"),
        ({"kind": "categorical", "bins": 8}, "`bins` is an option of features of kind numerical"),
        ({"kind": "text", "bins": 8}, "`bins` is an option of features of kind numerical"),
        ({"kind": "text", "multivalued": True}, "`multivalued` is an option of features of kind categorical"),
        ({"kind": "numerical", "min_count": 2}, "`min_count` is an option of features of kind categorical"),
        ({"kind": "text", "max_size": 9}, "`max_size` is an option of features of kind categorical"),
        ({"kind": "categorical", "separator": "|"}, "`separator` is an option of features with `multivalued: true`"),
        ({"kind": "categorical", "max_values": 3}, "`max_values` is an option of features with `multivalued: true`"),
        ({"kind": "categorical", "dim": 8}, "`dim` is an option of features of kind multimodal, text or image"),
        ({"kind": "numerical", "groups": 2}, "`groups` is an option of features of kind multimodal, text or image"),
        ({"kind": "numerical", "dims_per_group": 3}, "`dims_per_group` is an option of features of kind multimodal"),
        (
            {"kind": "numerical", "quantiles": 4},
            "`quantiles` is an option of features of kind multimodal",
        ),
        ({"kind": "numerical", "quantizer": "product"}, "`quantizer` is an option of features of kind multimodal"),
        ({"kind": "text", "standardize": True}, "`standardize` is an option of features of kind numerical alone"),
        ({"kind": "categorical", "spacing": "log"}, "`spacing` is an option of features of kind numerical"),
        ({"kind": "numerical", "boundaries": [1, 2], "bins": 4}, "of kind numerical without `boundaries` alone"),
        ({"kind": "numerical", "boundaries": [1, 2], "spacing": "log"}, "of kind numerical without `boundaries` alone"),
        ({"kind": "numerical", "boundaries": [1, 1]}, "`boundaries` must increase"),
        ({"kind": "numerical", "boundaries": []}, "at least 1 item"),
        ({"kind": "numerical", "boundaries": [1, float("inf")]}, "finite number"),
        ({"kind": "numerical", "hash_buckets": 8}, "`hash_buckets` is an option of features of kind categorical"),
        ({"kind": "text", "cross": ["a", "b"]}, "`cross` is an option of features of kind categorical"),
        (
            {"kind": "categorical", "hash_buckets": 8, "min_count": 2},
            "categorical without `hash_buckets` or `vocabulary`",
        ),
        ({"kind": "categorical", "vocabulary": ["a"], "min_count": 2}, "without `hash_buckets` or `vocabulary` alone"),
        ({"kind": "categorical", "hash_buckets": 8, "max_size": 2}, "of kind categorical without `hash_buckets` alone"),
        (
            {"kind": "categorical", "hash_buckets": 8, "vocabulary": ["a"]},
            "`vocabulary` is an option of features of kind",
        ),
        ({"kind": "categorical", "hash_buckets": 1}, "greater than or equal to 2"),
        ({"kind": "categorical", "vocabulary": [1, 2]}, "should be a valid string"),
        ({"kind": "categorical", "cross": ["a", "b"]}, "a `cross` must have `hash_buckets` and no `column`"),
        ({"kind": "categorical", "cross": ["a", "b"], "hash_buckets": 8, "column": "c"}, "and no `column`"),
        ({"kind": "categorical", "cross": ["a"], "hash_buckets": 8}, "at least 2 items"),
        (
            {"kind": "categorical", "cross": ["a", "b"], "hash_buckets": 8, "multivalued": True},
            "of kind categorical without `cross` alone",
        ),
        ({"kind": "text", "codes": 8}, "with `quantizer: product | residual` alone; f is text, quantile"),
        ({"kind": "text", "levels": 2, "quantizer": "product"}, "with `quantizer: residual` alone"),
        ({"kind": "text", "groups": 2, "quantizer": "residual"}, "with `quantizer: quantile | product` alone"),
        ({"kind": "text", "quantiles": 2, "quantizer": "product"}, "with `quantizer: quantile` alone"),
        ({"kind": "text", "quantizer": "product", "codes": 5000}, "less than or equal to 4096"),
        ({"kind": "multimodal", "dim": 8, "quantizer": "product"}, "`groups` * `dims_per_group` must be at most `dim`"),
        ({"kind": "categorical", "multivalued": True, "separator": ""}, "at least 1 character"),
        ({"kind": "text", "quantiles": 9, "dims_per_group": 4}, "must be at most 4096"),
        ({"kind": "multimodal", "dim": 8}, "`groups` * `dims_per_group` must be at most `dim`"),
        ({"kind": "txt"}, "'categorical', 'numerical', 'multimodal', 'text', 'image' or 'counter'"),
    ],
)
def test_option_that_would_do_nothing_is_refused(keys, message):
    with pytest.raises(UsageError) as caught:
        parse(feature(**keys))
    assert message in str(caught.value)


def test_key_that_stands_twice_is_refused(tmp_path):
    path = saved(tmp_path, "data:\n  out: d\ntraining:\n  epochs: 3\n  seed: 1\n  epochs: 4\n")
    with pytest.raises(UsageError, match=r"c\.yaml: not valid YAML: the key `epochs` stands twice .*line 6"):
        load(path)
    same = saved(tmp_path, "data: {out: d}\ntraining: {seed: 1}\nindex: {kind: exact}\nexport: {k: 1}\n")
    assert load(same).export.k == 1


@pytest.mark.parametrize("text", ["data: [", "- a\n- b\n", "3", "", "data: {out: !!python/object:os.system x}"])
def test_file_that_is_no_mapping_is_told_in_one_line(tmp_path, text):
    with pytest.raises(UsageError, match=r"c\.yaml: (not valid YAML|must hold sections)") as caught:
        load(saved(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_file_that_cannot_be_read_is_told_in_one_line(tmp_path):
    path = saved(tmp_path, "data: {out: d}\n")
    for wrong in (tmp_path / "none.yaml", tmp_path, path / "b.yaml"):
        with pytest.raises(UsageError, match="no such configuration file"):
            load(wrong)
    with pytest.raises(UsageError, match="File name too long"):
        load(tmp_path / ("a" * 300))
    path.write_bytes(b"data: {out: \xff}\n")
    with pytest.raises(UsageError, match="not valid YAML"):
        load(path)
    path.write_text("# " + "x" * (1 << 20))
    with pytest.raises(UsageError, match="larger than"):
        load(path)


def test_variable_is_replaced_or_named(tmp_path, monkeypatch):
    path = saved(tmp_path, "data: {out: '${TFREC_A}/d-${TFREC_B}', events: {files: ['${TFREC_A}/*.csv']}}\n")
    monkeypatch.setenv("TFREC_A", "/logs")
    monkeypatch.delenv("TFREC_B", raising=False)
    with pytest.raises(UsageError, match=r"uses \$\{TFREC_B\}, which is not set; run `export TFREC_B="):
        load(path)
    monkeypatch.setenv("TFREC_B", "7")
    config = load(path)
    assert config.data.out == "/logs/d-7"
    assert config.data.events is not None
    assert config.data.events.files == ("/logs/*.csv",)


def test_overrides_reach_every_level_and_the_last_one_counts(tmp_path):
    path = saved(tmp_path, "data: {out: d}\ntraining:\n")
    overrides = [
        "training.epochs=3",
        "data.filters.k_core=5",
        "evaluation.ks=[1, 2]",
        "model.name=sasrec",
        "data.out=e",
    ]
    config = load(path, [*overrides, "training.epochs=4"])
    assert (config.training.epochs, config.data.filters.k_core, config.evaluation.ks) == (4, 5, (1, 2))
    assert (config.model["name"], config.data.out) == ("sasrec", "e")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "must look like section.key=value"),
        ("=3", "must look like section.key=value"),
        ("data.out.x=3", "`out` is not a section"),
        ("training.epochs=[", "the value is not valid YAML"),
        ("training.epoch=3", "did you mean `epochs`?"),
    ],
)
def test_wrong_override_is_named(tmp_path, override, message):
    with pytest.raises(UsageError) as caught:
        load(saved(tmp_path, "data: {out: d}\n"), [override])
    assert message in str(caught.value)


def test_saved_configuration_spells_out_every_default_and_loads_as_the_same(tmp_path):
    kinds = ("categorical", "numerical", "multimodal", "text")
    config = parse(
        {"data": {"out": "d", "events": CSV}, "features": {"items": [{"name": kind, "kind": kind} for kind in kinds]}}
    )
    write(config, tmp_path)
    assert load(tmp_path / CONFIG) == config
    text = yaml.safe_load((tmp_path / CONFIG).read_text())
    assert text["training"]["epochs"] == 20
    assert text["features"]["items"][0]["bins"] == 32


def test_the_page_of_the_dataset_shows_features_that_are_taken():
    page = (Path(__file__).parents[2] / "docs/data.md").read_text("utf-8")
    shown = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    features = parse({"data": {"out": "d"}, **shown}).features.items
    assert {one.quantizer for one in features if one.is_vector} == {"residual", "product", "quantile"}
    assert [one.cross for one in features if one.cross] == [("brand", "price")]


def test_suggestion_is_the_nearest_word_or_all_of_them():
    assert suggest("epohcs", ["epochs", "seed"]) == "did you mean `epochs`?"
    assert suggest("x", ["epochs", "a"]) == "known: a, epochs."
