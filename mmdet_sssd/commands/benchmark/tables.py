"""The tables that a benchmark prints."""

from collections.abc import Sequence

from rich.table import Table

from .costs import NOISE_BOUND, Costs, Ratios
from .parts import PARTS


def cost_table(arms: Sequence[Costs], memory_kind: str) -> Table:
    """Compare what steps cost; ratios are to the first arm."""
    stock = arms[0]
    table = Table(
        title=f'training steps; × is beside {stock.name}', caption=f'memory: {memory_kind}'
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
            cells = (f'{there / 1e9:,.2f} + {back / 1e9:,.2f}' for there, back in counts)
            table.add_row(part, *cells)
    return table


def noise_note(arms: Sequence[Costs]) -> str | None:
    """Say of which arms the times scatter too much to tell; None if of none."""
    noisy = [x.name for x in arms if Ratios.of(x, arms[0]).is_noisy]
    if not noisy:
        return None
    return (
        f'This machine was too noisy to tell how long {", ".join(noisy)} takes: half of the time '
        f'ratios of paired steps lie more than {NOISE_BOUND:.0%} of their median apart. Take more '
        '--steps, or a machine with nothing else to do.'
    )
