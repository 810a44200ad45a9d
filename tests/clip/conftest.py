"""Small shards on disk, for tests of what reads them."""

import io

import pytest
from PIL import Image
from webdataset.writer import TarWriter

COLOURS = ["red", "green", "blue", "yellow", "black", "white", "gray", "orange", "purple", "brown"]


def jpeg(number: int) -> bytes:
    image = Image.new("RGB", (40, 40), COLOURS[number % len(COLOURS)])
    image.paste((number % 256, 255 - number % 256, 128), (5, 5, 20 + number % 7, 20))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def tars(tmp_path):
    """Writes shards of pairs and returns their pattern; the pictures of ``broken`` numbers are no pictures."""

    def write(shards: int = 2, pairs: int = 20, *, broken=(), name: str = "data") -> str:
        folder = tmp_path / name
        folder.mkdir()
        for shard in range(shards):
            with TarWriter(str(folder / f"{shard:03d}.tar")) as tar:
                for number in range(shard * pairs, (shard + 1) * pairs):
                    content = b"not a picture" if number in broken else jpeg(number)
                    caption = f"{COLOURS[number % 10]} picture {number}"
                    tar.write({"__key__": f"{number:05d}", "jpg": content, "txt": caption})
        return f"{folder}/*.tar"

    return write
