"""The tables of a benchmark."""

from collections.abc import Sequence

from rich.table import Table

from .costs import NOISE_BOUND, Costs, Ratios
from .parts import PARTS


def cost_table(arms: Sequence[Costs], memory_kind: str) -> Table:
    """List the costs of steps, with ratios to the first arm."""
    stock = arms[0]
    table = Table(
        title=f'training steps; × is relative to {stock.name}', caption=f'memory: {memory_kind}'
    )
    table.add_column('arm')
    for name in ('step (quartiles)', '×', 'FLOPs', '×', 'time × / FLOPs ×', 'memory', '×'):
        table.add_column(name, justify='right')
    for costs in arms:
        low, median, high = costs.quartiles
        ratios = Ratios.of(costs, stock)
        table.add_row(
            costs.name,
            f'{median:.4g} s ({low:.4g} – {high:.4g})',
            f'{ratios.time[1]:.2f}' + (' ?' if ratios.is_noisy else ''),
            f'{costs.flops / 1e9:,.1f} G',
            f'{ratios.flops:.2f}',
            f'{ratios.time_over_flops:.2f}',
            f'{costs.peak_memory / 2**20:,.0f} MiB',
            f'{ratios.memory:.2f}',
        )
    return table


def flops_table(arms: Sequence[Costs]) -> Table:
    """List the operations by part, forward + backward."""
    table = Table(title='FLOPs by part, forward + backward (G)')
    table.add_column('part')
    for costs in arms:
        table.add_column(costs.name, justify='right')
    for part in PARTS:
        counts = [(x.flops_forward.get(part, 0), x.flops_backward.get(part, 0)) for x in arms]
        if any(map(any, counts)):
            cells = (f'{forward / 1e9:,.2f} + {back / 1e9:,.2f}' for forward, back in counts)
            table.add_row(part, *cells)
    return table


def noise_note(arms: Sequence[Costs]) -> str | None:
    """Name the arms whose times scatter too much for a conclusion; None without any."""
    noisy = [x.name for x in arms if Ratios.of(x, arms[0]).is_noisy]
    if not noisy:
        return None
    return (
        f'Step times of {", ".join(noisy)} are too noisy: the interquartile range of the ratios of '
        f'paired steps is over {NOISE_BOUND:.0%} of their median. Use more --steps or an idle machine.'
    )
