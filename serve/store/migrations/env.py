"""What Alembic runs: the missing steps, on the connection and in the transaction of `serve.store.upgrade`."""

from alembic import context

from serve.store.schema import Base
from serve.store.upgrade import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
