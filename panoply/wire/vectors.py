"""A score as the only number of a vector, as embedding endpoints encode vectors."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import Literal, TypeAlias

from panoply.wire.dialect import DialectPayload
from panoply.wire.request import Payload, RequestError

Endianness: TypeAlias = Literal["native", "little", "big"]
ORDERS: Mapping[Endianness, str] = {"native": "=", "little": "<", "big": ">"}
"""Prefixes of `struct` for the orders of bytes."""


class VectorPayload(DialectPayload):
    """Payload whose client chooses how vectors are encoded, in vLLM's words."""

    encoding_format: Literal["float", "base64"] = "float"
    embed_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the numbers in base64. Floats in JSON keep all of their digits."""
    endianness: Endianness = "native"
    """Order of the bytes in base64. The default, this machine's, is what OpenAI's clients read."""

    def vector(self, number: float) -> Payload:
        """Returns a vector of one number: a list, or its bytes as base64.

        Raises:
            RequestError: 422, the number is too large for the type.
        """
        if self.encoding_format == "float":
            return [number]
        order = ORDERS[self.endianness]
        try:
            match self.embed_dtype:
                case "float32":
                    packed = struct.pack(f"{order}f", number)
                case "float16":
                    packed = struct.pack(f"{order}e", number)
                case "bfloat16":
                    packed = struct.pack(f"{order}H", _bfloat16(number))
        except OverflowError as error:
            why = f"the score {number} is too large for {self.embed_dtype}: ask for"
            raise RequestError(f"{why} `embed_dtype` float32", 422) from error
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
