"""Parts of the report about whose paths a pool holds: who found them, and what a policy is worth.

The numbers are `path_sums.py`'s; `rft-ray inspect --paths` prints them.
"""

from rft_ray.page import Html, bar_panel, join, table, tag
from rft_ray.path_sums import PathSums
from rft_ray.plots import line_plot

MAX_SETS = 12


def finders(sums: PathSums) -> Html:
    """Paths by the set of policies that found them: the paper's Venn diagram as a table."""
    if len(sums.most_rollouts) < 2 or not sums.finders:
        return Html("")
    total = sums.finders.total()
    note = (
        f"Of {total:,} paths, summed over problems, those that exactly these policies found. What "
        "a policy alone found is its exclusive contribution."
    )
    rows = [
        (", ".join(names), len(names), f"{count:,}", f"{count / total:.1%}")
        for names, count in sums.finders.most_common(MAX_SETS)
    ]
    alone = {name: sums.exclusive(name) / total for name in sums.most_rollouts}
    bars = bar_panel("Found by one policy alone, share of all paths", alone, "{:.1%}")
    headers = ("found by", "policies", "paths", "share")
    pair = tag("div", bars, table(headers, rows), class_="pair")
    return join([tag("h3", "Who found the paths"), tag("p", note, class_="note"), pair])


def worth(sums: PathSums) -> Html:
    """What a policy adds to the pool, against as many more samples of the others."""
    rows = sums.marginal()
    if not rows:
        return Html("")
    note = (
        "Distinct paths per problem of all policies at k rollouts each, less those of the others "
        "given the policy's share of the samples: above zero, the policy is worth more than more "
        "samples."
    )
    curves: dict[str, list[tuple[float, ...]]] = {}
    for name, k, pool, _, more in rows:
        curves.setdefault(name, []).append((k, pool - more))
    plot = line_plot("Worth of a policy", "k, rollouts per policy", curves, log_x=True)
    cells = [
        (name, f"{k}", f"{pool:.2f}", f"{less:.2f}", f"{more:.2f}", f"{pool - more:+.2f}")
        for name, k, pool, less, more in rows
    ]
    headers = ("policy", "k", "pool", "without it", "as many samples", "worth")
    pair = tag("div", plot, table(headers, cells), class_="pair")
    heading = tag("h3", "A policy more, or more samples")
    return join([heading, tag("p", note, class_="note"), pair])
