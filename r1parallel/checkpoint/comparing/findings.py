"""What was found in verifying checkpoints, as lines for a user."""

from dataclasses import dataclass, replace

KINDS = ("missing", "shape", "dtype", "damaged", "content", "logits")  # in the order in which they are listed
LISTED = 20  # of each kind; the others are counted


@dataclass(frozen=True)
class Finding:
    """One difference. `kind` is of KINDS, `text` says which tensor or file and what."""

    kind: str
    text: str


@dataclass(frozen=True)
class Report:
    """What was compared, and what differs.

    Attributes:
        about: lines that are no differences.
        findings: the differences.
        total: what was compared, such as "290 tensors, 988MB".
    """

    about: tuple[str, ...]
    findings: tuple[Finding, ...]
    total: str

    @property
    def kinds(self) -> set[str]:
        """Of the differences."""
        return {finding.kind for finding in self.findings}

    @property
    def body(self) -> str:
        """All lines but the last."""
        lines = list(self.about)
        for kind in KINDS:
            texts = [finding.text for finding in self.findings if finding.kind == kind]
            lines += [f"{kind:8}{text}" for text in texts[:LISTED]]
            if len(texts) > LISTED:
                lines.append(f"{kind:8}… and {len(texts) - LISTED} more")
        return "\n".join(lines)

    @property
    def verdict(self) -> str:
        """The last line."""
        if not self.findings:
            return f"equal: {self.total}"
        counts = {kind: sum(finding.kind == kind for finding in self.findings) for kind in KINDS}
        return f"DIFFERENT: {', '.join(f'{count} {kind}' for kind, count in counts.items() if count)}; {self.total}"

    def with_finding(self, finding: Finding) -> "Report":
        """The same report with one more difference."""
        return replace(self, findings=(*self.findings, finding))
