"""Hosts that share a catalog: each has crids, targets and a queue of its own."""

import socket

import sqlalchemy as sa
from alembic import op

from crd.catalog.schema import Instant, Number

revision = "20261128_hosts"
down_revision = "20261124_retention"
branch_labels = None
depends_on = None

WIDE = {"images": ("crid", "uid", "image_bytes", "memory_bytes", "stored_bytes"), "checkpoints": ("number", "crid"),
        "requests": ("number", "crid", "uid", "root_start_time")}


def upgrade() -> None:
    here = sa.text(f"'{socket.gethostname()}'")  # until now a catalog had one host
    op.create_table("hosts", sa.Column("host", sa.String(255), nullable=False),
                    sa.Column("seen_at", Instant, nullable=False), sa.PrimaryKeyConstraint("host", name="pk_hosts"))
    for table, name in (("checkpoints", "target_number"), ("requests", "state"), ("requests", "crid")):
        op.drop_index(f"ix_{table}_{name}", table)
    with op.batch_alter_table("requests", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.add_column(sa.Column("host", sa.String(255), nullable=False, server_default=here))
        batch.drop_constraint("fk_requests_crid", type_="foreignkey")
    with op.batch_alter_table("images") as batch:
        batch.drop_constraint("pk_images", type_="primary")
        batch.create_primary_key("pk_images", ["host", "crid"])
    with op.batch_alter_table("checkpoints") as batch:
        batch.add_column(sa.Column("host", sa.String(255), nullable=False, server_default=here))
    for table, key in (("targets", "name"), ("holds", "target")):
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column("host", sa.String(255), nullable=False, server_default=here))
        with op.batch_alter_table(table) as batch:
            batch.drop_constraint(f"pk_{table}", type_="primary")
            batch.create_primary_key(f"pk_{table}", ["host", key])
    op.execute("UPDATE requests SET host = (SELECT host FROM images WHERE images.crid = requests.crid)")
    for table, keywords in (("requests", {"sqlite_autoincrement": True}), ("checkpoints", {}), ("targets", {}),
                            ("holds", {})):
        with op.batch_alter_table(table, table_kwargs=keywords) as batch:
            batch.alter_column("host", server_default=None)
    if op.get_context().dialect.name != "sqlite":
        for table, columns in WIDE.items():
            for column in columns:
                op.alter_column(table, column, type_=Number)
    with op.batch_alter_table("requests", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.create_foreign_key("fk_requests_host", "images", ["host", "crid"], ["host", "crid"])
    op.create_index("ix_images_taken_at", "images", ["taken_at"])
    op.create_index("ix_checkpoints_target_number", "checkpoints", ["host", "target", "number"])
    op.create_index("ix_requests_state", "requests", ["host", "state"])
    op.create_index("ix_requests_crid", "requests", ["host", "crid"])
