"""Making a table so that a killed step can be done again, as MySQL needs, and so that nobody else's is touched."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from serve.store.errors import StoreError

_OPTIONS = {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}
OPTIONS: dict[str, Any] = {f"{kind}_{name}": value for kind in ("mysql", "mariadb") for name, value in _OPTIONS.items()}


def make_table(name: str, *columns: sa.Column[Any], indexes: tuple[tuple[str, ...], ...] = ()) -> None:
    """Makes a table and its indexes, as far as they are not there.

    Raises:
        StoreError: there is a table of that name with other columns: the database is somebody else's.
    """
    inspector = sa.inspect(op.get_bind())
    wanted = {column.name for column in columns}
    if not inspector.has_table(name):
        op.create_table(name, *columns, **OPTIONS)
        there = set()
    else:
        if {column["name"] for column in inspector.get_columns(name)} != wanted:
            raise StoreError(
                f"table {name}", "is there already and not Troupe's", remedy="give Troupe a database of its own"
            )
        there = {index["name"] for index in inspector.get_indexes(name)}
    for keys in indexes:
        index = f"ix_{name}_{'_'.join(keys)}"
        if index not in there:
            op.create_index(index, name, list(keys))
