"""What `orchestrator doctor` shows: a line for each check as soon as it is done."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.display.terminal import new_console, print_line, printable
from orchestrator.doctor.findings import Finding

_STATUS_STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def show_findings(findings: Iterable[tuple[str, Finding]]) -> list[str]:
    """Show a line for each check as soon as it is done, and the remedy; return the names of those that failed."""
    console, failed = new_console(), []
    for name, finding in findings:
        if console.is_terminal:
            console.print(_finding_line(console, name, finding))
        else:
            remedy = f"; remedy: {finding.remedy}" if finding.remedy else ""
            print_line(f"{finding.status:9}{name:15}{finding.text}{remedy}")
        if finding.status == "failure":
            failed.append(name)
    return failed


def _finding_line(console: Console, name: str, finding: Finding) -> Table:
    line = Table.grid(padding=(0, 2, 0, 0))
    for width in (7, 13, None):
        line.add_column(width=width, overflow="fold")
    remedy = Text(f"\nremedy: {finding.remedy}" if finding.remedy else "", style="bold")
    mark = Text(finding.status, style=_STATUS_STYLES[finding.status])
    line.add_row(mark, name, Text.assemble(printable(console, finding.text), remedy))
    return line
