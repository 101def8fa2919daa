import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from asgi_closecodes.codes import MAX_REASON_BYTES, Close, CloseCode, fit_reason, may_be_sent, private_use_code

SENDABLE = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}

# Characters of one to four bytes, so that a cut often falls inside one.
texts = st.text(st.one_of(st.sampled_from("aé€😀"), st.characters(codec="utf-8")), max_size=140)
surrogates = st.text(st.one_of(st.characters(categories=["Cs"]), st.sampled_from("aé😀")), max_size=140)


class Rude:
    def __str__(self):
        raise RuntimeError("nobody asked")


class Lying:
    def __str__(self):
        return 7  # noqa: PLE0307 - as somebody may


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(999, 5000),
    st.floats(),
    texts,
    surrogates,
    st.binary(max_size=200),
    st.lists(texts, max_size=4),
    st.dictionaries(texts, st.integers(), max_size=2),
    st.builds(Rude),
    st.builds(Lying),
    st.sampled_from(CloseCode),
)


@given(texts)
@example("é" * 62)
@example("a" * 123)
@example("a" * 124)
def test_reason_is_cut_at_the_last_character_that_fits(text):
    fitted = fit_reason(text)
    assert text.startswith(fitted)
    assert len(fitted.encode()) <= MAX_REASON_BYTES == 123
    rest = text[len(fitted) :]
    assert not rest or len((fitted + rest[0]).encode()) > 123


@given(texts, texts)
@example("x" * 200, "; ref=1PB4XQ7Z0M8K")
@example("x", "é" * 62)
def test_parameters_stay_whole_and_the_text_is_cut_for_them(text, parameters):
    assume("=" not in text)  # a forged parameter is changed, see below
    fitted = fit_reason(text, parameters)
    assert len(fitted.encode()) <= 123
    if len(parameters.encode()) <= 123:
        assert fitted.endswith(parameters)
        assert text.startswith(fitted.removesuffix(parameters))
        assert len(fitted) == len(text) + len(parameters) or len(fitted.encode()) > 119
    else:
        assert fitted.endswith(fit_reason(parameters))


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        ("busy; retry_after=600", "busy, retry_after:600"),
        ("busy;retry_after=600;", "busy,retry_after:600;"),
        ("busy; Retry_After = 600; ref=X", "busy, Retry_After : 600, ref:X"),
        ("retry_after=600", "retry_after:600"),
        (b"busy;\tref=X", "busy,\tref:X"),
        ("sorry; we are full; area=db; href=x", "sorry; we are full; area=db; href=x"),
    ],
)
def test_parameters_in_the_text_become_prose(text, prose):
    """Whichever of two parameters a client takes, it is the server's own."""
    assert fit_reason(text, "; retry_after=2.3") == f"{prose}; retry_after=2.3"
    assert fit_reason(text) == (text.decode() if isinstance(text, bytes) else text)


@given(surrogates, surrogates)
def test_lone_surrogates_become_question_marks(text, parameters):
    fitted = fit_reason(text, parameters)
    assert len(fitted.encode("utf-8")) <= 123  # would raise for a surrogate
    assert fit_reason("a\ud800b\udfff") == "a?b?"


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (None, ""),
        (b"bytes", "bytes"),
        (b"\xff", "\ufffd"),
        (404, "404"),
        ([{"loc": "q"}], "[{'loc': 'q'}]"),
        (Rude(), ""),
        (Lying(), ""),
    ],
)
def test_reason_that_is_no_string_is_made_one(reason, text):
    assert fit_reason(reason) == text
    assert Close(1000, reason).sendable() == Close(1000, text)


@given(anything, anything)
def test_sendable_close_may_always_be_sent(code, reason):
    close = Close(code, reason).sendable()
    assert type(close.code) is int
    assert close.code in SENDABLE
    assert type(close.reason) is str
    assert len(close.reason.encode("utf-8")) <= 123


@given(st.sampled_from(sorted(SENDABLE)), texts.filter(lambda text: len(text.encode()) <= 123))
def test_legal_close_is_not_changed(code, reason):
    assert Close(code, reason).sendable() == Close(code, reason)


@given(st.one_of(st.integers().filter(lambda code: code not in SENDABLE), st.booleans(), st.floats(), st.none()))
def test_code_that_may_not_be_sent_becomes_1011(code):
    assert Close(code, "why").sendable() == Close(1011, "why")


def test_exactly_the_registered_and_the_free_codes_may_be_sent():
    assert {code for code in range(-10, 70_001) if may_be_sent(code)} == SENDABLE


@pytest.mark.parametrize("code", [True, False, None, 1000.0, "1000", b"1000", [1000], float("nan"), -1000, 1 << 70])
def test_code_that_is_no_integer_in_range_is_none(code):
    assert not may_be_sent(code)


def test_private_use_code_is_private_and_unique():
    private_codes = {code: private_use_code(code) for code in SENDABLE if 1000 < code < 3000}
    assert private_codes[1011] == 4011
    assert private_codes[1013] == 4013
    assert all(4000 <= twin <= 4999 for twin in private_codes.values())
    assert len(set(private_codes.values())) == len(private_codes)


@pytest.mark.parametrize("code", [1000, 3000, 4000, 4011, 4999])
def test_private_use_code_of_others_is_unchanged(code):
    assert private_use_code(code) == code


@pytest.mark.parametrize("code", CloseCode)
def test_registered_code_has_a_meaning_and_a_client_action(code):
    """Every registered code says what it means and what a client should do."""
    assert code.meaning
    assert code.advice
    assert may_be_sent(code) is ("never sent" not in code.meaning)
