"""Integers as little-endian bytes, of fixed or variable size, and a reader for them."""

LONGEST_VARINT = 10
"""Bytes of the longest variable-size number: 70 bits, more than any field needs."""


def fixed(number: int, size: int) -> bytes:
    """A number in `size` bytes."""
    return number.to_bytes(size, "little")


def varint(number: int) -> bytes:
    """A number in groups of seven bits, lowest first; all bytes but the last have their highest bit set (LEB128).

    >>> varint(300).hex()
    'ac02'
    """
    data = bytearray()
    while number >= 128:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])


class Reader:
    """Reads fields in order and never reads past the end."""

    def __init__(self, data: bytes, position: int):
        self._data = data
        self._position = position

    @property
    def left(self) -> int:
        """Number of unread bytes."""
        return len(self._data) - self._position

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > self.left:
            raise ValueError(f"a field at byte {self._position} is longer than the file")
        self._position += count
        return self._data[self._position - count : self._position]

    def number(self, size: int) -> int:
        """The next number of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def numbers(self, count: int) -> list[int]:
        """The next `count` numbers of four bytes each."""
        return [self.number(4) for _ in range(count)]

    def varint(self) -> int:
        """The next number of variable size."""
        number = 0
        for place in range(LONGEST_VARINT):
            byte = self.number(1)
            number |= (byte & 127) << 7 * place
            if byte < 128:
                return number
        raise ValueError(f"a number before byte {self._position} has more than {LONGEST_VARINT} bytes")
