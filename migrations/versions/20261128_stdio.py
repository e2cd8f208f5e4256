"""What takes the place of terminals of others is kept with a request."""

import sqlalchemy as sa
from alembic import op

revision = "20261128_stdio"
down_revision = "20261128_versions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("requests", sa.Column("stdio", sa.String(16), nullable=False, server_default="pty"))
