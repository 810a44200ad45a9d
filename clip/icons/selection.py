"""Which icons become pairs, and on which side each one is: by rules that depend on names and the seed alone."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from steering.clip.icons.package import Drawing, IconSet, Info

LICENSES = {"MIT", "Apache-2.0", "CC0-1.0", "ISC", "BSD-2-Clause", "BSD-3-Clause", "Unlicense", "OFL-1.1"}
SPLITS = ("train", "reference", "held-out-concepts", "held-out-sets", "held-out-both")
HELD_OUT_CONCEPTS = 0.08  # share of the names without their style words
HELD_OUT_SETS = 0.05  # largest share of the icons that are in sets of authors never trained on
REFERENCE = 0.1  # share of the other drawings
LETTERS = 3  # that a caption has at least: the two of a country are no caption
MOST_BODY = 20_000  # characters of a drawing,
LARGEST = 1e5  # of the numbers of its view box,
NARROW = 10  # times that this is as long as wide

# Words for how something is drawn. Numbers, which are sizes or versions, are style words as well.
STYLE_WORDS = frozenset(
    "outline outlined line linear stroke fill filled solid bold thin light regular duotone duo twotone tone round "
    "rounded sharp baseline broken color colour alt variant o".split()
)
_NUMBER = re.compile(r"\d+(px)?|\d+x\d+")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

# Trademarks. A name is a brand if a category of its set says so, or if sets of logos have it: of one word, which may
# mean something else, in so many sets; of several words in so many; any word of a name in so many.
LOGO_SETS = re.compile(r"\b(logos?|brands?|emojis?|devicon)\b")  # emoji: kept for testing
_BRANDS = re.compile(r"brand|logo", re.IGNORECASE)
ONE_WORD, WORDS, ANY_WORD = 5, 2, 8

# What drawings consist of. Nothing here can load a file: image, feImage, text, style, script and foreignObject cannot
# occur, and neither can a DOCTYPE, and with it an entity. Animations cannot, whose first moment is not the drawing.
ELEMENTS = frozenset(
    "path g defs use symbol circle rect ellipse line polygon polyline clipPath mask marker pattern linearGradient "
    "radialGradient stop filter feBlend feColorMatrix feComposite feDropShadow feFlood feGaussianBlur feMerge "
    "feMergeNode feMorphology feOffset".split()
)
_TAGS = re.compile(r"<\s*/?\s*([^\s/>]*)")
_LINKS = re.compile(r"href\s*=\s*[\"']?\s*(?!#)[^\s\"'#]|url\s*\(\s*[\"']?\s*(?!#)[^\s\"'#]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Icon:
    """A drawing with its name; ``box`` is the view box of an SVG."""

    set: str
    name: str
    license: str
    body: str
    box: tuple[float, float, float, float]

    @property
    def caption(self) -> str:
        return self.name.replace("-", " ")

    @property
    def concept(self) -> str:
        """The name without its style words; all of it if nothing else would be left."""
        return " ".join(_split_name(self.name)[0])

    @property
    def style(self) -> str:
        return " ".join(_split_name(self.name)[1])


@dataclass(frozen=True)
class Selection:
    """Icons that may be used, in a fixed mixed order.

    Attributes:
        icons: one for every name of a set.
        left_out: how many icons are not among them, and why.
        sets: what the package says of the sets that may be used, by prefix.
        held_out_sets: prefixes of those that nothing is trained on.
        seed: of the order and of the splits.
    """

    icons: list[Icon]
    left_out: Counter[str]
    sets: dict[str, Info]
    held_out_sets: set[str]
    seed: int

    def split(self, icons: Iterable[Icon], left_out: Counter[str]) -> dict[str, list[Icon]]:
        """Puts every icon on its side; where a model is evaluated, each concept has one drawing.

        Args:
            icons: of ``icons``, in that order, those that have a picture of their own.
            left_out: further ones are counted there.
        """
        splits: dict[str, list[Icon]] = {name: [] for name in SPLITS}
        seen = {name: set[str]() for name in SPLITS}
        for icon in icons:
            concept = " ".join(sorted(icon.concept.split()))  # "left arrow" is "arrow left"
            held_out = _draw(self.seed, "concept", concept) < HELD_OUT_CONCEPTS
            if icon.set in self.held_out_sets:
                side = "held-out-both" if held_out else "held-out-sets"
            elif held_out:
                side = "held-out-concepts"
            else:  # together with the other drawings of the concept in its set, which may look alike
                side = "reference" if _draw(self.seed, "reference", icon.set, concept) < REFERENCE else "train"
            if side.startswith("held-out") and concept in seen[side]:
                left_out["held out, concept has a drawing already"] += 1
            else:
                seen[side].add(concept)
                splits[side].append(icon)
        return splits


def select(sets: Iterable[IconSet], *, seed: int = 0, limit: int | None = None) -> Selection:
    """Chooses icons.

    Args:
        sets: of the package, in any order.
        seed: of the order and of the splits.
        limit: so many icons at most; the split of an icon does not depend on it.
    """
    usable, logos, left_out = list[IconSet](), defaultdict[str, set[str]](set), Counter[str]()
    brands = set[str]()
    for icons in sets:
        brands |= _declared_brands(icons)
        if icons.info.category == "Logos":
            for name in icons.icons:
                logos[name].add(icons.prefix)
        if reason := _refused(icons):
            left_out[reason] += len(icons.icons)
        else:
            usable.append(icons)
    counts = {name: len(having) for name, having in logos.items()}
    brands |= {name for name, count in counts.items() if count >= (WORDS if "-" in name else ONE_WORD)}
    words = {name for name, count in counts.items() if "-" not in name and len(name) > 1 and count >= ANY_WORD}

    info = {icons.prefix: icons.info for icons in usable}
    chosen = list(_drawings(usable, brands, words, left_out))
    authors = _held_out_authors(Counter(info[icon.set].author.name for icon in chosen), seed)
    chosen.sort(key=lambda icon: _draw(seed, "order", icon.set, icon.name))
    left_out["over the limit"] += len(chosen) - len(chosen[:limit])
    held_out = {prefix for prefix, about in info.items() if about.author.name in authors}
    return Selection(chosen[:limit], +left_out, info, held_out, seed)


def _refused(icons: IconSet) -> str:
    """Why no icon of a set is used."""
    if icons.info.license.spdx not in LICENSES:
        return f"licence {icons.info.license.spdx or icons.info.license.title}"
    if icons.info.category in ("Logos", "Emoji", "Programming") or LOGO_SETS.search(icons.prefix):
        return "set of logos or emoji"
    return ""


def _declared_brands(icons: IconSet) -> set[str]:
    """Names without style words of what a set itself counts among brands."""
    named = {name for title, names in icons.categories.items() if _BRANDS.search(title) for name in names}
    return {" ".join(_split_name(name)[0]).replace(" ", "-") for name in named}


def _drawings(sets: list[IconSet], brands: set[str], words: set[str], left_out: Counter[str]) -> Iterator[Icon]:
    for icons in sets:
        for name, drawing in icons.icons.items():
            icon = Icon(icons.prefix, name, icons.info.license.spdx, drawing.body, _box(icons, drawing))
            if reason := _unusable(icon, drawing.hidden, brands, words):
                left_out[reason] += 1
            else:
                yield icon


def _box(icons: IconSet, drawing: Drawing) -> tuple[float, float, float, float]:
    own = drawing.left, drawing.top, drawing.width, drawing.height
    left, top, width, height = (
        usual if value is None else value
        for value, usual in zip(own, (icons.left, icons.top, icons.width, icons.height), strict=True)
    )
    return left, top, width, height


def _unusable(icon: Icon, hidden: bool, brands: set[str], words: set[str]) -> str:
    if not _NAME.fullmatch(icon.name) or len(icon.name) > 100:
        return "name not in Iconify's form"
    if hidden:
        return "withdrawn by its set"
    if sum(letter.isalpha() for letter in icon.name) < LETTERS:
        return "name too short"
    concept, _ = _split_name(icon.name)
    if _BRANDS.search(icon.name) or "-".join(concept) in brands or not words.isdisjoint(concept):
        return "brand or logo"
    if len(icon.body) > MOST_BODY:
        return "drawing too long"
    if max(map(abs, icon.box)) > LARGEST or max(icon.box[2:]) > NARROW * min(icon.box[2:]) or min(icon.box[2:]) <= 0:
        return "view box empty, too narrow or too large"
    return unsafe(icon.body)


def unsafe(body: str) -> str:
    """Why a drawing must not be drawn, empty if it may be: the renderer would load a picture from the disk."""
    if "<!" in body or "<?" in body or not ELEMENTS.issuperset(_TAGS.findall(body)):
        return "drawing with other elements"
    return "drawing with a link outside" if _LINKS.search(body) else ""


def _split_name(name: str) -> tuple[list[str], list[str]]:
    """What a name says, and its style words."""
    words = name.split("-")
    styles = [word for word in words if word in STYLE_WORDS or _NUMBER.fullmatch(word)]
    if len(styles) == len(words):
        return words, []
    return [word for word in words if word not in styles], styles


def _held_out_authors(icons: Counter[str], seed: int) -> set[str]:
    """Authors in an order by chance, each taken who fits: one author's sets share a style."""
    chosen, room = set(), HELD_OUT_SETS * icons.total()
    for author in sorted(icons, key=lambda author: _draw(seed, "author", author)):
        if icons[author] <= room:
            chosen.add(author)
            room -= icons[author]
    return chosen


def _draw(seed: int, *purpose: str) -> float:
    """A fixed number within 0 and 1, another one for every purpose."""
    digest = hashlib.sha256(":".join((str(seed), *purpose)).encode()).digest()
    return int.from_bytes(digest[:7]) / 2**56
