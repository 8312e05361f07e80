"""No id forges the key of another: ``encode_id(a) == encode_id(b)`` only if ``a == b``."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from hypothesis import example, given, settings
from hypothesis import strategies as st

from celery_statekit.errors import InvalidId
from celery_statekit.record import ID_BYTES, client_key, encode_id, task_key

#: What an encoding is made of and may stumble over, surrogates in and out of pairs, and any other.
LETTERS = st.one_of(
    st.sampled_from("%~:/.-_+ 27EeFfDd\x00\n\u00e9\ud800\udc00\udfff\U00010000\U0010ffff"),
    st.integers(0, 0x10FFFF).map(chr),
)
IDS = st.one_of(
    st.text(LETTERS, max_size=12),
    st.text(LETTERS, max_size=12).map(encode_id),
    # About as long as what stands in a key in clear.
    st.builds(
        lambda text, size: text + "x" * size,
        st.text(LETTERS, max_size=3),
        st.integers(ID_BYTES - 15, ID_BYTES + 5),
    ),
)


def _bytes(id: str) -> bytes:
    return id.encode("utf-8", "surrogatepass")


def _may_name_a_task(id: str) -> bool:
    try:
        return bool(task_key(id))
    except InvalidId:
        return False


@settings(max_examples=100, deadline=None)
@given(IDS)
@example("~" + "0" * 64)
@example("%7E")
@example("\ud800\udc00")
@example("\U00010000")
def test_an_id_can_be_read_back_from_its_encoding(id: str) -> None:
    """Up to 200 bytes nothing of it is lost; what is longer stands apart, as ``~`` and a hash."""
    encoded = encode_id(id)

    assert encoded.isascii()
    assert not set(encoded) & set(":/*?[]{}\\'\" \x7f")
    assert encoded.isprintable()
    if len(_bytes(id)) <= ID_BYTES:
        assert unquote_to_bytes(encoded) == _bytes(id)
        assert "~" not in encoded
    else:
        assert encoded.startswith("~")
        assert len(encoded) == 65


@settings(max_examples=100, deadline=None)
@given(st.lists(IDS, min_size=2, max_size=6, unique=True))
@example(["~", "%7E", "%257E", "%7e"])
@example(["x" * 201, encode_id("x" * 201), "x" * 200])
@example(["\ud800\udc00", "\U00010000", "\ud800", "\udc00"])
def test_two_ids_have_two_encodings(ids: list[str]) -> None:
    """Also where one is what the other is encoded as."""
    assert len({encode_id(id) for id in ids}) == len(ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(IDS, IDS), min_size=2, max_size=6, unique=True))
@example([("a", "b:c"), ("a:b", "c"), ("task", "x")])
def test_kind_and_id_have_a_key_of_their_own(pairs: list[tuple[str, str]]) -> None:
    """No kind and id make the key of another kind and id, nor that of a task."""
    clients = {client_key(kind, id) for kind, id in pairs}
    ids = {id for _, id in pairs if _may_name_a_task(id)}
    tasks = {task_key(id) for id in ids}

    assert len(clients) == len(pairs)
    assert len(tasks) == len(ids)
    assert not clients & tasks
