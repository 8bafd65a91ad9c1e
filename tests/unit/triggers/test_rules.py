"""Rules: which images are converted when they come, and to which names."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.config.reading import ConfigError
from nydus_service.config.sections import ConvertSection, DaemonConfig, RuleEntry
from nydus_service.oci.platform import Platform
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions
from nydus_service.triggers.rules import RuleBook

DIGEST = f"sha256:{'ab' * 32}"
HUB = RuleEntry(source="docker.io/library/*", target="{name}:{tag}-nydus")


def book(*rules: RuleEntry, **convert: Any) -> RuleBook:
    return RuleBook.of(DaemonConfig(rules=rules, convert=ConvertSection(**convert)))


def target(rules: RuleBook, image: str, namespace: str = "default", digest: str = DIGEST) -> str | None:
    match = rules.match(image, namespace, digest)
    return match and match.target


def test_defaults_of_the_section_are_those_of_the_options() -> None:
    assert book().defaults == ConvertOptions()


def test_no_rule_matches_nothing() -> None:
    assert target(book(), "docker.io/library/app:1") is None


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{name}:{tag}-nydus", "docker.io/library/app:1.2-nydus"),
        ("{registry}/nydus/{repository}:{tag}", "docker.io/nydus/library/app:1.2"),
        ("mirror.example:5000/{repository}:{hex}", f"mirror.example:5000/library/app:{'ab' * 32}"),
        ("mirror.example/{repository}@{digest}", f"mirror.example/library/app@{DIGEST}"),
        ("mirror.example/one:name", None),
    ],
)
def test_placeholders(template: str, expected: str | None) -> None:
    source = "docker.io/library/*" if expected else "docker.io/library/app:1.2"
    rules = book(RuleEntry(source=source, target=template))
    assert target(rules, "docker.io/library/app:1.2") == (expected or template)


@pytest.mark.parametrize(
    ("source", "template", "image"),
    [
        ("*", "{name}:{tag}-nydus", "a/" * 2000),
        ("*", "{name}:{tag}-nydus", "a" * 4000),
        ("*", "mirror/{registry}-{repository}:{tag}-nydus", "mirror/" + "a-" * 2000),
        ("*", "mirror/{registry}-{repository}-{tag}:nydus", "mirror/" + "a-" * 2000),
        ("*", "{name}/nydus/{name}:{tag}", "a/nydus/" * 500),
        ("*", "{name}{name}{name}:{tag}n", "a/" * 2000),
        ("*a*a*a*a*a*a*a*a*b", "{name}:{tag}-nydus", "x/" + "a" * 4000 + ":1"),
        ("[!a-z", "{name}:{tag}-nydus", "x/a:1"),
    ],
)
def test_hostile_names_are_left_alone(source: str, template: str, image: str) -> None:
    """Backtracking over some of these names takes hours."""
    assert target(book(RuleEntry(source=source, target=template)), image) is None


@pytest.mark.parametrize(
    "image",
    [
        "quay.io/library/app:1",  # another registry
        "docker.io/library/app",  # no tag to put into the name
        f"docker.io/library/app@{DIGEST}",
        DIGEST,  # as CRI names images by their config
        "",
    ],
)
def test_what_a_rule_leaves_alone(image: str) -> None:
    assert target(book(HUB), image) is None


def test_registry_with_a_port() -> None:
    rules = book(RuleEntry(source="*", target="{name}:{tag}-nydus"))
    assert target(rules, "localhost:5000/app:1") == "localhost:5000/app:1-nydus"
    assert target(rules, "localhost:5000/app:1-nydus") is None


def test_first_rule_that_matches_counts() -> None:
    first = RuleEntry(
        source="docker.io/library/app:*", target="{name}:{tag}-lz4", options={"compressor": "lz4_block"}
    )
    rules = book(first, HUB)
    match = rules.match("docker.io/library/app:1", "default", DIGEST)
    assert match is not None
    assert match.target == "docker.io/library/app:1-lz4"
    assert match.options.build.compressor == "lz4_block"
    assert target(rules, "docker.io/library/other:1") == "docker.io/library/other:1-nydus"


def test_a_rule_without_what_it_needs_leaves_the_image_to_the_next() -> None:
    by_digest = RuleEntry(source="docker.io/*", target="{name}:{hex}-nydus")
    assert target(book(HUB, by_digest), f"docker.io/library/app@{DIGEST}") is not None


def test_namespaces() -> None:
    rules = book(RuleEntry(source="*", target="{name}:{tag}-nydus", namespaces=("k8s.io",)))
    assert target(rules, "docker.io/library/app:1", "k8s.io") is not None
    assert target(rules, "docker.io/library/app:1", "default") is None


def test_options_of_a_rule_are_over_those_of_the_section() -> None:
    rule = RuleEntry(
        source="*", target="{name}:{tag}-nydus", options={"platforms": ("linux/arm64",), "oci": True}
    )
    rules = book(rule, compressor="none", platforms=("linux/amd64",))
    match = rules.match("docker.io/library/app:1", "default", DIGEST)
    assert match is not None
    assert match.options == ConvertOptions(
        build=BuildOptions(compressor="none"), platforms=(Platform.parse("linux/arm64"),), oci=True
    )


def test_results_of_any_rule_match_none() -> None:
    other = RuleEntry(source="*", target="nydus.example/{repository}:{tag}")
    rules = book(HUB, other)
    assert rules.is_result("docker.io/library/app:1-nydus")
    assert target(rules, "docker.io/library/app:1-nydus") is None
    assert target(rules, "nydus.example/library/app:1") is None


NAMES = st.builds(
    "{}/{}:{}".format,
    st.sampled_from(["docker.io", "localhost:5000", "registry.example"]),
    st.from_regex(r"[a-z0-9]{1,6}(/[a-z0-9_.-]{1,6}){0,2}", fullmatch=True),
    st.from_regex(r"\w[\w.-]{0,12}", fullmatch=True),
)
TEMPLATES = st.sampled_from(
    [
        "{name}:{tag}-nydus",
        "{registry}/nydus/{repository}:{tag}",
        "mirror.example:5000/{repository}:{hex}",
        "x/{repository}@{digest}",
        "{name}-nydus:{tag}",
    ]
)


@given(NAMES, st.lists(TEMPLATES, min_size=1, max_size=3))
def test_no_result_is_converted_again(image: str, templates: list[str]) -> None:
    rules = book(*(RuleEntry(source="*", target=template) for template in templates))
    result = target(rules, image)
    assert result is None or target(rules, result) is None


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (RuleEntry("docker.io/*", "{name}:{tag"), "target"),
        (RuleEntry("docker.io/*", "{nam}:{tag}"), "no placeholder {nam}; there are name, registry"),
        (RuleEntry("docker.io/*", "{name.__class__}"), "no placeholder {name.__class__}"),
        (RuleEntry("docker.io/*", "{name!r}"), "no placeholder"),
        (RuleEntry("docker.io/*", "{}"), "no placeholder {}"),
        (RuleEntry("docker.io/*", "one:name"), "one name for all images"),
        (RuleEntry("docker.io/*", "oci:/tmp/{repository}:{tag}"), "not the name of an image in containerd"),
        (RuleEntry("docker.io/*", "{name}:{tag} nydus"), "white space"),
        (RuleEntry("quay.io/*", "quay.io/{repository}:{tag}"), "results are never converted"),
        (
            RuleEntry("docker.io/*-nydus", "{name}-nydus:{tag}-nydus", options={"verify": "no"}),
            "verification 'no'",
        ),
        (RuleEntry("docker.io/*", "{name}:{tag}-x", options={"platforms": ("linux",)}), "linux"),
    ],
)
def test_rules_that_make_no_sense(rule: RuleEntry, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        book(HUB, rule)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("[[rules]] 2: ")
    assert problem in caught.value.problems[0]


def test_all_problems_are_told() -> None:
    with pytest.raises(ConfigError) as caught:
        book(RuleEntry("*", "{x}"), HUB, RuleEntry("*", "{y}"), compressor="gzip")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "[convert]",
        "[[rules]] 1",
        "[[rules]] 3",
    ]
