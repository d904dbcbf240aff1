"""Messages in a stream of bytes."""

from __future__ import annotations

import pytest

from launcher.protocol import MessageReader, encode

HELLO = {"event": "hello", "text": "a\nb\udcff"}


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_messages_are_found_in_pieces_of_any_size(size: int) -> None:
    reader, stream = MessageReader(), encode(HELLO) + encode({"event": "beat"})
    found = [message for at in range(0, len(stream), size) for message in reader.feed(stream[at : at + size])]
    assert (found, reader.noise) == ([HELLO, {"event": "beat"}], [])


def test_what_comes_before_the_first_message_is_no_message() -> None:
    reader = MessageReader()
    assert reader.feed(b"Welcome!\n\n12\n$ \n" + encode(HELLO)) == [HELLO]
    assert reader.noise == ["Welcome!", "", "12", "$ "]
    with pytest.raises(ValueError, match="Expecting value"):
        reader.feed(b"Welcome!\n")
