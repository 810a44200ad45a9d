"""Builds the bundled emoji pictures and captions from three npm packages.

    npm pack emoji-datasource-google@16.0.0
    npm pack emoji-datasource-twitter@16.0.0
    npm pack emojilib@4.0.3
    python -m scripts.build_emoji TARBALL_DIR OUT_DIR

takes two minutes on one core, nearly all of it WebP's search for the smallest lossless file, and ends with

    1870 concepts: 1500 train (600 of them reference), 370 held out
    google.webp      2186958 bytes, SHA-256 0f0aa8f9678d5cee
    twitter.webp     1695802 bytes, SHA-256 2fd129a1af134b20
    emoji.json        379870 bytes, SHA-256 b4a63883e7f94dd7
    bpe_4096.txt.gz    13832 bytes, SHA-256 ace9efec64d14313

The table is the same on every machine. The sheets hold the same pixels everywhere, though another libwebp may
pack them into another number of bytes. LICENSES.md, written by hand, says whose work they are.

Known flaws of the sources, left as they are: 13 of Google's pictures and 32 of Twitter's equal another one of
the same vendor (flags of territories, families), and Google's flag of Sark shows Saudi Arabia's.
"""

import argparse
import gzip
import hashlib
import importlib.util
import io
import json
import re
import sys
import tarfile
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

from PIL import Image

from steering.clip.emoji_data import COLUMNS, SIDE

PACKAGES = ("emoji-datasource-google@16.0.0", "emoji-datasource-twitter@16.0.0", "emojilib@4.0.3")
MERGES = 4096  # byte pair merges kept: a vocabulary of 512 bytes + 4,096 merges + 2 marks = 4,610
HELD_OUT = 0.2  # share of every subcategory
REFERENCE = 600  # train concepts whose clean captions the reference may see

# emojilib spells names with letters only, which costs two keycaps their sign, and has two persons share the
# names of men.
NAMES = {
    "0023-FE0F-20E3": "keycap number sign",
    "002A-FE0F-20E3": "keycap asterisk",
    "1F935": "person in tuxedo",
    "1F9D4": "person with beard",
}
# Words that say nothing of a picture on their own.
SMALL_WORDS = frozenset("a an and as at be by for from in into is it its of off on or the to up with".split())


def main(argv: list[str] | None = None) -> int:
    """Reads the tarballs, writes the four files and prints their sizes."""
    parser = argparse.ArgumentParser(prog="python -m scripts.build_emoji", description="Builds the emoji.")
    parser.add_argument("tarballs", type=Path, metavar="TARBALL_DIR", help="folder with the npm tarballs")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder to write to")
    options = parser.parse_args(argv)

    google, twitter, keywords = (read_package(options.tarballs, package) for package in PACKAGES)
    entries = select(json.loads(google["emoji.json"]))
    concepts = describe(entries, json.loads(keywords["dist/emoji-en-US.json"]))

    options.out.mkdir(parents=True, exist_ok=True)
    write_table(options.out / "emoji.json", concepts)
    write_merges(options.out / f"bpe_{MERGES}.txt.gz")
    for vendor, files in (("google", google), ("twitter", twitter)):
        pictures = [files[f"img/{vendor}/64/{entry['image']}"] for entry in entries]
        write_sheet(options.out / f"{vendor}.webp", pictures)

    held_out = sum(concept["held_out"] for concept in concepts)
    reference = sum(concept["reference"] for concept in concepts)
    train = len(concepts) - held_out
    print(f"{len(concepts)} concepts: {train} train ({reference} of them reference), {held_out} held out")
    for name in ("google.webp", "twitter.webp", "emoji.json", f"bpe_{MERGES}.txt.gz"):
        data = (options.out / name).read_bytes()
        print(f"{name:15} {len(data):8} bytes, SHA-256 {hashlib.sha256(data).hexdigest()[:16]}")
    return 0


def read_package(folder: Path, package: str) -> dict[str, bytes]:
    """The JSON files and 64-pixel pictures of an npm tarball, by their path inside the package."""
    path = folder / (package.replace("@", "-") + ".tgz")
    if not path.is_file():
        sys.exit(f"{path} is not there; fetch it with: cd {folder} && npm pack {package}")
    needed = re.compile(r"package/(.+\.json|img/\w+/64/.+\.png)")
    with tarfile.open(path) as archive:
        files = {}
        for member in archive:
            match = needed.fullmatch(member.name)
            if match and (content := archive.extractfile(member)):
                files[match[1]] = content.read()
    return files


def select(entries: list[dict]) -> list[dict]:
    """The entries that are pictures of something and that both vendors drew, in Unicode's order.

    Skin tones are no entries of their own and stay out: 1,715 near-copies that would be false negatives for
    one another and more than half of the data.
    """
    kept = [
        entry
        for entry in entries
        if entry["category"] != "Component"
        and "obsoleted_by" not in entry
        and entry["has_img_google"]
        and entry["has_img_twitter"]
    ]
    return sorted(kept, key=lambda entry: (entry["sort_order"], entry["unified"]))


def describe(entries: list[dict], keywords: dict[str, list[str]]) -> list[dict]:
    """The rows of the table: name, category, subcategory, the two splits and four captions.

    Args:
        entries: of ``emoji.json``, as ``select`` returns them.
        keywords: emoji to its name in emojilib followed by its keywords.
    """
    held_out = draw_held_out(entries)
    train = [entry["unified"] for entry in entries if entry["unified"] not in held_out]
    reference = set(sorted(train, key=lambda code: digest("reference", code))[:REFERENCE])

    rows = []
    for entry in entries:
        code = entry["unified"]
        emoji = "".join(chr(int(point, 16)) for point in code.split("-"))
        subcategory = entry["subcategory"].replace("-", " ").replace("&", "and")
        name = NAMES.get(code) or readable_name(keywords[emoji][0], subcategory)
        row = {"emoji": emoji, "name": name, "category": entry["category"], "subcategory": subcategory}
        rows.append(row | {"held_out": code in held_out, "reference": code in reference})
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)

    # A name that is tested as never seen must not come by as a keyword of a train concept.
    hidden = {row["name"] for row in rows if row["held_out"]}
    for row in rows:
        plain_keywords = [plain(word) for word in keywords[row["emoji"]][1:]]
        row["captions"] = captions(row, [word for word in plain_keywords if row["held_out"] or word not in hidden])
    tell_apart(rows)
    return rows


def draw_held_out(entries: list[dict]) -> set[str]:
    """The code points of a fifth of every subcategory, the first by their hash."""
    groups = defaultdict(list)
    for entry in entries:
        groups[entry["subcategory"]].append(entry["unified"])
    held_out = set()
    for members in groups.values():
        drawn = sorted(members, key=lambda code: digest("held out", code))
        held_out.update(drawn[: round(HELD_OUT * len(members))])
    return held_out


def digest(purpose: str, code_point: str) -> bytes:
    """A fixed number for a code point, another one for every purpose, so that the splits are independent."""
    return hashlib.sha256(f"{purpose}:{code_point}".encode()).digest()


def plain(word: str) -> str:
    """A keyword in lower-case ASCII with single spaces, or nothing where it is no word (``:D``)."""
    word = word.replace("_", " ").replace("\u2019", "'").translate({0x201C: "", 0x201D: ""})
    word = unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode().lower()
    word = " ".join(word.split())
    return word if re.fullmatch(r"[a-z0-9]+([ '.:&-]+[a-z0-9]+)*\.?", word) else ""


def readable_name(spelled: str, subcategory: str) -> str:
    """emojilib's name as a phrase: ``flag_yemen`` becomes ``flag of yemen``."""
    name = plain(spelled.replace(",", ""))
    if subcategory in ("country flag", "subdivision flag"):
        name = name.replace("flag ", "flag of ", 1)
    return name


def captions(row: dict, keywords: list[str]) -> list[str]:
    """Four ways to caption a picture, from a bare name to keywords without the name.

    Keywords that only repeat the words before them are left out; where none is left the subcategory or the
    name stands in, so that the four are always different.
    """
    name, subcategory = row["name"], row["subcategory"]
    keywords = [word for word in dict.fromkeys(keywords) if word and word not in SMALL_WORDS and word != name]
    beside_name = without(keywords, name)[:2] or [subcategory]
    instead = without(keywords, subcategory)[:4] or [name]
    return [
        name,
        f"an emoji of {name}, {subcategory}",
        ", ".join([name, *beside_name]),
        f"{subcategory}: {', '.join(instead)}",
    ]


def tell_apart(rows: list[dict]) -> None:
    """Ends every keyword caption that several concepts share with the name, so that no caption is shared."""
    shared = Counter(row["captions"][3] for row in rows)
    for row in rows:
        caption = row["captions"][3]
        if shared[caption] > 1:
            row["captions"][3] = ", ".join([*caption.split(", ")[:3], row["name"]])


def without(keywords: list[str], phrase: str) -> list[str]:
    """The keywords that add a word to ``phrase``."""
    contained = set(phrase.split())
    return [word for word in keywords if not set(word.split()) <= contained]


def write_table(path: Path, rows: list[dict]) -> None:
    """One line a concept, values only; the first line names the columns."""
    lines = [json.dumps(list(row.values()), ensure_ascii=False, separators=(",", ":")) for row in rows]
    head = json.dumps(list(rows[0]), separators=(",", ":"))
    text = f'{{"columns":{head},\n"rows":[\n' + ",\n".join(lines) + "\n]}\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def write_sheet(path: Path, pictures: list[bytes]) -> None:
    """One lossless WebP of all pictures, ``COLUMNS`` a row, each halved to ``SIDE`` pixels with its alpha."""
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
    for index, data in enumerate(pictures):
        # Pillow multiplies by alpha before it mixes neighbours, so no dark rim appears around a shape.
        picture = Image.open(io.BytesIO(data)).convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        sheet.paste(picture, (index % COLUMNS * SIDE, index // COLUMNS * SIDE))
    sheet.save(path, "WEBP", lossless=True, quality=100, method=6)


def write_merges(path: Path) -> None:
    """The first ``MERGES`` merges of open_clip's own vocabulary, in the form its SimpleTokenizer reads."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("open_clip's byte pair merges are needed, and it is not installed: pip install open_clip_torch")
    full = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(full.read_bytes()).decode("utf-8").split("\n")
    # No line break at the end: the tokenizer splits at them and would count one more, empty, merge.
    text = "\n".join(lines[: 1 + MERGES])
    path.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


if __name__ == "__main__":
    sys.exit(main())
