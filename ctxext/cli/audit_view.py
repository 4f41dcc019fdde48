"""An audit as text, data or a drawing: findings first, in a sentence each."""

import dataclasses
import json
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.audit import EXACT, Audit, Pair
from ctxext.audit.picture import picture, rows_table
from ctxext.audit.subject import runs, runs_text
from ctxext.audit.visibility import Visibility
from ctxext.report.pages.page import write_chart
from ctxext.report.table import WIDTH, Table, table_of_texts


@dataclasses.dataclass(frozen=True)
class AuditView:
    """What an audit prints."""

    audit: Audit
    positions: str
    """How the model tells positions apart, such as "theta 10000"."""

    def text(self) -> str:
        """The findings, notes, and tables of queries, pieces, layers and kernels."""
        subject = self.audit.subject
        header = (
            f"{subject.name}: {subject.seq_len:,} tokens; window {subject.window:,}, head_dim "
            f"{subject.base.head_dim}, {self.positions}, layers {len(subject.layers)}"
        )
        lines = [header, ""]
        found = [finding.sentence for finding in self.audit.findings]
        lines += _list("findings", found)
        lines += _list("notes", list(self._notes()))
        tables = [rows_table(self.audit), self._pieces(), self._computed()]
        for table in tables:
            lines += ["", table.to_text()]
        return "\n".join(lines)

    def json(self) -> str:
        """Everything as data, with a row for each query that was looked at."""
        subject = self.audit.subject
        data = {
            "method": subject.name,
            "seq_len": subject.seq_len,
            "original_max_position_embeddings": subject.window,
            "head_dim": subject.base.head_dim,
            "layers": len(subject.layers),
            "findings": [dataclasses.asdict(finding) for finding in self.audit.findings],
            "notes": list(self._notes()),
            "every_query": self.audit.exact,
            "views": [self._view_data(number) for number in range(len(self.audit.visibility))],
            "receptive_field": {
                "tokens_by_layer": self.audit.field.by_layer,
                "not_reached": runs(~self.audit.field.reached),
            },
            "kernels": [dataclasses.asdict(kernel) for kernel in self.audit.kernels],
            "cache": dataclasses.asdict(self.audit.cache),
        }
        return json.dumps(data, indent=2)

    def plot(self, out: Path) -> Path:
        """Draw what each query sees into FILE.svg or FILE.html."""
        return write_chart(picture(self.audit), out)

    def _notes(self) -> Iterator[str]:
        """What is worth knowing and is not wrong."""
        audit = self.audit
        subject = audit.subject
        T, window = subject.seq_len, subject.window
        for number, visibility in enumerate(audit.visibility):
            counts = Counter(pair.angles for pair in self._pairs(number))
            where = f" in {visibility.view.name}" if visibility.view.name else ""
            if new := counts["extrapolated"]:
                yield (
                    f"{new} of {sum(counts.values())} rotary pairs turn to angles that "
                    f"pre-training never had{where}: rotary distances go up to "
                    f"{visibility.reach:,.6g}, those of pre-training went up to {window - 1:,}."
                )
        most = max(int(visibility.keys.sum(1).max()) for visibility in audit.visibility)
        if most > window:
            yield (
                f"Up to {most:,} keys share a softmax, in pre-training at most {window:,}: the "
                "attention of a query is spread over more of them."
            )
        by_layer = audit.field.by_layer
        if by_layer[0] < T:
            layers = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n < len(by_layer)]
            reach = [f"{by_layer[n - 1]:,} after {n}" for n in [*layers, len(by_layer)]]
            yield f"Tokens that the last one depends on, by layers: {', '.join(reach)}."
        if not audit.exact:
            yield (
                f"Only {len(audit.visibility[0].queries):,} of {T:,} queries were looked at, a "
                f"fixed sample; --seq-len of at most {EXACT:,} looks at all of them."
            )
        if audit.gradients < T:
            yield f"Gradients were computed for {audit.gradients:,} queries."

    def _pieces(self) -> Table[Any]:
        """The pieces, their rotary distances, and what the pairs make of them."""
        several = len(self.audit.visibility) > 1
        lines = []
        for number, visibility in enumerate(self.audit.visibility):
            for piece, mask in enumerate(visibility.view.masks):
                name = str(visibility.view.numbers[piece])
                name += f" ({visibility.view.name})" if several else ""
                of_piece = self.audit.pairs[number][piece] if self.audit.pairs[number] else []
                counts = Counter(pair.angles for pair in of_piece)
                low = visibility.lowest[:, piece].min()
                high = visibility.highest[:, piece].max()
                distances = f"{low:,.6g} to {high:,.6g}" if np.isfinite(low) else "none"
                kinds = ("seen", "interpolated", "extrapolated")
                angles = [str(counts[kind]) if of_piece else "-" for kind in kinds]
                new = runs(np.array([pair.angles == "extrapolated" for pair in of_piece], bool))
                lines.append([name, str(mask), distances, *angles, runs_text(new) if new else "-"])
        return table_of_texts(
            "Pieces, and how many rotary pairs turn to angles of pre-training",
            ["piece", "mask", "distances", "seen", "interpolated", "extrapolated", "which"],
            lines,
        )

    def _computed(self) -> Table[Any]:
        """Which kernels do it, and the decode cache."""
        lines = [[a.name, a.result, a.detail] for a in [*self.audit.kernels, self.audit.cache]]
        return table_of_texts(
            "Computed as by the dense kernel", ["by", "result", "how, or why not"], lines
        )

    def _pairs(self, number: int) -> list[Pair]:
        """The pairs of some layers, each at the farthest of its pieces."""
        of_pieces = self.audit.pairs[number]
        order = ("seen", "interpolated", "extrapolated")
        return [
            max(of_pair, key=lambda pair: order.index(pair.angles))
            for of_pair in zip(*of_pieces, strict=True)
        ]

    def _view_data(self, number: int) -> dict[str, Any]:
        visibility = self.audit.visibility[number]
        view = visibility.view
        return {
            "name": view.name,
            "rotates": view.kind.rotates,
            "pieces": [
                {
                    "mask": str(mask),
                    "query_positions": _map_text(piece.query_positions),
                    "key_positions": _map_text(piece.key_positions),
                }
                for piece, mask in zip(view.pieces, view.masks, strict=True)
            ],
            "pairs": [dataclasses.asdict(pair) for pair in self._pairs(number)],
            "queries": [self._row_data(visibility, query) for query in visibility.queries.tolist()],
        }

    def _row_data(self, visibility: Visibility, query: int) -> dict[str, Any]:
        row = visibility.row(query)
        distance, count = row.largest_share
        return {
            "query": query,
            "visible": row.pieces,
            "keys": row.keys,
            "distances": row.distances,
            "most_keys_at_one_distance": {"distance": distance, "keys": count},
            "counted_twice": row.twice,
            "future": row.future,
        }


def _map_text(position_map: Any) -> str:
    return getattr(position_map, "__name__", str(position_map))


def _list(title: str, sentences: list[str]) -> list[str]:
    """A title with sentences under it, wrapped."""
    if not sentences:
        return [f"{title}: none"]
    lines = [f"{title}:"]
    for sentence in sentences:
        lines += textwrap.wrap(
            sentence, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
        )
    return lines
