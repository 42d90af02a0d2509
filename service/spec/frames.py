"""Metrics as tables of pandas, where that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from service.spec.resources import MetricSeries, StepMetrics

if TYPE_CHECKING:
    import pandas


class Metrics(list[StepMetrics]):
    """Metrics of steps, in order."""

    def to_pandas(self) -> pandas.DataFrame:
        """A row a step, indexed by it, and a column a metric; of nested ones a column each, such as `loss.math`.

        Raises:
            ImportError: pandas is not installed.
        """
        import_pandas()
        from pandas import Index, json_normalize

        table = json_normalize([item.data for item in self])
        table.index = Index([item.step for item in self], name="step")
        return table.drop(columns="step", errors="ignore")


class Curves(list[MetricSeries]):
    """Downsampled metrics, a curve each."""

    def to_pandas(self) -> pandas.DataFrame:
        """A row a point: `name`, `step`, `value`; each curve has steps of its own.

        Raises:
            ImportError: pandas is not installed.
        """
        import_pandas()
        from pandas import DataFrame

        rows: Sequence[tuple[str, int, float]] = [
            (series.name, step, value)
            for series in self
            for step, value in zip(series.steps, series.values, strict=True)
        ]
        return DataFrame(rows, columns=["name", "step", "value"])


def import_pandas() -> None:
    """Say what is missing, where it is.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas  # noqa: F401  asked for its presence
    except ImportError as error:
        raise ImportError("a DataFrame needs pandas: `pip install pandas`") from error
