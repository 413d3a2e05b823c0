"""PNG pictures of pixels, and letters to label them with: no library among the dependencies draws either."""

import struct
import unicodedata
import zlib

import numpy as np
from numpy.typing import NDArray

WHITE, BLUE = np.array([255.0, 255.0, 255.0]), np.array([8.0, 48.0, 107.0])
LETTER_HEIGHT, LETTER_WIDTH = 8, 6
"""Pixels of a letter, with the empty column after it."""
# The printable ASCII characters from the space on. Each has five columns of a byte, the lowest bit at the top, as in
# the ROM of dot-matrix displays.
_GLYPHS = bytes.fromhex(
    "0000000000 00005f0000 0007000700 147f147f14 242a7f2a12 2313086462 3649562050 0005030000 001c224100 0041221c00"
    "14083e0814 08083e0808 0080703000 0808080808 0060600000 2010080402 3e5149453e 00427f4000 4261514946 2141454b31"
    "1814127f10 2745454539 3c4a494930 0171090503 3649494936 064949291e 0036360000 0040340000 0814224100 1414141414"
    "0041221408 0201510906 324979413e 7e1111117e 7f49494936 3e41414122 7f4141221c 7f49494941 7f09090901 3e4149497a"
    "7f0808087f 00417f4100 2040413f01 7f08142241 7f40404040 7f020c027f 7f0408107f 3e4141413e 7f09090906 3e4151215e"
    "7f09192946 4649494931 01017f0101 3f4040403f 1f2040201f 3f4038403f 6314081463 0708700807 6151494543 007f414100"
    "0204081020 0041417f00 0402010204 4040404040 0001020400 2054545478 7f48444438 3844444420 384444487f 3854545418"
    "087e090102 18a4a49c78 7f08040478 00447d4000 4080847d00 7f10284400 00417f4000 7c04180478 7c08040478 3844444438"
    "fc24242418 18242424fc 7c08040408 4854545420 043f444020 3c4040207c 1c2040201c 3c4030403c 4428102844 1ca0a0a07c"
    "4464544c44 0008364100 00007f0000 0041360800 0804081008"
)
_LETTERS = np.unpackbits(np.frombuffer(_GLYPHS, np.uint8).reshape(95, 5, 1), axis=2, bitorder="little")


def lettering(text: str, scale: int) -> NDArray[np.bool_]:
    """Return a line of text as pixels, True where there is ink; bool [8 x scale, 6 x scale x letters].

    Accents are left out, and `?` stands for a letter of another script.
    """
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    numbers = [ord(letter) - 32 if " " <= letter <= "~" else ord("?") - 32 for letter in plain]
    columns = np.pad(_LETTERS[numbers], ((0, 0), (0, 1), (0, 0))).reshape(-1, LETTER_HEIGHT)
    return np.kron(columns.T, np.ones((scale, scale))) > 0


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a PNG of RGB pixels [height, width, 3] (W3C, Portable Network Graphics, 2003)."""
    height, width, _ = pixels.shape
    # each row begins with the number of its filter, 0 for none
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(rows.tobytes()),
        b"IEND": b"",
    }
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
