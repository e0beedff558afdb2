"""The picture of notebook 02 holds every field once, and is the same every time."""

from dataclasses import fields
from xml.etree import ElementTree

from folovllm_lite import viz
from folovllm_lite.sampling_params import SamplingParams


def test_every_field_stands_in_one_group():
    drawn = [name for _, _, names in viz.FIELD_GROUPS for name in names]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == {field.name for field in fields(SamplingParams)}


def test_the_picture_and_its_text_name_every_field():
    picture = viz.sampling_fields()
    ElementTree.fromstring(picture.svg)
    for _, _, names in viz.FIELD_GROUPS:
        for name in names:
            assert name in picture.svg and name in picture.text
    assert picture.svg == viz.sampling_fields().svg
    assert picture.text.splitlines()[0] == "how many (sequences are made): n, best_of"
