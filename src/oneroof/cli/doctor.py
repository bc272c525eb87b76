"""The command `doctor`: prints what `oneroof.audit.doctor` finds, as text or as one JSON object."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, asdict, dataclass


@dataclass(frozen=True)
class Doctor:
    """What this machine is: versions, devices, CPU features, memory, and what serves each op."""

    _: KW_ONLY

    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> int:
        """Print the findings to standard output; always status 0."""
        from oneroof.audit.doctor import examine

        findings = examine()
        if self.json:
            print(json.dumps(asdict(findings), ensure_ascii=False, indent=2))
            return 0
        for section, rows in findings.sections.items():
            print(section)
            for name, value in rows.items():
                print(f"  {name:<18}{'missing' if value is None else value}")
        for line in findings.advice:
            print(f"! {line}")
        return 0
