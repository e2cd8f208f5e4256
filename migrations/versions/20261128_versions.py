"""Whether an image of another version of the kernel may be restarted."""

import sqlalchemy as sa
from alembic import op

revision = "20261128_versions"
down_revision = "20261128_restarts"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("requests", sa.Column("force_version", sa.Boolean, nullable=False, server_default=sa.false()))
