"""What came of a request's drafts, in the words of vLLM's answers: `include_metrics`.

Pure. It stands beside OpenAI's fields under the key `metrics`, where their clients leave it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, zip_longest

from paceline import SequenceStats

KEY = "metrics"


def acceptance(stats: Sequence[SequenceStats]) -> dict[str, object]:
    """The counts of a request's texts together; rates are None where there was nothing to count.

    A step is a round that verified a draft. mean_acceptance_length: tokens a step.
    draft_acceptance_rate: of all draft tokens the share accepted; acceptance_rate: of those tested.
    acceptance_histogram[n]: steps of which n draft tokens were accepted.
    """
    drafted, tested = sum(item.drafted for item in stats), sum(item.evaluated for item in stats)
    accepted = sum(item.accepted for item in stats)
    tested_at = _added([item.evaluated_by_position for item in stats])
    accepted_at = _added([item.accepted_by_position for item in stats])
    steps = tested_at[0] if tested_at else 0
    longer = [steps, *accepted_at]  # [n]: steps with n accepted or more
    told = {
        "mean_acceptance_length": (steps + accepted) / steps if steps else None,
        "draft_acceptance_rate": accepted / drafted if drafted else None,
        "acceptance_rate": accepted / tested if tested else None,
        "acceptance_histogram": [more - most for more, most in pairwise([*longer, 0])],
        "num_spec_steps": steps,
        "num_rounds": sum(item.rounds for item in stats),
        "num_draft_tokens": drafted,
        "num_evaluated_draft_tokens": tested,
        "num_accepted_draft_tokens": accepted,
        "evaluated_per_position": tested_at,
        "accepted_per_position": accepted_at,
    }
    return {"speculative_decoding": told}


def _added(lists: Sequence[Sequence[int]]) -> list[int]:
    return [sum(counts) for counts in zip_longest(*lists, fillvalue=0)]
