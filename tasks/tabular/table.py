"""Tables of samples: read, checked, and made into features."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from steering.errors import UserError, did_you_mean

Kind = Literal["classification", "regression"]
EXAMPLES = ("breast_cancer", "diabetes", "digits", "iris", "wine")  # scikit-learn's sets that come with it
MOST_VALUES = 50  # of a column of text, each of which becomes a feature
MOST_CLASSES = 20  # distinct whole numbers that are still taken for classes
FEWEST_ROWS = 20


@dataclass(frozen=True, eq=False)
class Table:
    """Samples in rows.

    Attributes:
        name: for messages and reports.
        frame: pandas' DataFrame of the features.
        label: ``[n]``, of numbers or text, as it was read.
        named: whether the columns have names of their own.
    """

    name: str
    frame: Any
    label: np.ndarray
    named: bool = True

    def __repr__(self) -> str:
        return f"Table({self.name!r}, rows={len(self.frame)}, columns={self.frame.shape[1]}, data={self.fingerprint!r})"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all values and names, its first 16 digits."""
        from pandas import util

        hash_pandas_object: Any = util.hash_pandas_object

        digest = hashlib.sha256(repr([str(name) for name in self.frame.columns]).encode())
        everything = self.frame.assign(**{"label of the table": self.label})
        digest.update(np.asarray(hash_pandas_object(everything, index=False)).tobytes())
        return digest.hexdigest()[:16]

    def kind(self) -> Kind:
        """Classification where labels are text or few whole numbers, else regression."""
        if self.label.dtype.kind not in "iuf":
            return "classification"
        whole = bool((self.label == np.round(self.label)).all())
        return "classification" if whole and len(np.unique(self.label)) <= MOST_CLASSES else "regression"


def read_table(data: str, label: str | None) -> Table:
    """A CSV or Parquet file, or one of scikit-learn's own sets by its name.

    Raises:
        UserError: the file cannot be read, or has no such label, or values that no model can use.
    """
    pandas = _pandas()
    if data in EXAMPLES:
        if label is not None:
            raise UserError(f"{data} has its own label, got --label {label}: leave it out")
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{data}")(as_frame=True)
        return checked(data, bunch.data, bunch.target)
    path = Path(data)
    readers = {".csv": "read_csv", ".parquet": "read_parquet"}
    if path.suffix.lower() not in readers:
        allowed = f"a file .csv or .parquet, or one of {', '.join(EXAMPLES)}"
        raise UserError(f"--data is {allowed}, got {data!r}{did_you_mean(data, EXAMPLES)}")
    if not path.is_file():
        raise UserError(f"no file at {path}")
    try:
        frame = getattr(pandas, readers[path.suffix.lower()])(path)
    except Exception as error:  # what reading a damaged file raises has no common type
        raise UserError(f"{path} cannot be read as a table: {' '.join(str(error).split())[:200]}") from None
    if label is None:
        raise UserError(f"which column is to be predicted? --label NAME. {path} has {_some(frame.columns)}")
    if label not in frame.columns:
        names = [str(name) for name in frame.columns]
        raise UserError(f"{path} has no column {label!r}{did_you_mean(label, names) or '.'} It has {_some(names)}")
    return checked(path.name, frame.drop(columns=label), frame[label])


def table_of(x: Any, y: Any) -> Table:
    """A table of one's own arrays, ``[n, columns]`` (or a DataFrame) and ``[n]``.

    Raises:
        UserError: they are of unlike lengths or other shapes, or have values that no model can use.
    """
    pandas = _pandas()
    named = hasattr(x, "columns")
    if not named:
        x = np.asarray(x)
        if x.ndim != 2:
            raise UserError(f"X is an array [n, columns] or a DataFrame, got shape {list(x.shape)}")
    y = np.asarray(y)
    if y.ndim != 1 or len(y) != len(x):
        raise UserError(f"y has a label for each of {len(x)} rows of X, got shape {list(y.shape)}")
    frame = x.reset_index(drop=True) if named else pandas.DataFrame(x).infer_objects()
    return checked("arrays", frame, pandas.Series(y), named=named)


def checked(name: str, frame: Any, label: Any, *, named: bool = True) -> Table:
    """A table that a model can learn from.

    Raises:
        UserError: values are missing or infinite, a column has too many texts, labels do not differ, or rows are few.
    """
    if not frame.columns.is_unique:
        raise UserError(f"{name} has several columns of one name: {_some(frame.columns[frame.columns.duplicated()])}")
    if len(frame) < FEWEST_ROWS or not frame.shape[1]:
        raise UserError(
            f"{name} has {len(frame)} rows and {frame.shape[1]} columns of features: at least {FEWEST_ROWS} and 1"
        )
    columns = {**{str(column): frame[column] for column in frame.columns}, "the label": label}
    missing = {n: int(x.isna().sum()) for n, x in columns.items() if x.isna().any()}
    infinite = {n: int(np.isinf(x).sum()) for n, x in columns.items() if x.dtype.kind == "f" and np.isinf(x).any()}
    for counts, what in ((missing, "missing values"), (infinite, "infinite values")):
        if counts:
            shown = ", ".join(f"{n} ({count})" for n, count in list(counts.items())[:3])
            raise UserError(f"{name} has {what} in {shown}: fill them, or drop these rows or columns")
    for column in frame.columns:
        if not _is_number(frame[column]) and (count := _distinct(frame[column])) > MOST_VALUES:
            raise UserError(
                f"{name} has {count} different texts in column {column}, and each would become a feature: at most "
                f"{MOST_VALUES}, so drop or group them"
            )
    values = label.to_numpy()
    values = values.astype(str) if values.dtype.kind not in "biuf" else values
    if len(np.unique(values)) < 2:
        raise UserError(f"all labels of {name} are {values[0]}: there is nothing to learn")
    return Table(name, frame.reset_index(drop=True), values, named)


def features(table: Table, rows: np.ndarray) -> np.ndarray:
    """All samples as numbers, ``[n, features]`` float32.

    Numbers are in standard deviations from their mean over ``rows``, texts are one feature for each value.
    """
    columns = []
    for name in table.frame.columns:
        column = table.frame[name]
        if _is_number(column):
            x = column.to_numpy(dtype=np.float64)
            columns.append(((x - x[rows].mean()) / (x[rows].std() or 1))[:, None])
        else:
            texts = column.astype(str).to_numpy(dtype=str)
            columns.append(texts[:, None] == np.unique(texts))
    return np.concatenate(columns, 1).astype(np.float32)


def for_estimator(table: Table, estimator: Any) -> Any:
    """The features as a fitted estimator takes them: a frame where it knows names of columns, else an array.

    Raises:
        UserError: it was fitted on other columns.
    """
    names = getattr(estimator, "feature_names_in_", None)
    number = getattr(estimator, "n_features_in_", table.frame.shape[1])
    if names is None:
        if number != table.frame.shape[1]:
            raise UserError(f"the reference was fitted on {number} features, {table.name} has {table.frame.shape[1]}")
        return table.frame.to_numpy()
    lacking = [str(n) for n in names if n not in table.frame.columns]
    if table.named and not lacking:
        return table.frame[list(names)]
    raise UserError(
        f"the reference was fitted on the columns {_some(names)}, {table.name} "
        + (f"has no {_some(lacking)}" if table.named else "has no names: give a DataFrame")
    )


def _is_number(column: Any) -> bool:
    return column.dtype.kind in "biuf"


def _distinct(column: Any) -> int:
    return column.astype(str).nunique()


def _some(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _pandas() -> Any:
    try:
        import pandas  # optional
    except ImportError:
        raise UserError("tables need pandas: pip install 'model-steering[tabular]'") from None
    return pandas
