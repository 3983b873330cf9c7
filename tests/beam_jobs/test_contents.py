"""Texts and images of the items file as vectors of a dataset, through the whole job."""

import io
import json

import numpy as np
import polars as pl
import pytest
from PIL import Image

from beam_jobs.contents import decode_image
from beam_jobs.preprocess import run
from tests.beam_jobs.checkpoints import letters, png, write_keras_model, write_saved_model
from tests.beam_jobs.records import read_examples
from tfrec.config import parse
from tfrec.errors import UserError
from tfrec.schema import Schema
from tfrec.transforms import Pretrained

QUANTIZED = {"dim": 4, "groups": 2, "dims_per_group": 1, "quantiles": 2, "keep_vectors": True}
CUT = png([[[1, 2, 3]]])[:40]
SIZES = [(4, 6), (8, 12), (16, 24)]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    write_saved_model(folder / "letters")
    write_keras_model(folder / "means.keras")
    return folder


def make_items(num_items=12):
    """Items with a title and an image of one colour; of item 3 the image is cut, of item 4 there is none."""
    rows = []
    for n in range(num_items):
        height, width = SIZES[n % 3]
        image = png(np.full((height, width, 3), (20 * n, 255 - 10 * n, n)))
        image = CUT if n == 3 else None if n == 4 else image
        rows.append({"item_id": f"i{n}", "title": None if n == 5 else f"the title {'e' * n}", "image": image})
    return rows


def config_of(logs, encoders, items, out="dataset", **image):
    events = [{"user_id": f"u{n % 4}", "item_id": f"i{n % 12}", "time": 1_600_000_000 + n} for n in range(48)]
    pl.DataFrame(events).write_csv(logs / "events.csv")
    text = {"kind": "saved_model", "path": str(encoders / "letters"), "output": "vectors", "batch_size": 5}
    image = {"kind": "keras", "path": str(encoders / "means.keras"), "batch_size": 4, **image}
    return parse(
        {
            "data": {
                "out": str(logs / out),
                "events": {"files": [str(logs / "events.csv")]},
                "items": {"files": [str(items)]},
            },
            "features": {
                "items": [
                    {"name": "topic", "column": "title", "kind": "text", "encoder": text, **QUANTIZED},
                    {"name": "photo", "column": "image", "kind": "image", "encoder": image, **QUANTIZED},
                ]
            },
        }
    )


def expected_photo(n):
    red, green, blue = 20 * n, 255 - 10 * n, n
    return [red, green, blue, (red + green + blue) / 3]


@pytest.fixture(scope="module")
def dataset(encoders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    pl.DataFrame(make_items()).write_parquet(folder / "items.parquet")
    return run(config_of(folder, encoders, folder / "items.parquet"))


def test_items_have_the_vectors_of_their_encoders_and_the_codes_of_those(dataset):
    schema = Schema.read(dataset)
    for example in read_examples(dataset, "items"):
        n = int(example["item_id"][0][1:])
        title, photo = example["vector_topic"], example["vector_photo"]
        assert np.isnan(title).all() if n == 5 else title == letters(f"the title {'e' * n}")
        if n in (3, 4):
            assert np.isnan(photo).all()
            assert example["item_photo"] == [1, 1]
        else:
            np.testing.assert_allclose(photo, expected_photo(n), rtol=1e-5)
        for name, vector in (("topic", title), ("photo", photo)):
            codes = schema.feature(name).transform.encode(np.array([vector], np.float32), dataset)
            assert codes[0].tolist() == example[f"item_{name}"]


def test_an_image_that_does_not_decode_is_a_missing_value_in_the_account(dataset):
    log = json.loads((dataset / "manifest.json").read_text())["account"]["items"]
    assert (log["input"], log["accepted"], log["stored"], log["rejected"]) == (12, 12, 12, 0)
    assert log["files"]["items.parquet"]["missing"] == {"image: must be an image that decodes": 1}
    (line,) = (dataset / "rejected" / "items.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "file": "items.parquet",
        "row": 4,
        "column": "image",
        "value": "40 bytes",
        "rule": "must be an image that decodes",
    }


def test_the_schema_names_the_encoder_by_its_hash_and_no_path(dataset, encoders):
    encoder = Schema.read(dataset).feature("photo").encoder
    assert isinstance(encoder, Pretrained)
    assert encoder.kind == "keras"
    assert str(encoders) not in (dataset / "schema.json").read_text()


@pytest.fixture(scope="module")
def from_files(encoders, tmp_path_factory):
    """The same images as files, two of their paths wrong, in a CSV."""
    folder = tmp_path_factory.mktemp("files")
    rows = make_items()
    for n, row in enumerate(rows):
        if row["image"] is not None:
            (folder / f"{n}.png").write_bytes(row["image"])
            row["image"] = f"{n}.png" if n != 7 else "gone.png"
    pl.DataFrame(rows).write_csv(folder / "items.csv")
    return folder


def test_images_in_files_are_read_from_a_folder(from_files, encoders, dataset):
    config = config_of(from_files, encoders, from_files / "items.csv", folder=str(from_files))
    found = run(config)
    vectors = {one["item_id"][0]: one["vector_photo"] for one in read_examples(found, "items")}
    for example in read_examples(dataset, "items"):
        same = vectors[example["item_id"][0]]
        np.testing.assert_array_equal(same, [np.nan] * 4 if example["item_id"] == [b"i7"] else example["vector_photo"])
    files = json.loads((found / "manifest.json").read_text())["account"]["items"]["files"]
    assert files["items.csv"]["missing"] == {
        "image: must be an image that decodes": 1,
        "image: must be the path of an image that can be read": 1,
    }


@pytest.mark.slow
def test_two_workers_give_the_same_bytes(from_files, encoders):
    items = from_files / "items.csv"
    one = run(config_of(from_files, encoders, items, "one", folder=str(from_files)))
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    two = run(config_of(from_files, encoders, items, "two", folder=str(from_files)), options)
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()


def test_a_wrong_folder_of_images_stops_the_job(from_files, encoders):
    config = config_of(from_files, encoders, from_files / "items.csv", "none", folder=str(from_files / "nowhere"))
    with pytest.raises(UserError, match=r"`data.items`: 11 of 12 values of column image: must be the path of an image"):
        run(config)


def test_an_encoder_of_another_width_stops_the_job_in_one_line(from_files, encoders, tmp_path):
    write_saved_model(tmp_path / "letters", width=3)
    config = config_of(from_files, encoders, from_files / "items.csv", "none", folder=str(from_files))
    (topic, photo), path = config.features.items, str(tmp_path / "letters")
    topic = topic.model_copy(update={"encoder": topic.encoder.model_copy(update={"path": path})})
    features = config.features.model_copy(update={"items": (topic, photo)})
    with pytest.raises(UserError, match=r"^feature topic: encoder .* gives 5 values the shape \(5, 3\), must be one"):
        run(config.model_copy(update={"features": features}))
    with pytest.raises(UserError, match=r"`encoder` is not the one that .* was made with; fit it anew with `--refit"):
        run(config, grow_from=grown(from_files, encoders, tmp_path))


def grown(from_files, encoders, tmp_path):
    """An older dataset whose images were scaled to another range."""
    items = from_files / "items.csv"
    return run(config_of(from_files, encoders, items, "older", folder=str(from_files), pixel_range=[0, 1]))


def test_images_of_other_modes_and_sizes_are_scaled_rgb():
    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 20), 200, np.uint8)).save(buffer, format="GIF")
    image = decode_image(buffer.getvalue(), (4, 6))
    assert image.shape == (4, 6, 3)
    assert (image == 200).all()


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\xff\xd8\xff\xe0" + b"\0" * 50, b"<svg/>", CUT])
def test_bytes_that_are_no_image_are_told(content):
    assert decode_image(content, (4, 6)) == "must be an image that decodes"


def test_an_image_that_says_it_is_huge_is_not_decoded():
    buffer = io.BytesIO()
    Image.new("1", (12_000, 9_000)).save(buffer, format="PNG")
    assert decode_image(buffer.getvalue(), (4, 6)) == f"must be an image of at most {Image.MAX_IMAGE_PIXELS:,} pixels"
