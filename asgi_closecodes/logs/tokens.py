"""Token detection in paths: letters and digits that read like neither words nor numbers.

Names, titles, dates and versions consist of words and of groups of digits. Random or encoded text does not. So a path
is split at everything but letters and digits. The weight of a piece is the number of its characters outside of words
and numbers. Detection takes linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote, unquote

MASK = "REDACTED"

_MIN_TOKEN_CHARS = 14
_MIN_SPECIAL_TOKEN_CHARS = 12  # words are not joined by specials
"""Characters of a token anywhere in a path."""
_MIN_EXPECTED_CHARS = 6
"""Random characters where a token is expected: below "token", behind "Bearer" or "sk-"."""
_MIN_RANDOM_CHARS = 8
_MIN_RANDOM_SHARE = 0.5
"""Share of a token's characters outside of words and numbers."""
_MAX_NUMBER_DIGITS = 24
_MAX_DECODINGS = 5
"""Rounds of percent-decoding."""

_PAIRS = (
    # Row: first letter, column: second letter; 9 is the most frequent pair. From the 20 000 most frequent words of
    # each of 13 European languages.
    "77883676757989572989765356",
    "74118010720602600642600040",
    "80508008836503801636600045",
    "82249132822434820653633044",
    "76787675756889563998665655",
    "60016520700500600635500020",
    "71038055703525600754600020",
    "81038000722434700536513040",
    "86878674556879864798472336",
    "60036100404113500031500000",
    "71217002614514700556622040",
    "93369343934854730156741061",
    "86228111801364770143600040",
    "83788584836437722389652065",
    "56665564646889672987766345",
    "80218225701612860855600030",
    "00000000000000000000600000",
    "95679464936666842677754065",
    "83728336826654772389744054",
    "93419236934534820877734064",
    "65667454645768460877443334",
    "80018000700302600421420041",
    "60116003601104500330200040",
    "30303000400000140004100000",
    "53535122324444430354323022",
    "62236011613224520112413053",
)
_FREQUENCY = {f"{chr(97 + a)}{chr(97 + b)}": int(digit) for a, row in enumerate(_PAIRS) for b, digit in enumerate(row)}
_MIN_NAME_FREQUENCY = 4.5
_MIN_WORD_FREQUENCY = 5.3
_MIN_SHORT_WORD_FREQUENCY = 6.2
"""Minimum mean pair frequency of words; random letters have about 3."""

_PIECE = re.compile(r"[A-Za-z0-9]+")
_PART = re.compile(r"[0-9]+|[A-Za-z]+")
_ORDINARY = re.compile(r"([a-z]{1,3}|[A-Z]{1,3})[0-9]{1,3}|[0-9]{1,4}([a-z]{1,2}|[A-Z]{1,2})")  # v2, mp4, 2nd, 1080p
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_HEXADECIMAL = re.compile(r"(?=[0-9]*[A-Fa-f])[A-Fa-f0-9]{16}")
_MIXED = re.compile(r"(?=.*[a-z]).*[A-Z]")
_DASHED = re.compile(r"[A-Za-z0-9_-]+")  # base64, of which a dash may be near an end
_SPECIAL = re.compile(r"[^\w.~:+=-]")
_JOINT = re.compile(r"[!-.:-@\[-`{-~]{1,2}")  # punctuation but for the slash

_ALWAYS = re.compile(
    r"""
    (?<![A-Za-z0-9])eyJ[\w-]{5,}[\w.~+=-]*                                          # JSON Web Tokens
  | (?<![A-Fa-f0-9])[A-Fa-f0-9]{8}(?:-[A-Fa-f0-9]{4}){3}-[A-Fa-f0-9]{12}            # UUIDs
  | (?<![A-Za-z0-9])(?:A3T[A-Z0-9]|A[BCGIKNPRS][A-Z]A|AIza|EAA)(?=[A-Za-z]*[0-9])[\w-]{12,}   # AWS, Google, Meta
  | (?<![\w+-])[\w+-]+==(?![\w=])                                                   # base64 with padding
    """,
    re.VERBOSE | re.ASCII,
)
_CREDENTIALS = re.compile(
    r"(?<![A-Za-z0-9])(?:basic|bearer|digest|negotiate|token|apikey)[ +]+(?P<token>[^\s,;]+)", re.IGNORECASE
)
_PREFIXED = re.compile(
    r"""
    (?<![A-Za-z0-9])(?:
        [psr]k|whsec|gh[a-z]|github_pat|gl[a-z]{2,6}|xox[a-z]|xapp|shp[a-z]{2}|npm|pypi|hf|do[opr]_v1|key|tok|sess|api
      | sq0[a-z]{3}|lin_api|pat|nvapi|hv[sbr]|atlasv1|rubygems|pul|glsa|r8|sntrys|dapi|SG|ya29
    )[-_.](?P<token>[\w.~+=-]+)
    """,
    re.VERBOSE | re.ASCII | re.IGNORECASE,
)
"""API keys with a known prefix."""
_PARAMETER = re.compile(r"(?:^|[;&?,#])(?P<name>[^=;&?,#]*)=(?P<value>[^;&?#]*)")
_SECRET_NAME = re.compile(
    r"(?i:sess|token|secret|passw|pwd|passphrase|credential|signature|api[-_]?key|jwt|csrf|xsrf|bearer)"
    r"|(?:(?i:(?<![a-z])(?:sid|key|auth|authorization|sig|otp|pin|pass|ticket|hmac))"
    r"|(?<=[a-z])(?:Sid|Key|Auth|Authorization|Sig|Otp|Pin|Pass|Ticket|Hmac))$"
)
_ABOVE_A_TOKEN = re.compile(
    r"(?:.*[-_.])?(?:tokens?|secrets?|password|keys?|apikeys?|jwt|sessions?|sid|auth|bearer|invites?|reset|verify|confirm)",
    re.IGNORECASE,
)
_ADDRESSES = frozenset({"acct", "mailto", "sip", "sips", "xmpp"})
"""URL schemes, not users with a password: ``mailto:alice@example.org``."""
_BASE64 = re.compile(r"[A-Za-z0-9+_=-]{3,}")


def masked_path(path: str) -> str:
    """Return ``path``, percent-encoded or not, with tokens replaced by ``REDACTED``."""
    segments = path.split("/")
    masked: list[str] = []
    above = ""
    for segment in segments:
        masked.append(_mask_segment(segment, is_expected=_ABOVE_A_TOKEN.fullmatch(above) is not None))
        above = segment
    start = 0
    while start < len(segments):  # base64 contains slashes, which servers decode
        end, weight = start, 0
        while end < len(segments) and (more := _base64_weight(segments[end])):
            end += 1
            weight += more
        parts = segments[start:end]
        if len(parts) > 1:
            size = len("/".join(parts))
            is_token = size >= _MIN_TOKEN_CHARS and weight >= _MIN_RANDOM_SHARE * size
            if is_token or parts[-1].endswith("=") or masked[start:end] != parts:
                masked[start:end] = [MASK] * len(parts)
        start = max(end, start + 1)
    return "/".join(masked)


def _mask_segment(segment: str, *, is_expected: bool) -> str:
    if len(segment) < _MIN_EXPECTED_CHARS and "=" not in segment and "@" not in segment:
        return segment
    plain = segment
    for _ in range(_MAX_DECODINGS):
        if "%" not in plain or (decoded := unquote(plain)) == plain:
            break
        plain = decoded
    else:
        return MASK  # encoded this often only to hide something
    if plain is not segment and "/" in plain:
        shown = masked_path(plain)
    else:
        shown = _mask_spans(plain, [*_token_spans(plain, is_expected=is_expected)])
    if shown == plain:
        return segment
    return shown if plain is segment else quote(shown, safe=":@!$&'()*+,;=~-._", errors="replace")


def _mask_spans(text: str, spans: list[tuple[int, int]]) -> str:
    shown: list[str] = []
    at = 0
    for start, end in sorted(spans):
        if start > at or (start == at and not shown):
            shown += text[at:start], MASK
        at = max(at, end)
    return "".join((*shown, text[at:]))


def _token_spans(text: str, *, is_expected: bool) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each token in ``text``."""
    if is_expected and _is_random(text):
        yield 0, len(text)
        return
    for found in _ALWAYS.finditer(text):
        yield found.span()
    for found in _CREDENTIALS.finditer(text):
        if any(map(str.isdigit, found["token"])) or _is_random(found["token"]):
            yield found.span("token")
    for found in _PREFIXED.finditer(text):
        if _is_random(found["token"]):
            yield found.span()
    for found in _PARAMETER.finditer(text):
        if found["value"] and _SECRET_NAME.search(found["name"]):
            yield found.span("value")
    user, has_password, password = text.rpartition("@")[0].partition(":")
    if has_password and password and user not in _ADDRESSES:
        yield len(user) + 1, len(user) + 1 + len(password)
    yield from _random_spans(text, [*_pieces(text)])


def _is_random(text: str) -> bool:
    """Whether enough characters are random for a place where a token is expected."""
    return sum(_random_chars(found.group()) for found in _PIECE.finditer(text)) >= _MIN_EXPECTED_CHARS


def _random_chars(piece: str) -> int:
    return len(piece) if len(piece) > 4 and _ORDINARY.fullmatch(piece) else _weigh(piece)[1]


def _random_spans(text: str, pieces: list[_Piece]) -> Iterator[tuple[int, int]]:
    """Yield the spans of long enough runs of random pieces, with punctuation between them."""
    run: list[_Piece] = []
    for piece in [*pieces, None]:
        if run and (piece is None or piece.is_word or not _JOINT.fullmatch(text[run[-1].end : piece.start])):
            if (span := _token_span(text, run)) is not None:
                yield span
            run = []
        if piece is not None and not piece.is_word:
            run.append(piece)


def _token_span(text: str, run: list[_Piece]) -> tuple[int, int] | None:
    """Return the span of the token in a run of pieces without words, or None."""
    heavy = [at for at, piece in enumerate(run) if piece.weight]
    if not heavy:
        return None
    core = run[heavy[0] : heavy[-1] + 1]
    span = text[core[0].start : core[-1].end]
    specials = len(_SPECIAL.findall(span))
    weight = specials + sum(one.weight for one in core)
    if weight < max(_MIN_RANDOM_CHARS, _MIN_RANDOM_SHARE * (specials + sum(one.size for one in core))):
        return None
    if len(span) >= (_MIN_SPECIAL_TOKEN_CHARS if specials else _MIN_TOKEN_CHARS):
        return core[0].start, _end_with_padding(text, core[-1].end)
    whole = text[run[0].start : run[-1].end]
    if len(whole) >= _MIN_TOKEN_CHARS and _MIXED.search(span) and _DASHED.fullmatch(whole):
        return run[0].start, _end_with_padding(text, run[-1].end)
    return None


def _end_with_padding(text: str, end: int) -> int:
    while text[end : end + 1] == "=":
        end += 1
    return end


class _Piece(NamedTuple):
    """Run of letters and digits.

    :ivar size: its characters, without long numbers among letters.
    :ivar weight: characters outside of words and numbers.
    """

    start: int
    end: int
    size: int
    weight: int

    @property
    def is_word(self) -> bool:
        """Whether it is a word or a number, too long for a coincidence."""
        return not self.weight and self.end - self.start > 3


def _pieces(text: str) -> Iterator[_Piece]:
    for found in _PIECE.finditer(text):
        yield _Piece(*found.span(), *_weigh(found.group()))


def _weigh(piece: str) -> tuple[int, int]:
    """Return size and weight of a piece."""
    size = len(piece)
    if piece.isdigit():
        return size, size if size > _MAX_NUMBER_DIGITS else 0
    if size >= _MIN_TOKEN_CHARS and _HEXADECIMAL.search(piece):
        return size, size
    if piece.isalpha():
        return size, _weight_of_letters(piece)
    if _ORDINARY.fullmatch(piece):
        return size, 0
    weight = 0
    for part in _PART.findall(piece):
        if part.isdigit() and len(part) >= 4:
            size -= len(part)
        elif part.isdigit() or not _is_word(
            part, _MIN_SHORT_WORD_FREQUENCY if len(part) < 8 or part.isupper() else _MIN_WORD_FREQUENCY
        ):
            weight += len(part)
    return size, weight


def _weight_of_letters(letters: str) -> int:
    size = len(letters)
    if size <= 4 and (letters.islower() or letters.isupper() or letters.istitle()):
        return 0
    is_short = size < _MIN_TOKEN_CHARS and len(_CAMEL.findall(letters)) == 1
    if _is_word(letters, _MIN_NAME_FREQUENCY if is_short else _MIN_WORD_FREQUENCY):
        return 0
    parts = _CAMEL.findall(letters)
    if size >= _MIN_TOKEN_CHARS and len(parts) * 3 > size:
        return size
    return sum(len(part) for part in parts if not _is_word(part, _MIN_WORD_FREQUENCY))


def _is_word(letters: str, least: float) -> bool:
    """Whether these letters have the pair frequencies and the capitals of words."""
    if len(letters) < 2 or len(_CAMEL.findall(letters)) * 3 > len(letters):
        return False
    return _mean(letters) >= least


def _mean(letters: str) -> float:
    """Return the mean frequency of the letter pairs in words, 0 to 9."""
    low = letters.lower()
    return sum(_FREQUENCY[low[at : at + 2]] for at in range(len(low) - 1)) / (len(low) - 1)


def _base64_weight(segment: str) -> int:
    """Return the weight of a possible base64 part between two slashes, else 0."""
    if _BASE64.fullmatch(segment) is None or segment.isdigit() or (segment.islower() and "+" not in segment):
        return 0
    weight = sum(piece.weight for piece in _pieces(segment))
    if "+" in segment or segment.endswith("="):
        return max(weight, 1)
    return weight if weight >= 0.4 * len(segment) else 0
