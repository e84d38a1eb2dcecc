"""The report that the verifier returns: the outcome, and how to read it as text, as a page and as figures."""

import dataclasses
import os
from typing import TYPE_CHECKING

from jaxnn.verify.report import figure, html, text
from jaxnn.verify.report.data import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class WrongGradient(AssertionError):
    """A gradient that the verifier found wrong; the message is the report."""


@dataclasses.dataclass(frozen=True)
class Report(Outcome):
    """The outcome of verify_grad and its relatives; `print` shows it."""

    def __str__(self) -> str:
        return text.render(self)

    def raise_if_wrong(self) -> None:
        """WrongGradient, an AssertionError whose message is this report, unless the gradient is right."""
        __tracebackhide__ = True  # pytest then ends its traceback in the test and shows the report alone
        if not self.ok:
            raise WrongGradient(str(self))

    def to_html(self, path: str | os.PathLike) -> None:
        """Write the report as one page that needs no other file. All or nothing: it appears only once complete.

        FileNotFoundError if the folder does not exist.
        """
        html.write_page(path, html.report_page(self))

    def figure(self) -> "Figure":
        """For up to four wrong leaves: where they are wrong, manual against truth, the differences against the step.

        For a right gradient: the error of every leaf. Returned, never shown; save it with its `savefig`.
        """
        return figure.figure(self)
