"""The first answer counts: where it ends, that nothing later changes a verdict, and what engines must guarantee."""

from __future__ import annotations

import json
import pickle
import time
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from cft.config.build import CONF_DIR, build
from cft.config.command_line import command_line_errors, read_command_line
from cft.types import Decision, Verifier
from cft.verifiers import Exact, FirstAnswer, Math, MultipleChoice, Numeric, Regex, verifier_fingerprint
from cft.verifiers.extract import explicit_answer, first_answer_end
from cft.verifiers.grader import outcome_of
from cft.verifiers.pool import VerifierPool
from tests.stage import composed

NUMERIC = Numeric(fallback_last_number=True)
EXACT = Exact(case_sensitive=False, fallback_last_line=True)
CHOICE = MultipleChoice(choices="ABCDE")
REGEX = Regex(pattern=r"=\s*(\S+)", compare="number")
MATH = Math(fallback_last_number=True, lists="unknown")
INNER: list[Verifier] = [NUMERIC, Numeric(fallback_last_number=False), EXACT, CHOICE, REGEX]

FRAGMENTS = [
    *("\\boxed{", "\\fbox {", "\\boxed\n{", "\\", "{", "}", "\\{", "\\}", "}}", "\\boxed{}", "\\boxed{5}"),
    *("####", "#### ", "#", "#### 7\n", "#### 2. ", "step ", "Step 2", "####\n", "####\t\r\n", "1.", "\n", "\r\n"),
    *("<answer>", "</answer>", "<ANSWER>", "<answer>B</answer>", "<answer> </answer>", "\0", "<", ">"),
    *("5", "6", "-", "B", "= 5", "the answer is ", ". ", " ", "\u00a0", "\ufffd", "é", "\ud800"),
]
TEXT = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join)


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("so \\boxed{5}. Or \\boxed{6}", "so \\boxed{5}"),
        ("\\fbox{ 5 }!", "\\fbox{ 5 }"),
        ("#### 5\n#### 6\n", "#### 5\n"),
        ("<answer>5</answer> <answer>6</answer>", "<answer>5</answer>"),
        ("<answer>5 <answer>6</answer> 7</answer>", "<answer>5 <answer>6</answer>"),
        # By where a marker closes, not by where it opens.
        ("\\boxed{5 <answer>6</answer>}", "\\boxed{5 <answer>6</answer>"),
        ("#### \\boxed{5} is it\n", "#### \\boxed{5}"),
        ("#### <answer>5</answer>\n", "#### <answer>5</answer>"),
        ("\\boxed{\\boxed{5}}", "\\boxed{\\boxed{5}"),
        ("\\boxed{\\frac{1}{2}} ", "\\boxed{\\frac{1}{2}}"),
        ("\\boxed{\\{5\\}} ", "\\boxed{\\{5\\}}"),
        # A line of #### that begins in a marker is the later one, and open until its newline.
        ("\\boxed{#### 5} or\n6", "\\boxed{#### 5} or\n"),
        ("\\boxed{#### 5} or \\boxed{6} ", "\\boxed{#### 5} or \\boxed{6}"),
        ("<answer>#### 5</answer>", None),
        ("<answer>#### 5</answer>\n ", "<answer>#### 5</answer>\n"),
        # Headings and what holds nothing are no answers.
        ("#### Step 2\n#### 7\n", "#### Step 2\n#### 7\n"),
        ("#### 2. Add\n\\boxed{5} ", "#### 2. Add\n\\boxed{5}"),
        ("\\boxed{#### Step 2 } 7", "\\boxed{#### Step 2 }"),
        ("#### 2.\n ", "#### 2.\n"),
        ("\\boxed{} \\boxed{ } <answer>\n</answer>\n####\n#### \r\n", None),
        ("\\boxed{\\boxed{}} ", "\\boxed{\\boxed{}}"),
        # Nothing is closed.
        ("", None),
        ("#### 5", None),
        ("\\boxed{5", None),
        ("\\boxed{5\\}", None),
        ("\\\\boxed{5}", None),
        ("{\\boxed}{5}", None),
        ("<answer>5</answer", None),
        ("<answer>5\0</answer>", None),
        ("The answer is 5.\n", None),
    ],
)
def test_where_the_first_answer_is_complete(text: str, prefix: str | None) -> None:
    end = first_answer_end(text)
    assert (None if end is None else text[:end]) == prefix


@settings(max_examples=80, deadline=None)
@given(TEXT)
def test_it_is_the_shortest_prefix_with_a_closed_answer(text: str) -> None:
    """Against the definition, tried at every prefix."""
    found = [explicit_answer(text[:n]) for n in range(len(text) + 1)]
    assert first_answer_end(text) == next((n for n, f in enumerate(found) if f is not None and f.closed), None)


@settings(max_examples=40, deadline=None)
@given(TEXT, st.sampled_from(["5", "B", "#### 5\n", "", "one\n#### 6"]))
@example("\\boxed{5}. #### 6\n", "5")
@example("\\boxed{#### 5} 6\n", "5")
def test_nothing_later_changes_a_final_verdict(text: str, answer: str) -> None:
    """For every split of the text into s and c: final(s) implies the same whole verdict on s + c."""
    for inner in INNER:
        verifier = FirstAnswer(inner=inner)
        whole = verifier(text, answer)
        for n in range(len(text) + 1):
            if not verifier.final(text[:n]):
                continue
            assert verifier.final(text)
            assert first_answer_end(text) == first_answer_end(text[:n])
            assert verifier(text[:n], answer) == whole
            assert whole.explicit


@settings(max_examples=40, deadline=None)
@given(TEXT)
def test_it_grades_as_the_inner_verifier_grades_the_text_up_to_there(text: str) -> None:
    end = first_answer_end(text)
    for inner in INNER:
        assert FirstAnswer(inner=inner).final(text) is (end is not None)
        graded, direct = FirstAnswer(inner=inner)(text, "5"), inner(text[:end], "5")
        assert (graded.decision, graded.extracted, graded.reason) == (
            direct.decision,
            direct.extracted,
            direct.reason,
        )
    if end is not None:
        # The inner one sees that answer as explicit by itself.
        assert NUMERIC(text[:end], "5").explicit
        assert EXACT(text[:end], "5").explicit


@pytest.mark.parametrize("first, second", product(("\\boxed{%s}", "#### %s\n", "<answer>%s</answer>"), repeat=2))
def test_a_second_thought_is_not_read(first: str, second: str) -> None:
    text = f"so {first % 5} no, {second % 6}"
    for inner in (NUMERIC, EXACT, MATH):
        verifier = FirstAnswer(inner=inner)
        assert (verifier(text, "5").decision, inner(text, "5").decision) == (Decision.RIGHT, Decision.WRONG)


@pytest.mark.parametrize(
    ("verifier", "text", "more"),
    [
        (NUMERIC, "\\boxed{5}", " no, \\boxed{6}"),
        (MATH, "\\boxed{5}", " no, \\boxed{6}"),
        (EXACT, "\\boxed{5}", " no, \\boxed{6}"),
        (CHOICE, "\\boxed{B}", " no, \\boxed{C}"),
        (REGEX, "\\boxed{= 5}", " no, = 6"),
    ],
)
def test_without_the_wrapper_the_same_stop_would_change_verdicts(verifier: Verifier, text: str, more: str) -> None:
    """Why `final` of each verifier is false by itself."""
    answer = "B" if verifier is CHOICE else "5"
    wrapped = FirstAnswer(inner=verifier)
    assert wrapped.final(text)
    assert not verifier.final(text)
    assert verifier(text, answer).decision != verifier(text + more, answer).decision
    assert wrapped(text, answer) == wrapped(text + more, answer)


def test_a_final_verdict_gives_one_outcome_whatever_ends_the_text() -> None:
    """Even where the inner verifier calls nothing explicit: a gold answer that is no choice, a pattern at the end."""
    for inner, answer in ((CHOICE, "17"), (Regex(pattern=r"\{(.*)\}", compare="text"), "5"), (NUMERIC, "5")):
        verdict = FirstAnswer(inner=inner)("\\boxed{5}", answer)
        assert outcome_of(verdict, finish="stop") == outcome_of(verdict, finish="length")


def test_math_is_judged_on_the_first_answer() -> None:
    verifier = FirstAnswer(inner=MATH)
    text = "\\boxed{\\frac{\\sqrt{8}}{2}} or \\boxed{3}"
    assert verifier(text, "\\sqrt{2}").decision is Decision.RIGHT
    assert verifier(text, "3").decision is Decision.WRONG
    assert verifier("no marker: 3", "3") == MATH("no marker: 3", "3")


# --- what engines must guarantee ---------------------------------------------------------------------------------------

TOKENS = st.lists(
    st.sampled_from([b"\\boxed{", b"}", b"5", b"#### ", b"\n", b"<answer>", b"</answer>", b"5}\xc3", b"\xa9}", b"\xf0"])
    | st.integers(0, 255).map(lambda byte: bytes([byte])),
    max_size=12,
)


def byte_level_ids(tokens: list[bytes]) -> tuple[Tokenizer, list[int]]:
    """A tokenizer with a byte-level decoder whose vocabulary is these tokens, whole characters or not."""
    # The alphabet of byte-level tokenizers: printable bytes stand for themselves, the others follow from 256 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    sign = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    names = ["".join(sign[byte] for byte in token) for token in tokens]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=""))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, [vocabulary[name] for name in names]


@settings(max_examples=40, deadline=None)
@given(TOKENS)
@example([b"\\boxed{", b"5", b"}\xf0", b"\x9f", b"\x98", b"\x80", b"\\boxed{6}"])
def test_under_a_byte_level_decoder_a_verdict_stands_once_it_is_final(tokens: list[bytes]) -> None:
    tokenizer, ids = byte_level_ids(tokens)
    text = tokenizer.decode(ids)
    assert text == b"".join(tokens).decode(errors="replace")
    verifier = FirstAnswer(inner=NUMERIC)
    for n in range(len(ids)):
        so_far = tokenizer.decode(ids[:n])
        if verifier.final(so_far):
            assert verifier(so_far, "5") == verifier(text, "5")
            assert verifier.final(text)


def test_a_decoder_that_falls_back_to_bytes_takes_back_what_it_gave() -> None:
    """The reason why engines must not stop early under one."""
    tokenizer = Tokenizer(models.WordLevel({"\\boxed{5": 0, "<0x7D>": 1, "<0xFF>": 2}, unk_token=""))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    verifier = FirstAnswer(inner=NUMERIC)
    assert verifier.final(tokenizer.decode([0, 1]))
    assert not verifier.final(tokenizer.decode([0, 1, 2]))


# --- identity, workers, configuration --------------------------------------------------------------------------------


def test_a_fingerprint_describes_the_verifier_inside() -> None:
    content = json.loads(verifier_fingerprint(FirstAnswer(inner=NUMERIC)))
    assert content == {
        "name": "first_answer",
        "version": "3",
        "args": {"inner": json.loads(verifier_fingerprint(NUMERIC))},
    }
    prints = {verifier_fingerprint(v) for inner in INNER for v in (inner, FirstAnswer(inner=inner))}
    assert len(prints) == 2 * len(INNER)
    assert "math-verify" in verifier_fingerprint(FirstAnswer(inner=MATH))
    with pytest.raises(TypeError, match="object is not a dataclass"):
        verifier_fingerprint(FirstAnswer(inner=object()))  # pyright: ignore[reportArgumentType]


def test_it_runs_in_a_worker() -> None:
    verifier = FirstAnswer(inner=NUMERIC)
    assert pickle.loads(pickle.dumps(verifier)) == verifier
    items = [(text, "5") for text in ("\\boxed{5} \\boxed{6}", "#### 5\n#### 6", "5", "", "\ud800\\boxed{5}\0")]
    with VerifierPool(verifier, workers=1, timeout_s=10.0) as pool:
        assert pool.verify_all(items) == [verifier(*item) for item in items]


@pytest.mark.parametrize(
    "name, inner",
    [
        ("numeric_first", Numeric(fallback_last_number=False)),
        ("math_first", Math(fallback_last_number=False, lists="unknown")),
    ],
)
def test_configs_name_the_verifier_inside(name: str, inner: Verifier) -> None:
    cfg = composed("annotate", f"verifier={name}", "verifier.inner.fallback_last_number=false")
    assert build(cfg.verifier) == FirstAnswer(inner=inner)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+verifier.inner.fallback_last_numbers=true", "verifier.inner.fallback_last_numbers"),
        ("verifier.inner.fallback_last_number=maybe", "verifier.inner.fallback_last_number"),
        ("verifier.inner=numeric", "verifier.inner"),
        ("verifier.inner._target_=os.system", "verifier.inner._target_"),
    ],
)
def test_a_mistake_in_the_verifier_inside_is_found_by_the_check(override: str, said: str) -> None:
    line = read_command_line(["verifier=numeric_first", override], stage="annotate", conf_dir=CONF_DIR)
    assert [m.key for m in command_line_errors(line, stage="annotate")] == [said]


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 15_000 + "}" * 15_000,
        "\\boxed{" * 15_000 + " " + "}" * 15_000,
        "\\boxed{" * 15_000 + "#### 5" + "}" * 15_000,
        "\\boxed{ }" * 15_000,
        "<answer>" * 15_000,
        "<answer> </answer>" * 15_000,
        "#### \n" * 15_000,
        "#### 1. " + " " * 10**5 * 2 + "}",
        "\\boxed{" * 500 + "#### 1." + " " * 10**5 * 2 + "}" * 500,
    ],
    ids=lambda text: f"{text[:12]!r}",
)
@pytest.mark.timing
def test_it_takes_time_linear_in_the_text(text: str) -> None:
    started = time.process_time()
    first_answer_end(text)
    explicit_answer(text)
    assert time.process_time() - started < 1
