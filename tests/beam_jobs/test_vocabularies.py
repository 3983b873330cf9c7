import pytest

from beam_jobs.vocabularies import given_values
from tfrec.config import FeatureConfig
from tfrec.errors import UsageError


def make_feature(vocabulary, **options):
    return FeatureConfig(name="brand", kind="categorical", vocabulary=vocabulary, **options)


def test_a_list_and_a_file_give_their_values_in_order(tmp_path):
    path = tmp_path / "brands.txt"
    for text in ("\ufeffb\na b\nÜ\n", "b\na b\nÜ"):
        path.write_text(text, encoding="utf-8")
        assert given_values(make_feature(str(path))) == ["b", "a b", "Ü"]
    assert given_values(make_feature(("b", "a"))) == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\na\n", r"brands.txt, value 3 'a' stands twice; give each value once"),
        (b"a\n\nb\n", r"brands.txt, value 2 is empty"),
        (b"", r"brands.txt must hold 1 to 3 values \(`max_size`\), holds 0"),
        (b"a\nb\nc\nd\n", r"brands.txt must hold 1 to 3 values \(`max_size`\), holds 4"),
        (b"\xff\n", r"brands.txt: not UTF-8; the `vocabulary` of feature brand is a UTF-8 text file"),
        (None, r"brands.txt: No such file or directory; the `vocabulary` of feature brand"),
    ],
)
def test_what_is_no_vocabulary_is_told_in_one_line(tmp_path, content, message):
    path = tmp_path / "brands.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        given_values(make_feature(str(path), max_size=3))


def test_a_list_is_checked_too():
    with pytest.raises(UsageError, match="feature brand: `vocabulary`, value 2 'a' stands twice"):
        given_values(make_feature(("a", "a")))
