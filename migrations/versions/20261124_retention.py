"""Images that are pinned, checked, or known to be damaged."""

import sqlalchemy as sa
from alembic import op

from crd.catalog.schema import Instant

revision = "20261124_retention"
down_revision = "20261123_first"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("images", sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("images", sa.Column("verified_at", Instant))
    op.add_column("images", sa.Column("damage", sa.Text))
    op.create_index("ix_requests_crid", "requests", ["crid"])
