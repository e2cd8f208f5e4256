"""The daemon: schedules, carries out, answers.

The **pipeline** is the flow of one image, in either direction; a **due** target is one whose time has come; a **job**
is a checkpoint or restart under way.
"""
