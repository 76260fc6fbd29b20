"""Tasks, events, deliveries, idempotency keys, owners."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from serve.store.migrations.tables import make_table

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes all tables of the first version."""
    time = sa.BigInteger  # microseconds since 1970 in UTC
    document = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
    make_table(
        "tasks",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("payload", document, nullable=False),
        sa.Column("turn", sa.Integer, nullable=False),
        sa.Column("webhook", sa.String(2048), nullable=False),
        sa.Column("upload_bytes", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", time, nullable=False),
        sa.Column("updated", time, nullable=False),
        sa.Column("due", time, nullable=False),
        sa.Column("started", time),
        sa.Column("finished", time),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("lease_owner", sa.String(128), nullable=False),
        sa.Column("lease_until", time),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("progress", document),
        sa.Column("result", document),
        sa.Column("error", document),
        sa.Column("cost", document),
        sa.Column("last_event", sa.Integer, nullable=False),
        sa.Column("progress_event", sa.Integer, nullable=False),
        sa.Column("progress_at", time),
        indexes=(
            ("state", "turn", "created", "id"),
            ("state", "lease_until"),
            ("owner", "created", "id"),
            ("created", "id"),
            ("state", "finished"),
        ),
    )
    make_table(
        "events",
        sa.Column("task_id", sa.String(36), sa.ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("at", time, nullable=False),
        sa.Column("data", document, nullable=False),
    )
    make_table(
        "deliveries",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("task_id", sa.String(36), sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("message", document, nullable=False),
        sa.Column("created", time, nullable=False),
        sa.Column("due", time),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("delivered", sa.Boolean, nullable=False),
        sa.Column("answer", document),
        indexes=(("due",), ("task_id",)),
    )
    make_table(
        "idempotency",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("fingerprint", sa.String(128), nullable=False),
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.Column("answer", document),
        sa.Column("created", time, nullable=False),
        sa.Column("expires", time, nullable=False),
        indexes=(("expires",),),
    )
    make_table("owners", sa.Column("name", sa.String(64), primary_key=True))
