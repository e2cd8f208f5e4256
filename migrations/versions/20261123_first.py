"""The first schema."""

import sqlalchemy as sa
from alembic import op

from crd.catalog.schema import Instant

revision = "20261123_first"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "images",
        sa.Column("crid", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("target", sa.String(64)),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("comm", sa.String(64), nullable=False),
        sa.Column("uid", sa.Integer, nullable=False),
        sa.Column("taken_at", Instant, nullable=False),
        sa.Column("engine", sa.String(16), nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("method_reason", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("tasks", sa.Integer, nullable=False),
        sa.Column("threads", sa.Integer, nullable=False),
        sa.Column("image_bytes", sa.Integer, nullable=False),
        sa.Column("memory_bytes", sa.Integer, nullable=False),
        sa.Column("stored_bytes", sa.Integer, nullable=False),
        sa.Column("stop_seconds", sa.Float, nullable=False),
        sa.Column("duration_seconds", sa.Float, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("header", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("crid", name="pk_images"),
    )
    op.create_index("ix_images_target_taken_at", "images", ["target", "taken_at"])
    op.create_table(
        "checkpoints",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("target", sa.String(64)),
        sa.Column("pid", sa.Integer),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("crid", sa.Integer),
        sa.Column("started_at", Instant, nullable=False),
        sa.Column("ended_at", Instant),
        sa.Column("error", sa.String(64)),
        sa.Column("message", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_checkpoints"),
    )
    op.create_index("ix_checkpoints_target_number", "checkpoints", ["target", "number"])
    op.create_table(
        "targets",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("definition", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_targets"),
    )
    op.create_table(
        "holds",
        sa.Column("target", sa.String(64), nullable=False),
        sa.Column("held", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("target", name="pk_holds"),
    )
    op.create_table(
        "requests",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("crid", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("pids", sa.String(16), nullable=False),
        sa.Column("files", sa.String(16), nullable=False),
        sa.Column("uid", sa.Integer, nullable=False),
        sa.Column("requested_at", Instant, nullable=False),
        sa.Column("started_at", Instant),
        sa.Column("ended_at", Instant),
        sa.Column("root_pid", sa.Integer),
        sa.Column("root_start_time", sa.Integer),
        sa.Column("boot_id", sa.String(36)),
        sa.Column("error", sa.String(64)),
        sa.Column("message", sa.Text),
        sa.Column("hint", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_requests"),
        sa.ForeignKeyConstraint(["crid"], ["images.crid"], name="fk_requests_crid"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_requests_state", "requests", ["state"])
