"""A protection of the promise, as it can be taken out: which text, and who must notice."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Edit:
    """One text of one file, and the text that stands there without the protection."""

    file: str
    """Below the project's root."""
    old: str
    """Occurs once in the file."""
    new: str

    def apply(self, root: Path) -> None:
        """Take the protection out of the copy at `root`. Raises ValueError if it isn't there."""
        path = root / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} has {text.count(self.old)} times: {self.old!r}")
        path.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True)
class Protection:
    """A rule that the promise rests on, how to remove it, and the tests that must fail then."""

    name: str
    rule: str
    """The rule in a few words; those of the submit protocol keep its terms."""
    edits: tuple[Edit, ...]
    """Several where the protection stands in layers, each of which would do."""
    tests: tuple[str, ...]
    """pytest's node ids. Each must fail; of a test named without its parameters, one case."""
