"""Decoding one PNG or JPEG file that may be broken or hostile."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

FORMATS = ("PNG", "JPEG")
LOSSLESS = {"PNG"}
MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}  # Pillow's, of at most 8 bits a channel
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class ImageError(Exception):
    """What is wrong with an image file; to follow its name in a message."""


@contextmanager
def strict_decoding() -> Iterator[None]:
    """Let Pillow's warnings, such as that of a decompression bomb, be errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def decode_image(content: bytes, shape: tuple[int, int, int]) -> tuple[np.ndarray, str]:
    """Decode an image whose shape is known; call it within `strict_decoding`.

    The size in the header is compared before any pixel is decoded, so nothing larger is ever
    allocated. Damage is always noticed in PNG, which has checksums; JPEG has none.

    Parameters
    ----------
    content
        Bytes of the file: a PNG or JPEG of one frame, and of at most 8 bits a channel.
    shape
        Required height, width and channels (1 or 3); colour modes are converted.

    Returns
    -------
    pixels, kind
        uint8 ``(H, W, C)``, and ``"PNG"`` or ``"JPEG"``.

    Raises
    ------
    ImageError
        If it is anything else.
    """
    from PIL import Image

    height, width, channels = shape
    try:
        if content.startswith(PNG_SIGNATURE):
            _check_chunks(content)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.size != (width, height):
                raise ImageError(
                    f"is {image.size[0]}x{image.size[1]}; all images must be {width}x{height}"
                )
            if image.format not in FORMATS or image.mode not in MODES:
                raise ImageError(f"is {image.format} of mode {image.mode}, not grey or RGB")
            mode = "L" if channels == 1 else "RGB"
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
            return pixels.reshape(shape), image.format
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"is huge; all images must be {width}x{height}") from None
    except ImageError:
        raise
    except Exception:  # on garbage Pillow raises almost anything
        raise ImageError("is broken, or no PNG or JPEG") from None


def _check_chunks(content: bytes) -> None:
    """Check what Pillow ignores in a PNG: checksums of pixels, depth, and more frames."""
    start = len(PNG_SIGNATURE)
    kinds: list[bytes] = []
    while not kinds or kinds[-1] != b"IEND":
        (length,) = struct.unpack_from(">I", content, start)
        end = start + 8 + length
        (checksum,) = struct.unpack_from(">I", content, end)
        if zlib.crc32(content[start + 4 : end]) != checksum:
            raise ValueError("damaged")
        kinds.append(content[start + 4 : start + 8])
        start = end + 4
    if kinds[0] != b"IHDR" or kinds.count(b"IHDR") != 1:
        raise ValueError("not one header")
    if content[24] > 8:  # the header's third entry, after width and height
        raise ImageError(f"has {content[24]} bits a channel; at most 8 are allowed")
    if b"acTL" in kinds:
        raise ImageError("is animated; one frame is allowed")
