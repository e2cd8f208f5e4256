"""A million images: what is asked for often is found without looking at all of them."""

import sqlalchemy as sa
from alembic import op

revision = "20261128_scale"
down_revision = "20261128_rights"
branch_labels = None
depends_on = None

_UNUSUAL = sa.text("state <> 'ok'")


def upgrade() -> None:
    op.create_index("ix_images_target_crid", "images", ["host", "target", "crid"])
    op.create_index("ix_images_pid_crid", "images", ["host", "pid", "crid"])
    op.create_index("ix_images_uid_taken_at", "images", ["uid", "taken_at"])
    op.create_index("ix_images_verified_at", "images", ["host", "verified_at", "taken_at"])
    op.create_index("ix_images_unusual", "images", ["host", "state"], sqlite_where=_UNUSUAL, postgresql_where=_UNUSUAL)
    op.create_index("ix_requests_uid", "requests", ["uid", "number"])
