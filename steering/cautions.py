"""What running figures warn of, one line each."""

from steering.running_variance import RunningVariance

LEAST_SHARE = 1 / 8  # of a row's entries that the weights may rest on


def of_weights(size: float, share: float, many: bool) -> list[str]:
    """Warns of weights that rest on few entries.

    Args:
        size, share: effective sample size of a row, in entries and as a share of them; 0 if unknown.
        many: whether a row should rest on many entries at all.
    """
    if share >= 1 or not (0 < size < 2 or (0 < share < LEAST_SHARE and many)):
        return []
    return [
        f"the weights rest on {size:.1f} samples of a row (effective sample size, {share:.0%} of them): "
        f"use a smaller rho, a larger temperature or a larger alpha"
    ]


def of_reference(variance: RunningVariance, reference_scale: float | str) -> list[str]:
    """Warns of a reference that adds noise, and of a target that has collapsed onto it."""
    if variance.values is None or not float(variance.values[0]) > 0 or reference_scale == 0:
        return []
    lines, best = [], float(variance.best_scale())
    scale = best if isinstance(reference_scale, str) else reference_scale
    ratio, plain = float(variance.ratio(scale)), float(variance.ratio(1.0))
    if ratio > 1:
        lines.append(
            f"the excess loss varies more than the loss itself (ratio {ratio:.2f}): at this scale the "
            f"reference adds noise; compare a smaller reference_scale on held-out data (least variance: {best:.2f})"
        )
    if plain < 1e-3:
        lines.append(
            f"the target has collapsed onto the reference (Var(loss - reference) / Var(loss) = {plain:.1e}): "
            f"use a smaller rho, a larger temperature, or another reference"
        )
    return lines
