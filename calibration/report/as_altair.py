"""A chart is given to notebooks as an object of altair, which shows it there; nothing else here needs altair."""

import altair as alt

from calibration.report.vega import Spec


def layered(chart: Spec) -> alt.LayerChart:
    """Return a chart of several layers as altair's."""
    found: alt.LayerChart = alt.LayerChart.from_dict(chart)
    return found
