"""What was taken and what is to be restarted; the only package that imports SQLAlchemy.

An **image** row describes an archived image; a **checkpoint** row an attempt to take one, whatever came of it; a
**target** row one that was added while the daemon ran; a **request** row a restart somebody asked for.
"""
