"""The picture of a sequence's states is the table, arrow by arrow."""

from xml.etree import ElementTree

from folovllm_lite import viz
from folovllm_lite.request import TRANSITIONS, SequenceStatus


def arrows(picture):
    lines = [line for line in picture.text.splitlines() if "→" in line]
    return {tuple(line.partition(":")[0].split(" → ")) for line in lines}


def table(transitions):
    return {(a.name, b.name) for a, after in transitions.items() for b in after}


def test_every_arrow_is_there_and_says_what_makes_it():
    picture = viz.sequence_states()
    assert arrows(picture) == table(TRANSITIONS) == set(viz.EVENTS)
    ElementTree.fromstring(picture.svg)
    for event in viz.EVENTS.values():
        assert event in picture.svg and event in picture.text
    final = {status.name for status in SequenceStatus if status.is_finished()}
    assert final == {
        line.removesuffix(": final")
        for line in picture.text.splitlines()
        if line.endswith(": final")
    }


def test_it_draws_the_table_that_it_is_given():
    fewer = {status: after[:1] for status, after in TRANSITIONS.items()}
    picture = viz.sequence_states(fewer)
    assert arrows(picture) == table(fewer)
    assert "can never fit" not in picture.svg
    strange = {SequenceStatus.SWAPPED: (SequenceStatus.WAITING,)}
    strange = {**dict.fromkeys(TRANSITIONS, ()), **strange}
    assert "SWAPPED → WAITING\n" in viz.sequence_states(strange).text


def test_it_is_the_same_every_time():
    assert viz.sequence_states().svg == viz.sequence_states().svg
