"""A score as the only number of a vector, as embedding endpoints encode vectors.

vLLM's words: `encoding_format` is a list of floats or base64; of base64, `embed_dtype` is the type
of the numbers and `endianness` the order of their bytes. Without them base64 is float32 as this
machine has it, which OpenAI's clients read.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import Literal, TypeAlias

from panoply.wire.request import Payload, RequestError

Encoding: TypeAlias = Literal["float", "base64"]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
Endianness: TypeAlias = Literal["native", "little", "big"]
ORDERS: Mapping[Endianness, str] = {"native": "=", "little": "<", "big": ">"}
"""How `struct` writes them."""


def vector(
    number: float,
    encoding: Encoding,
    dtype: Dtype = "float32",
    endianness: Endianness = "native",
) -> Payload:
    """Returns a vector of one number: a list, or its bytes as base64.

    Raises:
        RequestError: 422, the number is too large for the type.
    """
    if encoding == "float":
        return [number]
    order = ORDERS[endianness]
    try:
        if dtype == "bfloat16":
            packed = struct.pack(f"{order}H", _bfloat16(number))
        else:
            packed = struct.pack(f"{order}{'f' if dtype == 'float32' else 'e'}", number)
    except OverflowError as error:
        why = f"the score {number} is too large for {dtype}: ask for `embed_dtype` float32"
        raise RequestError(why, 422) from error
    return base64.b64encode(packed).decode()


def _bfloat16(number: float) -> int:
    """Returns the bits of a number in bfloat16, the upper half of float32, to the nearest even.

    Raises:
        OverflowError: it would be infinite.
    """
    bits = int.from_bytes(struct.pack(">f", number))
    upper = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    if upper & 0x7F80 == 0x7F80:  # the exponent of infinity
        raise OverflowError(number)
    return upper
