"""The linear matcher against Python's `re`, on random texts, and on texts that `re` takes hours for."""

import random
import re

import pytest

from nydus_service.triggers.automaton import Automaton, group, literal
from nydus_service.triggers.rules import PLACEHOLDERS

EXPRESSIONS = {
    "name": r"[^/:@]+(?::\d+)?(?:/[^/:@]+)+",
    "registry": r"[^/@]+",
    "repository": r"[^:@]+",
    "tag": r"\w[\w.-]*",
    "digest": r"\w+:[0-9a-f]{64}",
    "hex": r"[0-9a-f]{64}",
}
"""What each placeholder may be, as `re` has it."""

TEMPLATES = [
    [("", "name"), (":", "tag"), ("-nydus", "")],
    [("mirror/", "registry"), ("-", "repository"), (":", "tag"), ("-n", "")],
    [("", "name"), ("/n/", "name"), (":", "tag")],
    [("", "repository"), (":", "hex")],
    [("x", "repository"), ("", "repository"), ("", "digest")],
    [("a.b", "")],
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_it_matches_what_the_regular_expression_matches(template: list[tuple[str, str]]) -> None:
    automaton = Automaton(group(*(group(literal(a), PLACEHOLDERS.get(b, group())) for a, b in template)))
    expression = re.compile("".join(re.escape(a) + EXPRESSIONS.get(b, "") for a, b in template))
    pieces = ["a", "1", "/", ":", "@", ".", "-", "_", "\n", "é", "-nydus", "mirror/", "/n/", "a.b", "-n", "x"]
    pieces += ["a/b", ":1", "0" * 64, "sha256:" + "f" * 64]
    rng = random.Random(1)
    matched = 0
    for _ in range(20_000):
        text = "".join(rng.choices(pieces, k=rng.randrange(8)))
        wanted = expression.fullmatch(text) is not None
        assert automaton.matches(text) == wanted, text
        matched += wanted
    assert matched


def test_work_grows_linearly_with_the_text() -> None:
    """Each character moves all positions once: the sets of positions stay few, whatever the length."""
    template = [("mirror/", "registry"), ("-", "repository"), ("-", "tag"), (":nydus", "")]
    automaton = Automaton(group(*(group(literal(a), PLACEHOLDERS.get(b, group())) for a, b in template)))
    assert not automaton.matches("mirror/" + "a-" * 15_000)
    assert automaton.matches("mirror/" + "a-" * 15_000 + "a:nydus")
