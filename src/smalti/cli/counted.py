"""Numbers of things, as the commands print them."""


def counted(number: int, noun: str) -> str:
    """A number and a noun, in the plural unless the number is 1.

    >>> counted(1, "image"), counted(0, "image")
    ('1 image', '0 images')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"
