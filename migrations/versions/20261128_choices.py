"""What retention has to know of the images of a target is in the index that finds them."""

from alembic import op

revision = "20261128_choices"
down_revision = "20261128_stdio"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_images_target_crid", "images")
    op.create_index("ix_images_target_crid", "images",
                    ["host", "target", "crid", "state", "taken_at", "pinned", "stored_bytes"])
