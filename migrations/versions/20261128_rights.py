"""What the tasks of a restart may have, if a user without rights over others asked for it."""

import sqlalchemy as sa
from alembic import op

revision = "20261128_rights"
down_revision = "20261124_retention"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("requests", sa.Column("gids", sa.JSON))
