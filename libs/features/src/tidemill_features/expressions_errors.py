"""What is wrong with an expression, and where in its text."""


class ExpressionError(ValueError):
    """An expression that cannot be used; `offset` is the 0-based character at fault, None where the whole is."""

    def __init__(self, text: str, message: str, offset: int | None = None) -> None:
        where = "" if offset is None else f" (at column {offset + 1})"
        super().__init__(f"{message}{where}")
        self.text = text
        self.message = message
        self.offset = offset

    def pointer(self) -> str:
        """Return the line at fault with a caret under the character; the text itself where no character is named."""
        if self.offset is None:
            return self.text
        line_start = self.text.rfind("\n", 0, self.offset) + 1
        line = self.text[line_start:].split("\n", 1)[0]
        return f"{line}\n{' ' * (self.offset - line_start)}^"
