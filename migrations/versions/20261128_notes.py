"""What somebody wants to be remembered of an image."""

import sqlalchemy as sa
from alembic import op

revision = "20261128_notes"
down_revision = "20261128_choices"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("images", sa.Column("note", sa.Text))
