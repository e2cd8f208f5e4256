"""What becomes of connections at a restart."""

import sqlalchemy as sa
from alembic import op

revision = "20261128_restarts"
down_revision = "20261128_scale"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("requests", sa.Column("tcp", sa.String(16), nullable=False, server_default="auto"))
