import pytest
from icon_packages import drawings, icon_set

from steering.clip.icons.package import IconSet
from steering.clip.icons.selection import SPLITS, select

DOT = '<circle r="5"/>'


def chosen(*sets, **options):
    return select([IconSet.model_validate(icons) for icons in sets], **options)


def names(selection) -> set[str]:
    return {f"{icon.set}:{icon.name}" for icon in selection.icons}


@pytest.mark.parametrize(
    "about",
    [
        {"spdx": "CC-BY-4.0"},
        {"spdx": "GPL-3.0"},
        {"spdx": ""},
        {"category": "Logos"},
        {"category": "Emoji"},
        {"category": "Programming"},
    ],
)
def test_sets_under_other_licences_and_sets_of_logos_and_emoji_are_left_out(about):
    assert names(chosen(icon_set("good", {"star": {"body": DOT}}), icon_set("bad", **about))) == {"good:star"}


@pytest.mark.parametrize("prefix", ["fluent-emoji", "emoji", "our-logos", "brand-x", "devicon-line"])
def test_sets_that_are_called_logos_or_emoji_are_left_out(prefix):
    assert names(chosen(icon_set("good", {"star": {"body": DOT}}), icon_set(prefix))) == {"good:star"}


def test_trademarks_are_left_out_by_what_other_sets_say_of_a_name():
    logos = [
        icon_set(f"logo-set-{n}", {"target": {"body": DOT}} | ({"kiosk-inc": {"body": DOT}} if n < 2 else {})
                 | ({"acmecorp": {"body": DOT}} if n < 8 else {}), category="Logos")
        for n in range(8)
    ]  # fmt: skip
    declared = icon_set("a", {"hoola": {"body": "<g/>"}}, categories={"Brand / Logo": ["hoola-outline"]})
    tried = ["target", "kiosk-inc-outline", "acmecorp-square", "hoola-bold", "brand-new", "star-logo", "star", "inc"]
    bodies = {name: {"body": DOT + " " * n} for n, name in enumerate(tried)}
    assert names(chosen(declared, *logos, icon_set("b", bodies))) == {"b:star", "b:inc"}


@pytest.mark.parametrize(
    "body",
    [
        '<image href="file:///etc/passwd"/>',
        '<feImage href="http://example.org/x.png"/>',
        '<use href="http://example.org/x.svg#a"/>',
        '<use xlink:href="other.svg#a"/>',
        "<use xlink:href = 'data:image/svg+xml,x'/>",
        '<path fill="url(http://example.org/x.svg#a)"/>',
        "<path style=\"fill: URL( 'x.svg#a')\"/>",
        "<style>@import url(x.css)</style>",
        "<script>1</script>",
        '<path><animate attributeName="d"/></path>',
        "<text>x</text>",
        "<foreignObject/>",
        '</svg><!DOCTYPE svg [<!ENTITY a "b">]><svg>',
        '<!ENTITY a "b">',
        "<?xml-stylesheet href='#x'?>",
        "<svg:image/>",
        '</g></svg><svg><a href="#x"/>',
        "<feTurbulence numOctaves='1000000000'/>",
        "<path d='" + "M0 0" * 6000 + "'/>",
    ],
)
def test_drawings_that_could_load_or_hold_something_else_are_left_out(body):
    assert names(chosen(icon_set("a", {"trap": {"body": body}, "star": {"body": DOT}}))) == {"a:star"}


def test_drawings_that_only_refer_to_themselves_are_taken():
    body = '<defs><g id="a"/><linearGradient id="b"/></defs><use href="#a"/><path fill="url(#b)" mask="url(\'#a\')"/>'
    assert names(chosen(icon_set("a", {"star": {"body": body}}))) == {"a:star"}


@pytest.mark.parametrize(
    "name", ["../star", "star/../../x", "Star", "star.png", "", "-star", "st\u00e4r", "__star__", "a" * 101]
)
def test_names_that_are_not_iconifys_are_left_out(name):
    assert names(chosen(icon_set("a", {name: {"body": DOT}, "star": {"body": "<g/>"}}))) == {"a:star"}


@pytest.mark.parametrize(
    "drawing",
    [
        {"hidden": True},
        {"width": 0},
        {"height": -1},
        {"left": 1e9},
        {"width": 1000},
    ],
)
def test_withdrawn_drawings_and_impossible_view_boxes_are_left_out(drawing):
    assert names(chosen(icon_set("a", {"heart": {"body": DOT, **drawing}, "star": {"body": DOT}}))) == {"a:star"}


def test_a_name_needs_three_letters():
    assert names(
        chosen(icon_set("a", {"tv": {"body": DOT}, "123-4-ab": {"body": "<g/>"}, "cat": {"body": "<path/>"}}))
    ) == {"a:cat"}


@pytest.mark.parametrize(
    ("name", "concept", "style"),
    [
        ("arrow-left-outline", "arrow left", "outline"),
        ("baseline-arrow-left", "arrow left", "baseline"),
        ("heart-24-filled", "heart", "24 filled"),
        ("flag-4x3", "flag", "4x3"),
        ("list-24px", "list", "24px"),
        ("two-tone", "two", "tone"),
        ("outline", "outline", ""),
        ("bold-2", "bold 2", ""),
    ],
)
def test_the_caption_keeps_style_words_and_the_concept_does_not(name, concept, style):
    (icon,) = chosen(icon_set("a", {name: {"body": DOT}})).icons
    assert (icon.caption, icon.concept, icon.style) == (name.replace("-", " "), concept, style)


@pytest.fixture(scope="module")
def many():
    return [icon_set(f"s{n}", drawings(0.3 + n / 100)) for n in range(40)]


def splits_of(selection) -> dict:
    return selection.split(selection.icons, selection.left_out)


def test_splits_are_disjoint_by_their_rules(many):
    splits = splits_of(chosen(*many))
    assert list(splits) == list(SPLITS) and all(splits.values())
    concept_of = {name: {" ".join(sorted(icon.concept.split())) for icon in splits[name]} for name in SPLITS}
    sets = {name: {icon.set for icon in splits[name]} for name in SPLITS}
    trained = ("train", "reference")
    for name in trained:
        assert not concept_of[name] & (concept_of["held-out-concepts"] | concept_of["held-out-both"])
        assert not sets[name] & (sets["held-out-sets"] | sets["held-out-both"])
    pairs = {name: {(icon.set, icon.concept) for icon in splits[name]} for name in trained}
    assert not pairs["train"] & pairs["reference"]
    for name in SPLITS[2:]:
        assert len(splits[name]) == len(concept_of[name]), "one drawing of each concept"


def test_a_limit_takes_the_first_and_moves_nothing(many):
    selection = chosen(*reversed(many), limit=500)
    every, few = splits_of(chosen(*many)), splits_of(selection)
    assert sum(map(len, few.values())) + selection.left_out["held out, concept has a drawing already"] == 500
    for name in SPLITS:
        assert few[name] == every[name][: len(few[name])]


def test_another_seed_gives_other_splits(many):
    assert splits_of(chosen(*many, seed=1))["held-out-concepts"] != splits_of(chosen(*many))["held-out-concepts"]
